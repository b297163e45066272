"""An agent that answers as it is told, on a real socket; for faults that a real one cannot be made to have."""

import json
import socketserver
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

# How long a server takes to hear that it is to stop.
POLL_SECONDS = 0.01
VERSION = {"version": "0.1.0", "protocol": [3], "host": "here", "peers": ["there"]}


class Lines(list):
    """A body that comes line by line; `None` cuts the connection there, an Event is waited for."""


class FakeAgent:
    """A server of its own for each test; `answers` maps "METHOD /path" to a status and a body.

    A function is called for its answer. `asked` is what was asked for, in its order.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.socket = str(Path(self._directory.name) / "agent.sock")
        self.answers: dict[str, object] = {"GET /v1/version": (200, VERSION)}
        self.asked: list[str] = []
        self._server: socketserver.ThreadingMixIn | None = None

    def __enter__(self) -> "FakeAgent":
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                what = f"{self.command} {self.path}"
                fake.asked.append(what)
                answer = fake.answers.get(what, (404, {"error": f"no {what} here"}))
                status, body = answer() if callable(answer) else answer
                self.send_response(status)
                self.end_headers()
                for line in body if isinstance(body, Lines) else [body]:
                    if line is None and isinstance(body, Lines):
                        return
                    if isinstance(line, threading.Event):
                        line.wait(10)
                        continue
                    self.wfile.write(json.dumps(line).encode() + b"\n")
                    self.wfile.flush()

            do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self._server = Server(self.socket, Handler)
        threading.Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._directory.cleanup()


class FakeEngine:
    """A Docker that has a container of each instance in `here`, and knows nothing else."""

    def __init__(self, *here: str) -> None:
        self.here = set(here)

    def find(self, instance_uuid: str) -> dict | None:
        """As the real one."""
        return {"Id": f"id-{instance_uuid}", "Name": f"/nova-{instance_uuid}"} if instance_uuid in self.here else None
