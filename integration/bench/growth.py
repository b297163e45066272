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
# The allocator keeps what it was given until its bins are full (seven pieces of each of 64 sizes, 240 KB), and what lies
# between them: that comes to an end, a leak does not. So memory may grow while the first half comes and goes, within a
# bound; in the second half, of 500 containers and 500 execs, 64 KiB more are a leak of 65 bytes for each.
MEMORY = "private memory (KiB)"
FIRST_HALF_KIB = 512
SECOND_HALF_KIB = 64
DEADLINE_SECONDS = 900.0
# Whatever a start leaves behind is in one of these.
PLACES = ("/run/godwit", "/run/containerd", "/run/runc", "/var/log/godwit", "/tmp", "/sys/fs/cgroup")


@dataclass(frozen=True)
class Growth:
    """Counts before and after, by name."""

    n_containers: int
    n_execs: int
    before: dict[str, int]
    halfway: dict[str, int]
    after: dict[str, int]

    def grown(self) -> list[str]:
        """What there is more of than there may be."""
        grown = []
        for name, before in self.before.items():
            halfway, after = self.halfway[name], self.after[name]
            if name == MEMORY:
                has_grown = halfway > before + FIRST_HALF_KIB or after > halfway + SECOND_HALF_KIB
            else:
                has_grown = after > before
            if has_grown:
                grown.append(f"{name}: {before} before, {halfway} halfway, {after} after")
        return grown


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
    cycle(n_containers // 2, n_execs // 2, "first")
    halfway = _count(host, shim)
    cycle(n_containers - n_containers // 2, n_execs - n_execs // 2, "second")
    after = _count(host, shim)
    if shim_of(host, LEADER) != shim:
        raise LabError("the pod's shim is another one than before")
    remove_tasks(host, [LEADER])
    return Growth(n_containers, n_execs, before, halfway, after)


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
        MEMORY: taken.private_kib,
        "mounts of the host": len(host.path(f"/proc/{shim}/mountinfo").read_text().splitlines()),
        "processes of the host": sum(process.name.isdigit() for process in host.path("/proc").iterdir()),
    }
    for place in PLACES:
        found = host.run("find", place, "-xdev", check=False).stdout.splitlines()
        counts[f"files in {place}"] = len(found)
    return counts
