"""A Redis client that writes without pause and holds what it was promised to account.

It runs as a program of its own at the clients' place: `load_client.py ADDRESS PORT [RATE]`. On one TCP connection it writes
numbered keys, each after the one before was acknowledged, at most RATE in a second, and keeps the time of each
acknowledgement. Lines on its standard input steer it; it answers each with one line of JSON:

    mark      begins a new window; answers the longest gap between two acknowledgements in the window that ends here
    finish    stops writing, reads every acknowledged key back, answers the result and ends
    forget    does the same, and removes the keys: for a server that many clients one after another write to

A connection that breaks, or is silent for too long, is replaced by a new one and the result says `"connection": "broken"`;
whether a write in flight then took place is unknown, so that it counts neither as acknowledged nor as lost.
"""

import json
import secrets
import select
import socket
import sys
import time
from array import array

# Longer than any move may take; beyond it the connection is as good as dead.
SILENCE_SECONDS = 60.0
# To a server on the same segment; a lost packet is sent again after one second.
CONNECT_SECONDS = 3.0
# How long a server may refuse connections after the first one broke.
RECONNECT_SECONDS = 30.0
RECONNECT_PAUSE_SECONDS = 0.05
READ_BACK_KEYS = 1000


class Broken(Exception):
    """The connection ended, said nothing for too long, or said something that is no answer."""


class Connection:
    """One TCP connection that speaks as much of Redis's protocol as is needed here."""

    def __init__(self, address: str, port: int) -> None:
        self.socket = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        self.socket.settimeout(SILENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self.socket.makefile("rb")

    def ask(self, *words: str) -> object:
        """Sends one command and returns its answer: text, number, list or None."""
        encoded = [word.encode() for word in words]
        request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        try:
            self.socket.sendall(request)
            return self._answer()
        except OSError as error:
            raise Broken(str(error)) from None

    def _answer(self) -> object:
        line = self._reader.readline()
        if not line.endswith(b"\r\n"):
            raise Broken("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._reader.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        raise Broken(f"unexpected answer {line!r}")

    def close(self) -> None:
        """Ends the connection."""
        self._reader.close()
        self.socket.close()


class Load:
    """The stream of writes and the account of it."""

    def __init__(self, address: str, port: int) -> None:
        self._server = (address, port)
        self._connection = Connection(address, port)
        # Keys of this run alone: another one, before or beside it, must not make up for what is lost.
        self._run = secrets.token_hex(4)
        self._next_key = 0
        self._broken: str | None = None
        self._acknowledged: list[int] = []
        self._acknowledged_at = array("d")
        self._window_begins = 0

    def write_one(self) -> None:
        """Writes the next key and records its acknowledgement."""
        key = self._next_key
        self._next_key += 1
        try:
            if self._connection.ask("SET", self._key(key), str(key)) != "OK":
                raise Broken("a write was not acknowledged by OK")
        except Broken as broken:
            self._reconnect(broken)
            return
        self._acknowledged_at.append(time.monotonic())
        self._acknowledged.append(key)

    def mark(self) -> dict:
        """Ends the present window and begins the next."""
        times = self._acknowledged_at[self._window_begins :]
        self._window_begins = max(0, len(self._acknowledged_at) - 1)
        gaps = [later - earlier for earlier, later in zip(times, times[1:])]
        longest = max(gaps, default=0.0)
        return {"acknowledged": len(self._acknowledged), "longest_gap_ms": round(longest * 1000)}

    def finish(self, *, forget: bool) -> dict:
        """Reads back every acknowledged key, over the same connection if that still stands."""
        lost = 0
        for begin in range(0, len(self._acknowledged), READ_BACK_KEYS):
            numbers = self._acknowledged[begin : begin + READ_BACK_KEYS]
            keys = [self._key(number) for number in numbers]
            try:
                values = self._connection.ask("MGET", *keys)
            except Broken as broken:
                self._reconnect(broken)
                values = self._connection.ask("MGET", *keys)
            lost += sum(value != str(number) for number, value in zip(numbers, values, strict=True))
            if forget:
                self._connection.ask("UNLINK", *keys)
        result = self.mark()
        connection = "broken" if self._broken else "kept"
        return {**result, "lost": lost, "connection": connection, "broken_by": self._broken}

    def _key(self, number: int) -> str:
        return f"k:{self._run}:{number}"

    def _reconnect(self, broken: Broken) -> None:
        self._broken = self._broken or str(broken)
        self._connection.close()
        ends_at = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                self._connection = Connection(*self._server)
                return
            except OSError as error:
                if time.monotonic() > ends_at:
                    sys.exit(f"the connection broke ({broken}), and none was made for {RECONNECT_SECONDS:.0f} s: {error}")
                time.sleep(RECONNECT_PAUSE_SECONDS)


def main() -> None:
    """Writes until told to finish."""
    load = Load(sys.argv[1], int(sys.argv[2]))
    pause = 1 / float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    next_at = time.monotonic()
    while True:
        told, _, _ = select.select([sys.stdin], [], [], max(0.0, next_at - time.monotonic()))
        if not told:
            load.write_one()
            # What a silence has cost is not made up for.
            next_at = max(next_at + pause, time.monotonic())
            continue
        line = sys.stdin.readline().strip()
        answer = load.mark() if line == "mark" else load.finish(forget=line == "forget")
        print(json.dumps(answer), flush=True)
        if line != "mark":
            return


if __name__ == "__main__":
    main()
