"""What a shim, and its host, have more of after a thousand containers and a thousand execs came and went.

One shim lives through it all: that of a pod, whose leader stays while members come and go. Only what must not grow
decides: descriptors, threads, private memory, mounts, processes, and the files of everybody concerned.
"""

import time
from dataclasses import dataclass

from lab.commands import LabError
from lab.hosts import Host

from .compare import BUSYBOX, FOREVER, ROOTFS, RUNTIMES, SETTLE_SECONDS, remove_tasks
from .shims import footprint, shim_of

GROUP_ANNOTATION = "io.containerd.runc.v2.group"
LEADER = "pod"
# What is allocated at first use is there after these.
WARM_UP = 50
# So that the two processors are busy while a command waits for its daemon.
AT_ONCE = 4
# An allocator keeps some of what it was given; a leak of half a kilobyte for each container would be seen.
PRIVATE_MEMORY_KIB = 512
DEADLINE_SECONDS = 900.0
# Whatever a start leaves behind is in one of these.
PLACES = ("/run/godwit", "/run/containerd", "/run/runc", "/var/log/godwit", "/tmp", "/sys/fs/cgroup")


@dataclass(frozen=True)
class Growth:
    """Counts before and after, by name."""

    n_containers: int
    n_execs: int
    before: dict[str, int]
    after: dict[str, int]

    def grown(self) -> list[str]:
        """What there is more of than there may be."""
        allowed = {"private memory (KiB)": PRIVATE_MEMORY_KIB}
        return [
            f"{name}: {before} before, {self.after[name]} after"
            for name, before in self.before.items()
            if self.after[name] > before + allowed.get(name, 0)
        ]


def growth(host: Host, n_containers: int, n_execs: int) -> Growth:
    """Lets members of a pod, and execs in its leader, come and go."""
    annotation = f"{GROUP_ANNOTATION}={LEADER}"
    run = ["ctr", "run", "--runtime", RUNTIMES["ours"], "--annotation", annotation, "--rootfs"]
    host.run(*run[:2], "--detach", *run[2:], ROOTFS, LEADER, *FOREVER)
    shim = shim_of(host, LEADER)

    def cycle(n_members: int, n_execs: int, series: str) -> None:
        _each(host, n_members, [*run[:2], "--rm", *run[2:], ROOTFS, f"{series}-{{}}", BUSYBOX, "true"])
        _each(host, n_execs, ["ctr", "task", "exec", "--exec-id", f"{series}-{{}}", LEADER, BUSYBOX, "true"])

    cycle(WARM_UP, WARM_UP, "warm")
    before = _count(host, shim)
    cycle(n_containers, n_execs, "member")
    after = _count(host, shim)
    if shim_of(host, LEADER) != shim:
        raise LabError("the pod's shim is another one than before")
    remove_tasks(host, [LEADER])
    return Growth(n_containers, n_execs, before, after)


def _each(host: Host, n_times: int, command: list[str]) -> None:
    """Runs a command so many times, with `{}` as its number."""
    numbers = "\n".join(map(str, range(n_times)))
    host.run("xargs", "-P", str(AT_ONCE), "-I{}", *command, stdin=numbers.encode(), deadline=DEADLINE_SECONDS)


def _count(host: Host, shim: int) -> dict[str, int]:
    time.sleep(SETTLE_SECONDS)
    taken = footprint(host, shim)
    counts = {
        "descriptors": taken.descriptors,
        "threads": taken.threads,
        "private memory (KiB)": taken.private_kib,
        "mounts of the host": len(host.path(f"/proc/{shim}/mountinfo").read_text().splitlines()),
        "processes of the host": sum(process.name.isdigit() for process in host.path("/proc").iterdir()),
    }
    for place in PLACES:
        found = host.run("find", place, "-xdev", check=False).stdout.splitlines()
        counts[f"files in {place}"] = len(found)
    return counts
