"""The services' HTTP APIs, asked over sockets made in the wire's network namespace; the caller stays where it is."""

import ctypes
import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab import links
from lab.commands import LabError
from lab.layout import WIRE, WIRE_ADDRESS

from .configuration import API_PORT, GLANCE_PORT, PLACEMENT_PORT

# Of the slowest call: Nova asks its computes while we wait.
ANSWER_DEADLINE_SECONDS = 120.0
# Nova's longest answer to something that we wait for; a machine busy with a build needs most of it.
STATE_DEADLINE_SECONDS = 180.0
POLL_SECONDS = 0.2
MICROVERSION = "compute 2.95"
CLONE_NEWNET = 0x40000000


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread in a network namespace: sockets that are made meanwhile stay in it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if libc.setns(descriptor, CLONE_NEWNET) != 0:
                raise LabError(f"network namespace {path}: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(descriptor)

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(namespace)
        yield
    finally:
        enter(f"/proc/self/fd/{home}")
        os.close(home)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        with _inside(str(links.namespace_path(WIRE))):
            self.sock = socket.create_connection((self.host, self.port), self.timeout)


class Refused(LabError):
    """A service has answered with an error."""


def ask(port: int, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> object:
    """One request; JSON both ways, or the bytes that are given."""
    connection = _Connection(WIRE_ADDRESS, port, timeout=ANSWER_DEADLINE_SECONDS)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    told = {"X-Auth-Token": "admin", "Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
    try:
        connection.request(method, path, content, told)
        answer = connection.getresponse()
        text = answer.read()
    except OSError as error:
        raise LabError(f"{method} {path}: {error}") from None
    finally:
        connection.close()
    if answer.status >= 400:
        raise Refused(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:500]}")
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def nova(method: str, path: str, body: object = None) -> dict:
    """Asks nova-api."""
    return ask(API_PORT, method, f"/v2.1{path}", body, {"OpenStack-API-Version": MICROVERSION})


def act(server: str, action: str, arguments: object = None) -> dict:
    """An action on a server."""
    return nova("POST", f"/servers/{server}/action", {action: arguments})


def placement(path: str) -> dict:
    """Asks Placement."""
    return ask(PLACEMENT_PORT, "GET", path, headers={"OpenStack-API-Version": "placement 1.39"})


def glance(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> dict:
    """Asks Glance."""
    return ask(GLANCE_PORT, method, f"/v2{path}", body, headers)


def until(what: str, look: Callable[[], object], deadline: float = STATE_DEADLINE_SECONDS):
    """Asks again and again until there is an answer; returns it."""
    ends_at = time.monotonic() + deadline
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > ends_at:
            raise LabError(f"{what}: not within {deadline:.0f} s")
        time.sleep(POLL_SECONDS)


def answers(look: Callable[[], object]) -> object:
    """What `look` finds, or nothing while the service does not answer yet."""
    try:
        return look()
    except LabError:
        return None
