"""The shims of a host, seen from outside: which process serves a container, what memory it has, what it holds open.

Everything is read from the host's own /proc. Nothing is asked of the shim, which must not change by being looked at.
"""

from dataclasses import dataclass
from pathlib import Path

from lab.commands import LabError
from lab.hosts import Host


@dataclass(frozen=True)
class Footprint:
    """What one shim takes, in KiB and in numbers."""

    resident_kib: int
    proportional_kib: int
    """Each page shared by N processes counts as its Nth part."""
    private_kib: int
    """What was written to, and is nobody else's."""
    descriptors: int
    threads: int


def shim_of(host: Host, container: str) -> int:
    """The shim of a container, or of the pod that it leads, by its id in the host's numbering."""
    for process in host.path("/proc").iterdir():
        if process.name.isdigit() and _serves(process, container):
            return int(process.name)
    raise LabError(f"{host.name}: no shim serves {container}")


def footprint(host: Host, shim: int) -> Footprint:
    """What a shim takes at this moment."""
    process = host.path(f"/proc/{shim}")
    sizes = {}
    for line in (process / "smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        sizes[name] = int(value.split()[0])
    return Footprint(
        resident_kib=sizes["Rss"],
        proportional_kib=sizes["Pss"],
        private_kib=sizes["Anonymous"],
        descriptors=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
    )


def _serves(process: Path, container: str) -> bool:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has just ended
    is_server = Path(words[0]).name.startswith("containerd-shim-") and not {"start", "delete"} & set(words)
    # Docker's ids are longer than what a person is shown of them.
    return is_server and any(flag == "-id" and word.startswith(container) for flag, word in zip(words, words[1:]))
