"""Gives a Redis something to hold, and writes to all of it at random; runs as a program at the clients' place.

`memory_client.py ADDRESS PORT fill MIB` writes so many values and ends. `memory_client.py ADDRESS PORT write MIB RATE` says
`ready`, writes a few bytes into RATE of those values in a second, each chosen at random and so in a page of its own, until
its standard input ends, and prints `{"writes": N, "seconds": S}`, of which a time in which the server is silent is no part.
Requests go in batches without waiting for each answer, for which a second client is told from the first: its pace is steady
and what it hears is not held to account. Half of each value cannot be compressed, the other half can: neither of those who
compress on the way is served too well.
"""

import json
import os
import random
import re
import select
import socket
import sys
import time

# With Redis's header and the byte behind it, a page.
VALUE_BYTES = 4090
VALUES_IN_A_MIB = 256
PATCH_BYTES = 16
BATCHES_A_SECOND = 100
FILL_BATCH = 256
# Longer than any move may take.
SILENCE_SECONDS = 120.0
# An answer that takes longer than this is a move and no pause of the server's own.
STALL_SECONDS = 0.1
RECONNECT_SECONDS = 30.0
REHASH_SECONDS = 120.0
REHASH_BATCH = 4096


class Server:
    """The connection; one that breaks is made again."""

    def __init__(self, address: str, port: int) -> None:
        self._address = (address, port)
        self._socket = socket.create_connection(self._address, timeout=SILENCE_SECONDS)

    def batch(self, requests: list[bytes]) -> bool:
        """Sends requests and reads as many answers, each a line; whether the connection held."""
        try:
            self._socket.sendall(b"".join(requests))
            missing = len(requests)
            while missing > 0:
                answers = self._socket.recv(1 << 16)
                if not answers or b"-" in answers:
                    raise OSError(f"the server said {answers[:100]!r}")
                missing -= answers.count(b"\n")
            return True
        except OSError:
            self._connect_again()
            return False

    def is_rehashing(self) -> bool:
        """Whether the server moves its keys to a larger table."""
        self._socket.sendall(request(b"INFO", b"memory"))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            received = self._socket.recv(1 << 16)
            if not received:
                sys.exit("the connection broke")
            answer += received
        return not re.search(rb"^mem_overhead_db_hashtable_rehashing:0\r", answer, re.MULTILINE)

    def _connect_again(self) -> None:
        self._socket.close()
        ends_at = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                self._socket = socket.create_connection(self._address, timeout=SILENCE_SECONDS)
                return
            except OSError:
                if time.monotonic() > ends_at:
                    raise
                time.sleep(0.05)


def request(*words: bytes) -> bytes:
    """A command in Redis's protocol."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def fill(server: Server, n_mib: int) -> None:
    """Writes every value once, and waits until Redis has found room for all keys: while it does, every write touches
    several pages more."""
    for begin in range(0, n_mib * VALUES_IN_A_MIB, FILL_BATCH):
        random_half = os.urandom(FILL_BATCH * VALUE_BYTES // 2)
        requests = []
        for number in range(FILL_BATCH):
            half = random_half[number * VALUE_BYTES // 2 : (number + 1) * VALUE_BYTES // 2]
            value = half + (b"%08d " % number * VALUE_BYTES)[: VALUE_BYTES - len(half)]
            requests.append(request(b"SET", b"fill:%d" % (begin + number), value))
        if not server.batch(requests):
            sys.exit("the connection broke")
    # One more than a table of a power of two takes: it grows now, and not under whoever comes next.
    server.batch([request(b"SET", b"fill:last", b"")])
    ends_at = time.monotonic() + REHASH_SECONDS
    while server.is_rehashing():
        if time.monotonic() > ends_at:
            sys.exit(f"the table of keys still grows after {REHASH_SECONDS:g} s")
        # Left to itself it takes ten times as long as the filling; each question takes it a step further.
        server.batch([request(b"EXISTS", b"fill:last")] * REHASH_BATCH)


def write(server: Server, n_mib: int, rate: int) -> None:
    """Writes at random until the standard input ends."""
    n_values, n_written, stalled = n_mib * VALUES_IN_A_MIB, 0, 0.0
    size = rate // BATCHES_A_SECOND
    print("ready", flush=True)
    began = next_at = time.monotonic()
    while True:
        told, _, _ = select.select([sys.stdin], [], [], max(0.0, next_at - time.monotonic()))
        if told:
            break
        patch = os.urandom(PATCH_BYTES)
        keys = random.choices(range(n_values), k=size)
        requests = [request(b"SETRANGE", b"fill:%d" % key, b"%d" % (key % (VALUE_BYTES - PATCH_BYTES)), patch) for key in keys]
        sent_at = time.monotonic()
        n_written += size if server.batch(requests) else 0
        took = time.monotonic() - sent_at
        stalled += took if took > STALL_SECONDS else 0.0
        # What a silence has cost is not made up for, what a batch has cost is.
        next_at = max(next_at + 1 / BATCHES_A_SECOND, time.monotonic() - STALL_SECONDS)
    print(json.dumps({"writes": n_written, "seconds": time.monotonic() - began - stalled}))


def main() -> None:
    """Does what it is told."""
    address, port, what, n_mib, *rate = sys.argv[1:]
    server = Server(address, int(port))
    if what == "fill":
        fill(server, int(n_mib))
    else:
        write(server, int(n_mib), int(rate[0]))


main()
