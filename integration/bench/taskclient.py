"""A client of containerd's task API, as small as the bench needs: unary calls over a shim's own socket.

It writes protobuf by hand (strings and nested messages) and reads only whether a call succeeded. What an answer says
is not looked at: the tests do that.
"""

import socket
import struct
from pathlib import Path

REQUEST, RESPONSE = 1, 2
HEADER = struct.Struct(">IIBB")  # length, stream, type, flags
# A shim answers in milliseconds, runC within a second; longer means that it hangs.
ANSWER_DEADLINE_SECONDS = 60.0


class CallFailed(Exception):
    """The shim said no; the text is its own."""


class TaskClient:
    """One connection to one shim; used as a context."""

    def __init__(self, path: Path, version: int) -> None:
        self._service = f"containerd.task.v{version}.Task"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_DEADLINE_SECONDS)
        self._socket.connect(str(path))
        self._stream = 1

    def __enter__(self) -> "TaskClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, payload: bytes) -> bytes:
        """Makes a call and returns the answer, still packed."""
        request = text(1, self._service) + text(2, method) + packed(3, payload)
        self._socket.sendall(HEADER.pack(len(request), self._stream, REQUEST, 0) + request)
        length, stream, kind, _ = HEADER.unpack(self._read(HEADER.size))
        answer = self._read(length)
        if (stream, kind) != (self._stream, RESPONSE):
            raise CallFailed(f"{method}: an answer of type {kind} on stream {stream} to a call on {self._stream}")
        self._stream += 2
        fields = dict(parse(answer))
        status = dict(parse(fields.get(1, b"")))
        if status.get(1, 0) != 0:
            raise CallFailed(f"{method}: {status.get(2, b'').decode(errors='replace')}")
        return fields.get(2, b"")

    def _read(self, length: int) -> bytes:
        content = b""
        while len(content) < length:
            part = self._socket.recv(length - len(content))
            if not part:
                raise CallFailed("the shim hung up")
            content += part
        return content


def text(field: int, value: str) -> bytes:
    """A string field; absent if empty."""
    return packed(field, value.encode()) if value else b""


def packed(field: int, value: bytes) -> bytes:
    """A field of bytes or of a message."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def any_of(type_url: str, value: bytes) -> bytes:
    """A google.protobuf.Any."""
    return text(1, type_url) + packed(2, value)


def parse(message: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a message in their order: numbers, and everything else as bytes."""
    fields, at = [], 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag & 7 == 0:
            value, at = _read_varint(message, at)
        elif tag & 7 == 2:
            length, at = _read_varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise CallFailed(f"an answer with a field of wire type {tag & 7}")
        fields.append((tag >> 3, value))
    return fields


def _varint(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            return value, at
