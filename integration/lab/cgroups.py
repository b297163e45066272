"""The cgroups of the hosts, one tree `/LAB-HOST` in every hierarchy the machine has.

A host gets a cgroup namespace whose roots these trees are, because containers of two engines would otherwise meet under the
same paths (`/default/ID` for ctr). The trees also are the surest list of a host's processes, whatever became of our records.
"""

import errno
from pathlib import Path

from .commands import LabError, wait_until
from .layout import HOST_ADDRESSES, qualified

# Daemons live in a leaf: a v2 cgroup with processes of its own cannot give controllers to its children.
LEAF = "system"
# Processes that were killed leave their cgroup when the kernel gets to it.
REMOVAL_DEADLINE_SECONDS = 10.0


def hierarchies() -> list[tuple[Path, str, str]]:
    """Each mounted hierarchy of the machine: mount point, type (cgroup or cgroup2), options that name it."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ")[:3]
        if kind in ("cgroup", "cgroup2"):
            named = ",".join(option for option in options.split(",") if option not in ("rw", "ro"))
            found.append((Path(fields.split(" ")[4]), kind, named))
    return found


def default_flavour() -> str:
    """What the machine itself has."""
    return "v1" if any(kind == "cgroup" for _, kind, _ in hierarchies()) else "v2"


def mounts_of(flavour: str) -> list[str]:
    """What a host of this flavour mounts, as `DIRECTORY:TYPE:OPTIONS`, the directory relative to /sys/fs/cgroup."""
    if flavour == "v2":
        return [".:cgroup2:"]
    mounts = [
        f"{path.name}:{kind}:{options if kind == 'cgroup' else ''}" for path, kind, options in hierarchies()
    ]
    if not any(":cgroup:" in mount for mount in mounts):
        raise LabError("cgroup v1: this machine has no v1 hierarchy; choose v2")
    return mounts


def create(host: str) -> None:
    """Makes a host's tree in every hierarchy."""
    for mount, _, _ in hierarchies():
        for directory in (mount / qualified(host), mount / qualified(host) / LEAF):
            directory.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # v1's are empty at first and take no process then
                inherited = directory.parent / setting
                if (directory / setting).exists() and inherited.exists() and not (directory / setting).read_text().strip():
                    (directory / setting).write_text(inherited.read_text())


def procs_files(host: str, *, leaf: bool) -> list[Path]:
    """The files to write a process's id to so that it belongs to the host."""
    tail = [LEAF] if leaf else []
    return [mount.joinpath(qualified(host), *tail, "cgroup.procs") for mount, _, _ in hierarchies()]


def trees() -> list[Path]:
    """The trees of this lab that exist."""
    wanted = [mount / qualified(host) for mount, _, _ in hierarchies() for host in HOST_ADDRESSES]
    return [tree for tree in wanted if tree.is_dir()]


def processes_inside(tree: Path) -> set[int]:
    """All processes in a tree and below."""
    found = set()
    for procs in tree.rglob("cgroup.procs"):
        try:
            found.update(int(pid) for pid in procs.read_text().split())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
    return found - {0}


def is_frozen(pid: int) -> bool:
    """Whether a process is in a frozen cgroup of either version; one that is gone does not run either."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return True
    groups = [(controllers.split(","), inside.lstrip("/")) for _, controllers, inside in (line.split(":", 2) for line in lines)]
    for mount, kind, options in hierarchies():
        for controllers, inside in groups:
            if kind == "cgroup2" and controllers == [""]:
                state, frozen = mount / inside / "cgroup.events", "frozen 1"
            elif kind == "cgroup" and "freezer" in controllers and "freezer" in options.split(","):
                state, frozen = mount / inside / "freezer.state", "FROZEN"
            else:
                continue
            if state.exists() and frozen in state.read_text().splitlines():
                return True
    return False


def thaw() -> None:
    """Lets all processes run that a freezer of version 1 holds: what is frozen there does not die of a signal."""
    for state in (path for tree in trees() for path in tree.rglob("freezer.state")):
        try:
            state.write_text("THAWED")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):  # the last: the root of a tree
                raise


def remove_trees() -> None:
    """Removes the trees; their processes must have been killed."""
    wait_until("removing the hosts' cgroups", lambda: all([_removed(tree) for tree in trees()]), REMOVAL_DEADLINE_SECONDS)


def _removed(tree: Path) -> bool:
    directories = sorted((path for path in tree.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
    for directory in [*directories, tree]:
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
    return True
