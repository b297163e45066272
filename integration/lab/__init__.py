"""The lab: two Docker hosts and a place for clients on one machine."""
