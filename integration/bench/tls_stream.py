"""One end of a TLS stream; see tls.py. `tls_stream.py receive|send CERTIFICATES ADDRESS PORT BYTES`.

The receiver says `listening`, then how many seconds it took from the first byte to the last.
"""

import socket
import ssl
import sys
import time

# As much as the agents read at once from an image.
BUFFER_BYTES = 256 << 10
SILENCE_SECONDS = 30.0


def main() -> None:
    """Receives or sends."""
    what, certificates, address, port, n_bytes = sys.argv[1:]
    side = ssl.PROTOCOL_TLS_SERVER if what == "receive" else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(side)
    context.load_verify_locations(f"{certificates}/ca.pem")
    context.load_cert_chain(f"{certificates}/host.pem", f"{certificates}/host.key")
    (receive if what == "receive" else send)(context, (address, int(port)), int(n_bytes))


def receive(context: ssl.SSLContext, address: tuple[str, int], n_bytes: int) -> None:
    """Takes one connection and counts."""
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(address) as listener:
        print("listening", flush=True)
        listener.settimeout(SILENCE_SECONDS)
        connection, _ = listener.accept()
    connection.settimeout(SILENCE_SECONDS)
    buffer = bytearray(BUFFER_BYTES)
    with context.wrap_socket(connection, server_side=True) as stream:
        missing = n_bytes - stream.recv_into(buffer)
        began = time.monotonic()
        while missing > 0:
            read = stream.recv_into(buffer)
            if read == 0:
                sys.exit("the stream ended early")
            missing -= read
        print(time.monotonic() - began)
        stream.sendall(b"!")


def send(context: ssl.SSLContext, address: tuple[str, int], n_bytes: int) -> None:
    """Connects and sends."""
    buffer = memoryview(bytes(BUFFER_BYTES))
    with socket.create_connection(address, SILENCE_SECONDS) as connection:
        with context.wrap_socket(connection, server_hostname=address[0]) as stream:
            for begin in range(0, n_bytes, BUFFER_BYTES):
                stream.sendall(buffer[: min(BUFFER_BYTES, n_bytes - begin)])
            # Closed at once, with something unread in it, the connection would be reset, and what is under way lost.
            stream.recv(1)


main()
