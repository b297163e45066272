"""What the tests of real programs say to them: just enough of each protocol, on one connection that stays open.

The state of a connection is part of what a checkpoint must keep, so no client here connects again by itself.
"""

import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.checkpoints import connect


class Wire:
    """One TCP connection to a program, with lines and counted bytes."""

    def __init__(self, place: str, address: str, port: int) -> None:
        # Its thread may stay in another network namespace; the socket does.
        with ThreadPoolExecutor(max_workers=1) as thread:
            self.socket = thread.submit(connect, place, address, port).result()
        self._file = self.socket.makefile("rb")

    def close(self) -> None:
        """Ends the connection."""
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line without its end."""
        read = self._file.readline()
        if not read.endswith(b"\n"):
            raise ConnectionResetError("the program closed the connection")
        return read.rstrip(b"\r\n")

    def exactly(self, n_bytes: int) -> bytes:
        """The next `n_bytes`."""
        read = self._file.read(n_bytes)
        if len(read) != n_bytes:
            raise ConnectionResetError("the program closed the connection")
        return read

    def ask(self, line: str) -> str:
        """One line there, one line back."""
        self.send(line.encode() + b"\r\n")
        return self.line().decode()


class Redis(Wire):
    """RESP, version 2."""

    def ask(self, *words: str) -> object:
        """One command and its answer."""
        self.tell(*words)
        return self.answer()

    def tell(self, *words: str) -> None:
        """One command, whose answer comes later."""
        parts = [f"*{len(words)}"]
        for word in words:
            parts += [f"${len(word.encode())}", word]
        self.send("\r\n".join([*parts, ""]).encode())

    def answer(self) -> object:
        """The next answer: text, a number, a list or nothing; an error is raised."""
        head = self.line().decode()
        kind, rest = head[0], head[1:]
        if kind == "-":
            raise ValueError(rest)
        if kind == ":":
            return int(rest)
        if kind == "$":
            return None if rest == "-1" else self.exactly(int(rest) + 2)[:-2].decode()
        if kind == "*":
            return [self.answer() for _ in range(int(rest))]
        return rest


class Http(Wire):
    """HTTP/1.1, kept alive."""

    def get(self, path: str = "/", host: str = "x") -> tuple[int, str]:
        """One request on this very connection: status and body."""
        self.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return self.response()

    def put(self, path: str, body: str) -> tuple[int, str]:
        """Gives it something."""
        self.send(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        return self.response()

    def response(self) -> tuple[int, str]:
        """The answer to a request that was sent."""
        status = int(self.line().split()[1])
        headers = {}
        while line := self.line().decode():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while n_bytes := int(self.line(), 16):
                body += self.exactly(n_bytes)
                self.line()
            self.line()
        else:
            body = self.exactly(int(headers.get("content-length", "0")))
        return status, body.decode()


class Postgres(Wire):
    """PostgreSQL's protocol, version 3: plain queries of a user who needs no password."""

    def __init__(self, place: str, address: str, port: int = 5432) -> None:
        super().__init__(place, address, port)
        words = b"user\0postgres\0database\0postgres\0\0"
        self.send(struct.pack("!II", len(words) + 8, 196608) + words)
        self.answer()

    def ask(self, query: str) -> list[str]:
        """Runs it; the first column of each row."""
        self.tell(query)
        return self.answer()

    def tell(self, query: str) -> None:
        """Runs it, and its answer comes later."""
        words = query.encode() + b"\0"
        self.send(b"Q" + struct.pack("!I", len(words) + 4) + words)

    def answer(self) -> list[str]:
        """The first column of each row of the answer to what was told; an error is raised."""
        rows: list[str] = []
        error = ""
        while True:
            kind, n_bytes = struct.unpack("!cI", self.exactly(5))
            body = self.exactly(n_bytes - 4)
            if kind == b"D":
                (length,) = struct.unpack("!i", body[2:6])
                rows.append(body[6 : 6 + length].decode() if length >= 0 else "")
            elif kind == b"E":
                error = body.replace(b"\0", b" ").decode()
                if error.startswith("SFATAL"):
                    raise ConnectionResetError(error)
            elif kind == b"Z":
                if error:
                    raise ValueError(error)
                return rows


class Memcached(Wire):
    """memcached's text protocol."""

    def set(self, key: str, value: str, seconds: int = 0) -> str:
        """Stores a value, for ever or for some seconds."""
        self.send(f"set {key} 0 {seconds} {len(value)}\r\n{value}\r\n".encode())
        return self.line().decode()

    def get(self, key: str) -> str | None:
        """A value that is there."""
        self.send(f"get {key}\r\n".encode())
        head = self.line().decode().split()
        if head == ["END"]:
            return None
        value = self.exactly(int(head[3]) + 2)[:-2].decode()
        self.line()
        return value

    def stats(self) -> dict[str, str]:
        """What it counts."""
        self.send(b"stats\r\n")
        found = {}
        while (line := self.line().decode()) != "END":
            _, name, value = line.split(maxsplit=2)
            found[name] = value
        return found


def until_connected(make: Callable[[], Wire]) -> Wire | None:
    """A connection, or nothing while the program does not listen yet."""
    try:
        return make()
    except (OSError, ValueError):
        return None
