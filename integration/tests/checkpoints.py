"""What the checkpoint tests share: a server that shows what survives, connections to it, and traces that must not be left.

The server is one Python process. It answers each HTTP request, on connections that stay open, with the number of requests
so far: a number that lives in its memory only. It also writes a growing number to its standard output. On a host whose
CRIU cannot dump network sockets it listens at a file of its container.
"""

import ctypes
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lab import links
from lab.commands import wait_until
from lab.hosts import Host
from tests.capabilities import why_no_sockets
from tests.support import SOON_SECONDS, EngineTest

# An answer takes milliseconds; a packet lost while an address was away is sent again within seconds.
ANSWER_SECONDS = 10.0
CLONE_NEWNET = 0x40000000
SERVER_FILE = "/server.sock"

SERVER = r"""
import os, select, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if file := os.environ.get("SERVER_FILE"):
    if os.path.exists(file):
        os.unlink(file)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(file)
    listener.listen()
else:
    listener = socket.create_server(("", 80))
connections, n_served, n_ticks, tick_at = [], 0, 0, 0.0
held = []
while True:
    ready, _, _ = select.select([listener, *connections], [], [], 0.05)
    if time.monotonic() >= tick_at:
        n_ticks, tick_at = n_ticks + 1, time.monotonic() + 0.05
        print(n_ticks, flush=True)
    for one in ready:
        if one is listener:
            connections.append(one.accept()[0])
            continue
        try:
            request = one.recv(4096)
        except OSError:
            request = b""
        if not request:
            connections.remove(one)
            one.close()
            continue
        n_served += 1
        if b" /hold " in request:  # takes a descriptor that somebody outside passes
            with socket.socket(socket.AF_UNIX) as giver:
                giver.connect("/shared/giver.sock")
                held = socket.recv_fds(giver, 16, 1)[1]
        if b" /drop " in request:
            [os.close(descriptor) for descriptor in held]
        body = str(n_served).encode()
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        if file:
            connections.remove(one)
            one.close()
"""


class Link:
    """One TCP connection from a place of the lab to a server; used as a context."""

    def __init__(self, place: str, address: str, port: int = 80) -> None:
        # A thread may live in another network namespace; its socket stays there.
        with ThreadPoolExecutor(max_workers=1) as thread:
            self._socket = thread.submit(connect, place, address, port).result()

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, path: str = "/") -> int:
        """Sends one request on this very connection; how many the server has answered."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b""
        while not re.search(rb"\r\n\r\n\d+$", answer):
            read = self._socket.recv(4096)
            if not read:
                raise ConnectionResetError("the server closed the connection")
            answer += read
        return int(answer.rpartition(b"\r\n")[2])


class LocalLink(Link):
    """Requests to a server at a file of its container, each on a connection of its own: CRIU dumps none to the outside."""

    def __init__(self, host: Host, container: str) -> None:
        self._host, self._container = host, container
        self._find()
        self._socket.shutdown(socket.SHUT_WR)
        self._end()

    def ask(self, path: str = "/") -> int:
        """Sends one request; how many the server has answered."""
        if not self._connects():
            self._find()
        answer = super().ask(path)
        self._end()
        return answer

    def _find(self) -> None:
        """Connects to the server's process, which is another after each start."""
        pid = self._host.run("docker", "inspect", "--format", "{{.State.Pid}}", self._container).stdout.strip()
        self._path = str(self._host.path(f"/proc/{pid}/root{SERVER_FILE}"))
        wait_until(f"{self._container} to listen", self._connects, SOON_SECONDS)

    def _connects(self) -> bool:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.connect(self._path)
        except OSError:
            self._socket.close()
            return False
        return True

    def _end(self) -> None:
        """Returns when the server holds the connection no more."""
        while self._socket.recv(4096):
            pass
        self._socket.close()


def connect(place: str, address: str, port: int) -> socket.socket:
    """A TCP connection from a place of the lab. The calling thread is in that place's network from then on."""
    namespace = os.open(links.namespace_path(place), os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network of {place}")
    finally:
        os.close(namespace)
    return socket.create_connection((address, port), timeout=ANSWER_SECONDS)


class Pause:
    """A CRIU that stops at an action of its own choice, by an action script of the container's, until it may go on."""

    OPTIONS = ("--annotation", "org.criu.config=/run/pause/criu.conf")
    SCRIPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = "$(cat /run/pause/at 2>/dev/null)" ] || exit 0
: >/run/pause/there
while [ -e /run/pause/at ]; do sleep 0.02; done
"""

    def __init__(self, host: Host) -> None:
        self._host = host
        host.write("/run/pause/criu.conf", "action-script /run/pause/script\n")
        host.write("/run/pause/script", self.SCRIPT)
        host.path("/run/pause/script").chmod(0o755)

    def at(self, action: str) -> None:
        """The next CRIU stops at this action."""
        self._host.path("/run/pause/there").unlink(missing_ok=True)
        self._host.write("/run/pause/at", f"{action}\n")

    def reached(self) -> bool:
        """Whether it has stopped."""
        return self._host.path("/run/pause/there").exists()

    def over(self) -> None:
        """It goes on."""
        self._host.path("/run/pause/at").unlink(missing_ok=True)

    def remove(self) -> None:
        """For a test's end."""
        self._host.run("rm", "-rf", "/run/pause")


