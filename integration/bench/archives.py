"""Into an archive and out of it, by Godwit and by podman, in turn on one host; the archives of both lie in its memory.

What is timed is one command from its start to its end. The most memory that its programs had at once is told as well: of podman's
command and all that it waited for the largest, of ours the agent and the command together.
"""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import movers
from lab import memory
from lab.commands import LabError
from lab.hosts import Host

DEADLINE_SECONDS = 300.0
ARCHIVE = "/tmp/archive"
# Beside podman's.
TARGET = 0.5


@dataclass(frozen=True)
class Case:
    """A Redis of some size, packed in one way."""

    n_mib: int
    compression: str

    @property
    def key(self) -> str:
        """As a user names it."""
        return f"{self.n_mib}-{self.compression}"


CASES = [Case(n_mib, compression) for n_mib in (256, 1024) for compression in ("zstd", "none")]


@dataclass
class Sample:
    """One command."""

    who: str
    what: str
    seconds: float
    peak_mib: float
    archive_mib: float


def measure(case: Case, host: Host, runs: int, say: Callable[[str], None]) -> list[Sample]:
    """Both sides in turn, so often."""
    samples: list[Sample] = []
    ours, peer = movers.Godwit(None), movers.Podman(case.compression, 80)
    peers_container = f"peer-{case.compression}"
    for side, steps in ((ours, _ours(case)), (peer, _podman(case, peers_container))):
        side.remove([host])
        side.start(host)
        memory.fill(side.address, case.n_mib)
        for _ in range(runs):
            for what, command in steps:
                host.run("sync")
                sample = _timed(host, side, what, command)
                samples.append(sample)
                say(f"{sample.who:8} {what:7} {sample.seconds:6.2f} s  {sample.peak_mib:6.0f} MiB of memory, "
                    f"{sample.archive_mib:.0f} MiB in the archive")  # fmt: skip
                if what == "export":
                    _forget(host, side, peers_container)
            memory.wait_for_answer(side.address)
            host.run("rm", "-f", ARCHIVE)
        side.remove([host])
    return samples


def _ours(case: Case) -> list[tuple[str, tuple[str, ...]]]:
    return [
        ("export", ("godwit", "export", "ours", "-o", ARCHIVE, "--compress", case.compression)),
        ("import", ("godwit", "import", ARCHIVE)),
    ]


def _podman(case: Case, container: str) -> list[tuple[str, tuple[str, ...]]]:
    podman = ("env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman", "--runtime", "runc", "container")
    return [
        ("export", (*podman, "checkpoint", "--export", ARCHIVE, "--compress", case.compression, "--tcp-established", container)),
        ("import", (*podman, "restore", "--import", ARCHIVE, "--tcp-established")),
    ]


def _forget(host: Host, side: object, peers_container: str) -> None:
    """Removes what an export has left of the container, so that it can be imported under its name."""
    if isinstance(side, movers.Godwit):
        host.run("docker", "rm", "ours")
    else:
        host.run("env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman", "--runtime", "runc", "rm", peers_container)


def _timed(host: Host, side: object, what: str, argv: Sequence[str]) -> Sample:
    is_ours = isinstance(side, movers.Godwit)
    agent = host.daemon_pid("agent")
    if is_ours:
        # The most from here on.
        host.run("sh", "-c", f"echo 5 >/proc/{agent}/clear_refs")
    began = time.monotonic()
    process = subprocess.Popen(host.command(argv), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {errors.decode(errors='replace')}")
    peak_kib = usage.ru_maxrss
    if is_ours:
        peak_kib += _peak_of(host, agent)
    size = host.path(ARCHIVE).stat().st_size
    return Sample("godwit" if is_ours else "podman", what, seconds, peak_kib / 1024, size / (1 << 20))


def _peak_of(host: Host, pid: int | None) -> int:
    """The most memory that a process had, in KiB."""
    status = host.run("cat", f"/proc/{pid}/status").stdout
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])
