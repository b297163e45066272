"""containerd's wire, as far as a test needs it: protobuf without schemas, a ttrpc client, and a place for events.

Only numbers, strings and nested messages are known; a field is named by its number. Nothing is checked against a
schema, because a test must be able to send what no schema allows.
"""

import contextlib
import itertools
import socket
import struct
import threading
from dataclasses import dataclass

REQUEST, RESPONSE = 1, 2
HEADER = struct.Struct(">IIBB")  # length, stream, type, flags
# gRPC's own numbers
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip

Fields = dict[int, list]


def encode(fields: dict[int, object]) -> bytes:
    """A message. Zero and empty values are left out, as proto3 does; a list is a repeated field, a dict a message."""
    return b"".join(
        _field(number, value) for number, values in fields.items() for value in _repeated(values) if value is not None
    )


def decode(data: bytes) -> Fields:
    """A message's fields, each with all its values in order: numbers, or bytes."""
    fields: Fields = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = _varint(data, position)
        elif kind == 2:
            length, position = _varint(data, position)
            value, position = data[position : position + length], position + length
        else:
            length = {1: 8, 5: 4}[kind]
            value, position = data[position : position + length], position + length
        fields.setdefault(number, []).append(value)
    return fields


def number(fields: Fields, at: int) -> int:
    """A number of a message, signed."""
    value = fields.get(at, [0])[-1]
    return value - (1 << 64) if value >> 63 else value


def text(fields: Fields, at: int) -> str:
    """A text of a message."""
    return fields.get(at, [b""])[-1].decode()


def message(fields: Fields, at: int) -> Fields | None:
    """A message within a message, if it is there."""
    return decode(fields[at][-1]) if at in fields else None


def any_of(type_url: str, value: bytes) -> dict[int, object]:
    """A `google.protobuf.Any`."""
    return {1: type_url, 2: value}


def _repeated(values: object) -> list:
    return values if isinstance(values, list) else [values] if values not in (0, "", b"", False, {}) else []


def _field(number: int, value: object) -> bytes:
    if isinstance(value, int):
        return _to_varint(number << 3) + _to_varint(value & (1 << 64) - 1)
    data = encode(value) if isinstance(value, dict) else value.encode() if isinstance(value, str) else value
    return _to_varint(number << 3 | 2) + _to_varint(len(data)) + data


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


@dataclass(frozen=True)
class Answer:
    """What came back for a call: gRPC's code by name, the error's words, and the payload of a success."""

    code: str
    words: str
    payload: Fields


class Connection:
    """One ttrpc connection. Calls go one at a time; one that waits for ever needs a connection of its own."""

    def __init__(self, path: str, deadline: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(deadline)
        self._socket.connect(path)
        self._streams = itertools.count(1, 2)

    def call(self, service: str, method: str, request: bytes) -> Answer:
        """Calls and waits for the answer."""
        self.begin(service, method, request)
        return self.answer()

    def begin(self, service: str, method: str, request: bytes) -> None:
        """Calls; the answer is to be taken later."""
        body = encode({1: service, 2: method, 3: request})
        self._socket.sendall(HEADER.pack(len(body), next(self._streams), REQUEST, 0) + body)

    def answer(self) -> Answer:
        """The next answer."""
        kind, _, body = receive(self._socket)
        if kind != RESPONSE:
            raise AssertionError(f"a frame of type {kind} is no answer")
        fields = decode(body)
        status = message(fields, 1) or {}
        payload = fields.get(2, [b""])[-1]
        return Answer(CODES[number(status, 1)], text(status, 2), decode(payload))

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()


def receive(stream: socket.socket) -> tuple[int, int, bytes]:
    """One frame: its type, its stream and its body."""
    length, stream_id, kind, _ = HEADER.unpack(_exactly(stream, HEADER.size))
    return kind, stream_id, _exactly(stream, length)


def _exactly(stream: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        more = stream.recv(n_bytes - len(data))
        if not more:
            raise ConnectionError("the other side has hung up")
        data += more
    return data


class EventSink:
    """Takes the events of shims in containerd's place, and keeps them in their order."""

    def __init__(self, path: str) -> None:
        self.events: list[tuple[str, Fields]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more."""
        # Closing alone does not end the other thread's accept, which might then take a connection from the next sink,
        # whose listener has got the same number.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(stream,), daemon=True).start()

    def _take(self, stream: socket.socket) -> None:
        # A shim that ends hangs up, which is no news.
        with stream, contextlib.suppress(OSError):
            while True:
                _, stream_id, body = receive(stream)
                envelope = decode(message(decode(body), 3)[1][-1])
                event = message(envelope, 4)
                self.events.append((text(envelope, 3), decode(event.get(2, [b""])[-1])))
                answer = encode({2: b""})
                stream.sendall(HEADER.pack(len(answer), stream_id, RESPONSE, 0) + answer)
