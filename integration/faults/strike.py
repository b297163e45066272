"""The faults, and how each is lifted.

A fault strikes at once: whom it kills is known beforehand, since entering a host takes longer than some phases do. Processes
are told by the host's namespace and cgroups, never by a name alone. It refuses to fill memory: a full place is made by
shrinking it.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups, links
from lab.commands import LabError, run
from lab.hosts import Host
from lab.layout import qualified

# A process may be about to start: what a fault waits for somebody to kill, at most.
LOOK_SECONDS = 0.5
RESIZE_ATTEMPTS = 20
PAGER_KILLED = "pager killed"
# Whom a fault looks for when it strikes, by the name the kernel knows.
SOUGHT = {"CRIU killed": "criu", PAGER_KILLED: "pager"}


@dataclass(frozen=True)
class Fault:
    """One way to strike: what, and on which side of the move."""

    what: str
    side: str

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.what} ({self.side})"


FAULTS = (
    Fault("agent killed", "source"),
    Fault("agent killed", "destination"),
    Fault("CRIU killed", "source"),
    Fault("CRIU killed", "destination"),
    Fault(PAGER_KILLED, "destination"),
    Fault("link cut", "destination"),
    Fault("/run full", "destination"),
)


class Strike:
    """A fault on a host: `strike` it, later `lift` it. Lifting may be repeated."""

    def __init__(self, fault: Fault, host: Host) -> None:
        self._fault = fault
        self._host = host
        self._agent = machine_pid(host, host.daemon_pid("agent")) if fault.what == "agent killed" else 0
        self._namespace = pid_namespace(host)
        self._size_kib = 0
        if fault.what == "/run full":
            self._size_kib, self._used_kib = _run_kib(host)

    def strike(self) -> bool:
        """Strikes; whether there was something to strike."""
        what = self._fault.what
        if what == "agent killed":
            os.kill(self._agent, signal.SIGKILL)
        elif what in SOUGHT:
            return self._kill(SOUGHT[what])
        elif what == "link cut":
            links.cut(self._host.name)
        else:
            self._take_all_room()
        return True

    def lift(self) -> None:
        """Ends the fault; whoever was killed and is a daemon is started again."""
        what = self._fault.what
        if what == "agent killed" and self._host.daemon_pid("agent") is None:
            self._host.start_daemon("agent")
        elif what == "link cut":
            links.mend(self._host.name)
        elif what == "/run full":
            self._resize(self._size_kib)

    def _kill(self, name: str) -> bool:
        ends_at = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < ends_at:
            found = [pid for pid in processes(name) if pid_namespace_of(pid) == self._namespace]
            if found:
                for pid in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return True
        return False

    def _take_all_room(self) -> None:
        # What is taken grows while a move runs, and the kernel makes no place smaller than that.
        for further_attempts in reversed(range(RESIZE_ATTEMPTS)):
            try:
                return self._resize(_run_kib(self._host)[1])
            except LabError:
                if not further_attempts:
                    raise

    def _resize(self, kib: int) -> None:
        # The nearest way into the host: only its mounts are needed.
        enter = ["nsenter", "-t", str(self._host.init()), "-m", "--"]
        run([*enter, "mount", "-o", f"remount,size={max(kib, 4)}k", "/run"])


def processes(name: str) -> list[int]:
    """The machine's processes that bear a name."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().rstrip("\n") == name:
                found.append(int(comm.parent.name))
    return found


def pid_namespace_of(pid: int) -> int:
    """A process's pid namespace; 0 if the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def pid_namespace(host: Host) -> int:
    """That of a host."""
    return pid_namespace_of(host.init())


def machine_pid(host: Host, pid: int | None) -> int:
    """The machine's number of a process that a host knows by another."""
    if pid is None:
        raise LabError(f"the agent does not run on {host.name}")
    wanted = pid_namespace(host)
    for candidate in processes("godwit"):
        if pid_namespace_of(candidate) == wanted and _numbers(candidate)[-1:] == [pid]:
            return candidate
    raise LabError(f"process {pid} of {host.name} was not found")


def copies(program: str) -> dict[str, list[int]]:
    """The processes of a program in the containers of each host, whatever its engine says of them."""
    found: dict[str, list[int]] = {}
    for pid in processes(program):
        with contextlib.suppress(OSError):
            groups = Path(f"/proc/{pid}/cgroup").read_text()
            for tree in cgroups.trees():
                if f"/{tree.name}/" in groups:
                    found.setdefault(tree.name.removeprefix(qualified("")), []).append(pid)
                    break
    return found


def _numbers(pid: int) -> list[int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    return next(([int(number) for number in line.split()[1:]] for line in lines if line.startswith("NSpid:")), [])


def _run_kib(host: Host) -> tuple[int, int]:
    """How large the host's /run is, and how much of it is taken."""
    told = os.statvfs(host.path("/run"))
    return told.f_blocks * told.f_frsize // 1024, (told.f_blocks - told.f_bfree) * told.f_frsize // 1024
