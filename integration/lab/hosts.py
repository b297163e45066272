"""One host of the lab: its first process, its daemons, and how to run something in it.

A host is a process in its own namespaces; whoever knows its id can enter. Daemons are started as children of the host's
init, so they outlive the command that started them and end with the host.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, links
from .commands import COMMAND_DEADLINE_SECONDS, LabError, run, wait_until
from .layout import CLIENT, DISK_DIR, HOST_ADDRESSES, STATE_DIR, qualified

# Mounting a root takes milliseconds; a machine busy with a build needs more.
ROOT_DEADLINE_SECONDS = 30.0
# dockerd takes a second to start, many more beside a build on two cores.
READY_DEADLINE_SECONDS = 60.0
# dockerd gives its containers 10 s to stop before it kills them.
STOP_DEADLINE_SECONDS = 30.0
LOG_TAIL_LINES = 30

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": os.environ.get("TERM", "dumb"),
}


@dataclass(frozen=True)
class Daemon:
    """A program that a host runs all the time, and the socket which shows that it is ready."""

    name: str
    command: tuple[str, ...]
    ready_socket: str


DAEMONS = {
    daemon.name: daemon
    for daemon in (
        Daemon("containerd", ("containerd",), "/run/containerd/containerd.sock"),
        Daemon("dockerd", ("dockerd", "--containerd", "/run/containerd/containerd.sock"), "/run/docker.sock"),
        Daemon("agent", ("godwit", "agent", "--config", "/etc/godwit/agent.toml"), "/run/godwit/agent.sock"),
    )
}


class Host:
    """A host by its name; it exists while its state file names a living process."""

    def __init__(self, name: str) -> None:
        if name not in HOST_ADDRESSES:
            raise LabError(f"no host {name!r}; there are {', '.join(HOST_ADDRESSES)}")
        self.name = name
        self.address = HOST_ADDRESSES[name]
        self.disk = DISK_DIR / name
        self._state_file = STATE_DIR / f"{name}.json"

    # -- its life ------------------------------------------------------------------------------------------------------

    def create(self, base: Path, flavour: str) -> None:
        """Starts the host's first process and returns when its root stands."""
        for directory in ("upper", "work", "root", "docker", "containerd", "containers", "log"):
            (self.disk / directory).mkdir(parents=True)
        STATE_DIR.mkdir(parents=True, exist_ok=True)
        cgroups.create(self.name)
        says_ready, ready = os.pipe()
        with open(self.disk / "log" / "host.log", "wb") as log:
            outer = subprocess.Popen(
                [
                    *_enter_cgroups(self.name, leaf=False),
                    # not `ip netns exec`, which hides the cgroup mounts
                    *("nsenter", f"--net={links.namespace_path(self.name)}", "--"),
                    *("unshare", "--cgroup", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child",
                      "--propagation", "private", "--"),
                    *("sh", str(Path(__file__).with_name("host-root.sh")), self.name, str(base), str(self.disk)),
                    *cgroups.mounts_of(flavour),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                # the script says it on descriptor 3
                preexec_fn=lambda: os.dup2(ready, 3, inheritable=True), close_fds=False,
            )  # fmt: skip
        os.close(ready)
        with os.fdopen(says_ready, "rb") as pipe:
            within, _, _ = select.select([pipe], [], [], ROOT_DEADLINE_SECONDS)
            if not within or pipe.readline() != b"ready\n":
                raise LabError(f"host {self.name}: its root could not be built: {self.log_tail('host')}")
        (init,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        # Only processes in leaves: see cgroups.LEAF.
        for procs in cgroups.procs_files(self.name, leaf=True):
            for pid in (str(outer.pid), init):
                procs.write_text(pid)
        self._state_file.write_text(
            json.dumps({"init": int(init), "started": _start_time(int(init)), "cgroups": flavour}) + "\n"
        )
        self._configure()

    def _configure(self) -> None:
        """Fills in what a freshly installed machine would have in /etc."""
        peers = "".join(f"{address} {host}\n" for host, address in HOST_ADDRESSES.items())
        self.write("/etc/hosts", f"127.0.0.1 localhost\n{peers}")
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/resolv.conf", "")
        # experimental: Docker's checkpoint commands
        self.write("/etc/docker/daemon.json", json.dumps({"experimental": True, "dns": ["127.0.0.1"]}) + "\n")

    def state(self) -> dict | None:
        """What was recorded at its creation, while its first process lives."""
        try:
            state = json.loads(self._state_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return state if _start_time(state["init"]) == state["started"] else None

    def init(self) -> int:
        """The machine's id of its first process."""
        state = self.state()
        if state is None:
            raise LabError(f"host {self.name} is not up; run `make lab`")
        return state["init"]

    # -- files and commands in it --------------------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """The machine's path of a file in the host."""
        return Path(f"/proc/{self.init()}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str) -> None:
        """Writes a file in the host, making its directory."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def install(self, source: Path, inside: str, mode: int) -> None:
        """Copies a file of the machine into the host, replacing one that may be running."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.new")
        shutil.copyfile(source, fresh)
        fresh.chmod(mode)
        fresh.rename(target)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command of the machine which runs `argv` in the host: in its namespaces and in its cgroups."""
        clean = ["env", "-i", *(f"{key}={value}" for key, value in ENVIRONMENT.items())]
        return [*_enter_cgroups(self.name, leaf=True), "nsenter", "-t", str(self.init()), "-a", "--", *clean, *argv]

    def run(
        self, *argv: str, stdin: bytes | None = None, check: bool = True, deadline: float = COMMAND_DEADLINE_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the host to its end."""
        shown_as = f"{self.name}: {' '.join(argv)}"
        return run(self.command(argv), stdin=stdin, check=check, deadline=deadline, shown_as=shown_as)

    # -- daemons -------------------------------------------------------------------------------------------------------

    def start_daemon(self, name: str) -> None:
        """Starts a daemon and returns when it accepts connections."""
        daemon = DAEMONS[name]
        # The shell leaves it to the host's init, and says its id in the host's numbering.
        # The variable is there as where systemd starts a daemon, though nobody listens: shims inherit it.
        script = 'cd / && NOTIFY_SOCKET=/run/lab/notify setsid "$@" >>"/var/log/lab/$0.log" 2>&1 </dev/null & echo $!'
        pid = int(self.run("sh", "-c", script, name, *daemon.command).stdout)
        self.write(f"/run/lab/{name}.json", json.dumps({"pid": pid, "started": self._start_time(pid)}))
        try:
            wait_until(
                f"{name} on {self.name} to be ready",
                lambda: _accepts(self.path(daemon.ready_socket)) or self._must_run(name),
                READY_DEADLINE_SECONDS,
            )
        except LabError as error:
            raise LabError(f"{error}\n{self.log_tail(name)}") from None

    def daemon_pid(self, name: str) -> int | None:
        """A daemon's id in the host's numbering, if it runs."""
        try:
            recorded = json.loads(self.path(f"/run/lab/{name}.json").read_text())
        except FileNotFoundError:
            return None
        running = self._start_time(recorded["pid"])
        return recorded["pid"] if running is not None and running == recorded["started"] else None

    def signal_daemon(self, name: str, number: signal.Signals) -> None:
        """Sends a signal and waits until the daemon is gone."""
        pid = self.daemon_pid(name)
        if pid is None:
            raise LabError(f"{name} does not run on {self.name}")
        self.run("kill", f"-{number.value}", str(pid))
        # Until it is reaped: while it is a zombie, threads of it may still end, and its sockets take connections.
        process = self.path(f"/proc/{pid}")
        wait_until(f"{name} on {self.name} to end", lambda: not process.exists(), STOP_DEADLINE_SECONDS)

    def restart_daemon(self, name: str) -> None:
        """Stops a daemon if it runs and starts it again."""
        if self.daemon_pid(name) is not None:
            self.signal_daemon(name, signal.SIGTERM)
        self.start_daemon(name)

    def log_path(self, name: str) -> Path:
        """The machine's path of a daemon's log; it outlives the host until `lab down`."""
        return self.disk / "log" / f"{name}.log"

    def log_size(self, name: str) -> int:
        """How long a daemon's log is by now, to read from there later."""
        path = self.log_path(name)
        return path.stat().st_size if path.exists() else 0

    def log_tail(self, name: str, n_lines: int = LOG_TAIL_LINES, *, since: int = 0) -> str:
        """The last lines of a daemon's log, of those written since it was `since` long."""
        path = self.log_path(name)
        if not path.exists():
            return f"(no log of {name} on {self.name})"
        lines = path.read_bytes()[since:].decode(errors="replace").splitlines()
        return "\n".join(lines[-n_lines:])

    def _must_run(self, name: str) -> bool:
        if self.daemon_pid(name) is None:
            raise LabError(f"{name} on {self.name} ended at its start")
        return False

    def _start_time(self, pid: int) -> int | None:
        return _start_time(pid, self.path("/proc"))


def client_command(argv: Sequence[str]) -> list[str]:
    """The command which runs a program of the machine at the clients' place: only the network is another."""
    return ["nsenter", f"--net={links.namespace_path(CLIENT)}", "--", *argv]


def _enter_cgroups(host: str, *, leaf: bool) -> list[str]:
    """The beginning of a command that joins the host's cgroups before it goes on."""
    files = cgroups.procs_files(host, leaf=leaf)
    script = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1" || exit; shift; n=$((n-1)); done; exec "$@"'
    return ["sh", "-c", script, qualified(host), str(len(files)), *map(str, files)]


def _start_time(pid: int, proc: Path = Path("/proc")) -> int | None:
    """When a process started: with its id it names one process for ever. Nothing for one that is dead."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(str(path))
        except OSError:
            return False
    return True
