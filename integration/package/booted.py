"""A root that systemd runs in, with containerd, Docker and what else the base enables: a host as its owner has it.

It is a set of namespaces, as the lab's hosts are, with cgroups of its own below the machine's. Commands run in it as from a
shell of root. It ends with `end`, or with the process that made it.
"""

import os
import signal
import subprocess
from pathlib import Path

from lab.commands import LabError, run, wait_until

from .root import Root

# Three seconds on an idle machine; Docker makes its network meanwhile.
BOOT_DEADLINE_SECONDS = 120.0
END_DEADLINE_SECONDS = 30.0
COMMAND_DEADLINE_SECONDS = 120.0
# The base's own services, which would only take time.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer", "memcached.service", "nginx.service",
          "postgresql.service", "prometheus-pushgateway.service", "redis-server.service")  # fmt: skip
ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")


class Booted:
    """A running host over a root."""

    def __init__(self, root: Root, name: str) -> None:
        self.name = name
        self._cgroup = _unified() / f"godwit-package-{name}"
        for unit in MASKED:
            root.run("ln", "-sf", "/dev/null", f"/etc/systemd/system/{unit}")
        self._cgroup.mkdir()
        self._outer = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self._cgroup),
             "unshare", "--cgroup", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child", "--propagation", "private",
             "sh", str(Path(__file__).with_name("boot.sh")), str(root.base), str(root.disk), name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._root = root

    def init(self) -> int:
        """The machine's id of its first process."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        if len(children) != 1:
            raise LabError(f"{self.name} does not run")
        return int(children[0])

    def wait(self) -> None:
        """Returns when systemd has started what it starts."""
        wait_until(f"{self.name} to boot", self._is_up, BOOT_DEADLINE_SECONDS)

    def _is_up(self) -> bool:
        if self._outer.poll() is not None:
            raise LabError(f"{self.name} ended at its boot ({self._outer.returncode})")
        try:
            return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")
        except LabError:
            return False

    def run(
        self, *argv: str, stdin: bytes | None = None, check: bool = True, deadline: float = COMMAND_DEADLINE_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, in root's home."""
        entered = ["nsenter", "-t", str(self.init()), "-a", "--", "env", "-i", "--chdir=/root", *ENVIRONMENT, *argv]
        return run(entered, stdin=stdin, check=check, deadline=deadline, shown_as=f"{self.name}: {' '.join(argv)}")

    def path(self, inside: str) -> Path:
        """The machine's path of a file in it."""
        return Path(f"/proc/{self.init()}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str) -> None:
        """Writes a file in it, in a directory that is there."""
        self.path(inside).write_text(text)

    def sh(self, script: str) -> str:
        """Runs a shell script in it, and returns what it printed."""
        return self.run("sh", "-euc", script).stdout

    def end(self) -> None:
        """Ends every process in it, and removes its cgroups."""
        os.killpg(self._outer.pid, signal.SIGKILL)  # the first process of its namespace dies with it, and all others with that
        self._outer.wait(END_DEADLINE_SECONDS)
        wait_until(f"the cgroups of {self.name} to be empty", self._is_empty, END_DEADLINE_SECONDS)
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            os.rmdir(directory)

    def _is_empty(self) -> bool:
        return "populated 0" in (self._cgroup / "cgroup.events").read_text()


def join(one: Booted, other: Booted, prefix: int, addresses: dict[str, str]) -> None:
    """Lays a wire between two hosts, and gives each its address."""
    run(["ip", "link", "add", "eth0", "netns", str(one.init()), "type", "veth", "peer", "name", "eth0", "netns", str(other.init())])
    for host in (one, other):
        host.sh(f"ip link set lo up; ip addr add {addresses[host.name]}/{prefix} dev eth0; ip link set eth0 up")


def _unified() -> Path:
    """Where cgroups of version 2 are mounted on this machine."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise LabError("no cgroups of version 2 are mounted on this machine; systemd needs them")