class CheckpointTest(EngineTest):
    """A test of checkpoints on host ha."""

    def pause(self) -> Pause:
        """A way to stop CRIU in containers that are started with `Pause.OPTIONS`."""
        pause = Pause(self.ha)
        self.addCleanup(pause.remove)
        return pause

    def in_background(self, work: Callable[[], object]) -> Future:
        """Does something beside the test, which waits for its end."""
        thread = ThreadPoolExecutor(max_workers=1)
        self.addCleanup(thread.shutdown, wait=False)  # what it waits for may be lifted by a cleanup that comes later
        return thread.submit(work)

    def serve(self, *options: str, command: tuple[str, ...] = ("python3", "-c", SERVER)) -> str:
        """Starts the server's container."""
        place = ("--env", f"SERVER_FILE={SERVER_FILE}") if why_no_sockets(self.ha) else ()
        return self.start("python:3", *command, options=(*place, *options))

    def talk(self, name: str) -> Link:
        """A way to the server in a container, by its network where a dump allows that; it ends with the test."""
        if not why_no_sockets(self.ha):
            return self.link("ha", self.address(name))
        link = LocalLink(self.ha, name)
        self.addCleanup(link.__exit__)
        return link

    def link(self, place: str, address: str, port: int = 80, *, dumped: bool = True) -> Link:
        """A connection to a server that comes up or is up; it ends with the test, which is skipped where it cannot be dumped."""
        if dumped:
            self.needs_sockets()
        links_made: list[Link] = []

        def connect() -> bool:
            try:
                links_made.append(Link(place, address, port))
            except OSError:
                return False
            return True

        wait_until(f"a server at {address}:{port}", connect, SOON_SECONDS)
        (made,) = links_made
        self.addCleanup(made.__exit__)
        return made

    def import_for_ctr(self) -> None:
        """Gives ctr an image. Skips the test where ctr cannot run any container."""
        controllers = self.ha.run("cat", "/sys/fs/cgroup/cgroup.controllers", check=False).stdout
        if self.ha.state()["cgroups"] == "v2" and "cpu" not in controllers:
            self.skipTest("ctr asks for a share of the cpu, and this machine's cgroup v2 has no cpu controller")
        self.ha.run("sh", "-c", "docker save busybox:latest | ctr images import -")

    def address(self, name: str) -> str:
        """The container's own address."""
        return self.inspect(name, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    def ticks(self, name: str) -> list[int]:
        """What the server has written so far."""
        return [int(line) for line in self.logs(name).split()]

    def status(self, name: str) -> str:
        """Docker's word for the container's state."""
        return self.inspect(name, "{{.State.Status}}")

    def checkpoint(self, name: str, checkpoint: str = "c1") -> None:
        """`docker checkpoint create`, which must succeed."""
        done = self.past_leftovers("checkpoint", "create", name, checkpoint)
        self.assertEqual(0, done.returncode, done.stderr)

    def failed_checkpoint(self, name: str) -> str:
        """`docker checkpoint create`, which must fail; its error."""
        done = self.docker("checkpoint", "create", name, "bad", check=False)
        self.assertNotEqual(0, done.returncode, "the checkpoint succeeded")
        return done.stderr

    def restore(self, name: str, checkpoint: str = "c1", check: bool = True) -> subprocess.CompletedProcess[str]:
        """`docker start --checkpoint`."""
        done = self.past_leftovers("start", "--checkpoint", checkpoint, name)
        if check:
            self.assertEqual(0, done.returncode, done.stderr)
        return done

    def past_leftovers(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Calls Docker, and again while what containerd has not yet cleared away of another checkpoint is in the way."""
        ends_at = time.monotonic() + SOON_SECONDS
        while True:
            done = self.docker(*argv, check=False)
            if done.returncode == 0 or "already exists" not in done.stderr or time.monotonic() > ends_at:
                return done

    def assert_runs_on(self, name: str, link: Link) -> None:
        """The container was not harmed: it runs, answers on its connection, and nothing of the dump is left."""
        self.assertEqual("running", self.status(name))
        before = link.ask()
        self.assertEqual(before + 1, link.ask())
        ticks = len(self.ticks(name))
        self.soon("its log to go on", lambda: len(self.ticks(name)) > ticks)
        self.assert_no_trace(name)

    def assert_no_trace(self, name: str) -> None:
        """A running container is as after any start: not frozen, its network open, no helper left beside it."""
        pid = self.inspect(name, "{{.State.Pid}}")
        rules = self.ha.run("sh", "-c", f"nsenter -t {pid} -n nft list ruleset; nsenter -t {pid} -n iptables-save").stdout
        self.assertNotRegex(rules, r"godwit|CRIU|c114")
        # The thawer ends a moment after CRIU.
        self.soon("the dump's helpers to end", lambda: not self.helpers())
        self.assertEqual("thawed", self.freezer(pid))
        self.assertEqual(1, len(self.tasks()), "control directories of other containers are left")

    def helpers(self) -> list[str]:
        """Processes of a dump or restore under way on ha."""
        lines = self.ha.run("ps", "ax", "-o", "args").stdout.splitlines()
        return [line for line in lines if re.search(r"/run/godwit/tasks/\w+/(hold|gate|thaw)|^\S*criu |runc .*(restore|checkpoint) ", line)]

    def tasks(self) -> list[str]:
        """The control directories on ha."""
        return self.ha.run("ls", "/run/godwit/tasks").stdout.split()

    def freezer(self, pid: str) -> str:
        """Whether the cgroup of a process of ha is frozen."""
        v1 = f"cat /sys/fs/cgroup/freezer$(sed -n 's/^[0-9]*:freezer://p' /proc/{pid}/cgroup)/freezer.state"
        v2 = f"cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)/cgroup.freeze"
        says = self.ha.run("sh", "-c", v2 if self.ha.state()["cgroups"] == "v2" else v1).stdout.strip()
        return {"THAWED": "thawed", "0": "thawed"}.get(says, says)
