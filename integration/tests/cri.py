"""Kubernetes' interface to a runtime (CRI, `runtime.v1`), as far as a test needs it: one gRPC call after another.

gRPC is an HTTP/2 request with five bytes before the message and a status in the trailers. The headers that come back are
not read, because they are compressed: a call that failed is known by the message that it lacks, and why stands in
containerd's log. Each call has a connection of its own. Fields are named by their numbers in `api.proto`.
"""

import socket
import struct

from tests.ttrpc import Fields, decode, encode

# A sandbox or a container starts within a second; a busy machine needs more.
DEADLINE_SECONDS = 60.0
SERVICE = "/runtime.v1.RuntimeService/"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
STREAM = 1
# Of NamespaceMode.
NODE = 2
# Of ContainerState.
RUNNING, EXITED = 1, 2


class CriError(Exception):
    """The runtime refused a call."""


class Cri:
    """containerd's CRI plugin at a socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    def run_pod_sandbox(self, config: dict, handler: str) -> str:
        """Starts a pod's sandbox under a handler of containerd's configuration; its id."""
        return self._id("RunPodSandbox", {1: config, 2: handler})

    def create_container(self, sandbox: str, config: dict, sandbox_config: dict) -> str:
        """Makes a container in a pod; its id."""
        return self._id("CreateContainer", {1: sandbox, 2: config, 3: sandbox_config})

    def start_container(self, container: str) -> None:
        """Starts it."""
        self.call("StartContainer", {1: container})

    def stop_container(self, container: str, seconds: int) -> None:
        """Stops it: SIGTERM, and after a while SIGKILL."""
        self.call("StopContainer", {1: container, 2: seconds})

    def container_status(self, container: str) -> tuple[int, int]:
        """Its state and its exit code."""
        status = decode(self.call("ContainerStatus", {1: container})[1][-1])
        return status.get(3, [0])[-1], status.get(7, [0])[-1]

    def exec_sync(self, container: str, *argv: str) -> tuple[str, int]:
        """Runs a program in it to its end; what it printed, and its exit code."""
        answer = self.call("ExecSync", {1: container, 2: list(argv), 3: int(DEADLINE_SECONDS)})
        return answer.get(1, [b""])[-1].decode(), answer.get(3, [0])[-1]

    def call(self, method: str, request: dict) -> Fields:
        """Calls and waits for the answer."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(DEADLINE_SECONDS)
            stream.connect(self._path)
            body = encode(request)
            headers = b"".join(
                _literal(name, value)
                for name, value in (
                    (":method", "POST"), (":scheme", "http"), (":path", SERVICE + method), (":authority", "localhost"),
                    ("content-type", "application/grpc"), ("te", "trailers"),
                )
            )  # fmt: skip
            stream.sendall(
                PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(HEADERS, END_HEADERS, STREAM, headers)
                + _frame(DATA, END_STREAM, STREAM, struct.pack(">BI", 0, len(body)) + body)
            )  # fmt: skip
            answered = _answer(stream)
        if not answered:
            raise CriError(f"{method} failed; containerd's log says why")
        return decode(answered[5:])

    def _id(self, method: str, request: dict) -> str:
        return self.call(method, request)[1][-1].decode()


def _answer(stream: socket.socket) -> bytes:
    """All data of the answer, up to the end of its stream."""
    data = b""
    while True:
        length, kind, flags, stream_id = _header(_exactly(stream, 9))
        payload = _exactly(stream, length)
        if kind == SETTINGS and not flags & ACK:
            stream.sendall(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            stream.sendall(_frame(PING, ACK, 0, payload))
        elif kind == GOAWAY or (kind == RST_STREAM and stream_id == STREAM):
            return b""
        elif kind == DATA:
            data += payload
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            return data


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def _header(data: bytes) -> tuple[int, int, int, int]:
    (length,) = struct.unpack(">I", b"\0" + data[:3])
    return (length, *struct.unpack(">BBI", data[3:]))


def _literal(name: str, value: str) -> bytes:
    """A header that neither side puts into a table."""
    return b"\0" + b"".join(struct.pack("B", len(text)) + text.encode() for text in (name, value))


def _exactly(stream: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        more = stream.recv(n_bytes - len(data))
        if not more:
            raise ConnectionError("containerd has hung up")
        data += more
    return data
