//! Docker, by its HTTP API on the unix socket.
