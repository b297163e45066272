"""What the tests that talk to containerd itself share: containers by `ctr`, their shims, and the events it tells."""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.commands import wait_until
from lab.hosts import Host
from tests.support import SOON_SECONDS, EngineTest

IMAGE = "docker.io/library/busybox:latest"
TASKS = "/run/containerd/io.containerd.runtime.v2.task"


class ContainerdTest(EngineTest):
    """A test that uses containerd without Docker; everything happens on ha."""

    def setUp(self) -> None:
        super().setUp()
        if self.ha.state()["cgroups"] == "v2" and "cpu" not in self.ha.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout:
            self.skipTest("ctr asks for a share of the cpu, and this machine's cgroup v2 has no cpu controller")
        if IMAGE not in self.ha.run("ctr", "images", "ls", "-q").stdout.split():
            self.ha.run("sh", "-c", "docker save busybox:latest | ctr images import -")

    def ctr(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs containerd's command line."""
        return self.ha.run("ctr", *argv, check=check)

    def new_task_name(self) -> str:
        """A fresh name; the task and its container go away with the test."""
        name = self.new_name()
        self.addCleanup(self.ctr, "container", "rm", name, check=False)
        self.addCleanup(self.ctr, "task", "rm", "--force", name, check=False)
        return name

    def run_detached(self, *argv: str, options: tuple[str, ...] = ("--null-io",)) -> str:
        """Starts a container of the runtime under test."""
        name = self.new_task_name()
        self.ctr("run", "--detach", "--runtime", self.runtime, *options, IMAGE, name, *argv)
        return name

    def run_to_end(self, *argv: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Runs a container to its end and removes it."""
        name = self.new_task_name()
        return self.ctr("run", "--rm", "--runtime", self.runtime, *options, IMAGE, name, *argv, check=False)

    def task_status(self, name: str) -> str:
        """Running, stopped... as containerd says it; none if there is no task."""
        lines = self.ctr("task", "ls").stdout.splitlines()
        return next((line.split()[2] for line in lines if line.split()[0] == name), "none")

    def new_directory(self) -> str:
        """A directory of the host that goes away with the test."""
        directory = self.ha.run("mktemp", "-d", "/run/test.XXXXXX").stdout.strip()
        self.addCleanup(self.ha.run, "rm", "-rf", directory)
        return directory

    def read(self, path: str) -> str:
        """A file of the host; nothing if it is not there."""
        try:
            return self.ha.path(path).read_text()
        except FileNotFoundError:
            return ""


def shim_pid(host: Host, container_id: str) -> int:
    """The shim that serves a container, in the host's numbering."""
    listed = host.run("ps", "ax", "-o", "pid=,args=").stdout
    for line in listed.splitlines():
        pid, _, argv = line.strip().partition(" ")
        if "containerd-shim" in argv and f"-id {container_id}" in argv:
            return int(pid)
    raise AssertionError(f"no shim serves {container_id}:\n{listed}")


def memory_kb(host: Host, pid: int, what: str) -> int:
    """A figure of a process's memory: VmRSS now, VmHWM at most."""
    status = host.path(f"/proc/{pid}/status").read_text()
    (found,) = re.findall(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found)


def start_client(host: Host, *argv: str, **streams: object) -> subprocess.Popen:
    """Starts a command of a host that [`kill_client`] can end."""
    return subprocess.Popen(host.command(argv), start_new_session=True, **streams)


def kill_client(process: subprocess.Popen) -> None:
    """Kills a command of a host: not only what enters the host, but what runs there, which may hold pipes of ours."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class Event:
    """What containerd told its listeners."""

    namespace: str
    topic: str
    body: dict

    def __str__(self) -> str:
        return self.topic.removeprefix("/tasks/")

    @property
    def container(self) -> str:
        """Whom it is about."""
        return self.body.get("container_id", "")


class Listener:
    """Listens to containerd's events as `ctr events` prints them; used as a context."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._rest = b""
        self.events: list[Event] = []

    def __enter__(self) -> "Listener":
        self._process = start_client(self._host, "ctr", "events", stdout=subprocess.PIPE)
        os.set_blocking(self._process.stdout.fileno(), False)
        # It does not say when it listens: something that it must hear does.
        ends_at = time.monotonic() + SOON_SECONDS
        number = 0
        while not any(event.topic == "/namespaces/create" for event in self.events):
            if time.monotonic() > ends_at:
                raise AssertionError("ctr events hears nothing")
            number += 1
            name = f"listen{self._process.pid}x{number}"
            self._host.run("ctr", "namespaces", "create", name)
            self._host.run("ctr", "namespaces", "rm", name)
            self._take(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        kill_client(self._process)
        self._process.stdout.close()

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = SOON_SECONDS) -> None:
        """Takes events in until the condition holds."""

        def holds() -> bool:
            self._take(0.05)
            return condition()

        wait_until(f"{what} (heard: {[str(event) for event in self.events]})", holds, seconds)

    def settle(self, seconds: float) -> None:
        """Takes in whatever comes within a while."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self._take(0.05)

    def of(self, container: str) -> list[Event]:
        """What was told of the tasks of one container, in order."""
        return [event for event in self.events if event.container == container and event.topic.startswith("/tasks/")]

    def _take(self, seconds: float) -> None:
        pipe = self._process.stdout
        within, _, _ = select.select([pipe], [], [], seconds)
        if within:
            self._rest += os.read(pipe.fileno(), 1 << 16)
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            # time (four words), namespace, topic, body
            match = re.match(r"\S+ \S+ \S+ \S+ (\S*) (/\S+) (\{.*)$", line.decode())
            if match:
                self.events.append(Event(match[1], match[2], json.loads(match[3])))


def stdout_fifo(host: Host, shim: int) -> Path:
    """The fifo which a shim writes its container's stdout to, as a path of the machine."""
    for entry in host.path(f"/proc/{shim}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.endswith("-stdout"):
            return host.path(target)
    raise AssertionError(f"shim {shim} has no fifo for stdout open")
