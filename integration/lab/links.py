"""The lab's network: a bridge, and one link to it for each host and for the clients.

The bridge stands in a network namespace of its own. No link of ours is ever in the machine's, so there is none to leave
behind: removing the namespaces removes everything.
"""

from pathlib import Path

from .commands import run
from .layout import CLIENT, CLIENT_ADDRESS, HOST_ADDRESSES, PREFIX_LENGTH, WIRE, WIRE_ADDRESS, qualified

BRIDGE = "br0"
# A tbf lets so much pass at once: what a link of a gigabit carries in two ticks of the slowest kernel's clock, at least.
BURST_BYTES = 256 << 10
# And queues for so long what is too much, as a switch does, before it drops.
QUEUE_MILLISECONDS = 20


def namespace_path(place: str) -> Path:
    """The file that keeps a place's network namespace."""
    return Path("/run/netns") / qualified(place)


def create_links() -> None:
    """Makes all namespaces, the bridge and the links, with their addresses."""
    wire = qualified(WIRE)
    run(["ip", "netns", "add", wire])
    run(["ip", "-n", wire, "link", "set", "lo", "up"])
    run(["ip", "-n", wire, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"])
    run(["ip", "-n", wire, "address", "add", f"{WIRE_ADDRESS}/{PREFIX_LENGTH}", "dev", BRIDGE])
    run(["ip", "-n", wire, "link", "set", BRIDGE, "up"])
    for place, address in {**HOST_ADDRESSES, CLIENT: CLIENT_ADDRESS}.items():
        netns = qualified(place)
        run(["ip", "netns", "add", netns])
        run(["ip", "link", "add", "eth0", "netns", netns, "type", "veth", "peer", "name", place, "netns", wire])
        run(["ip", "-n", wire, "link", "set", place, "master", BRIDGE, "up"])
        run(["ip", "-n", netns, "link", "set", "lo", "up"])
        run(["ip", "-n", netns, "address", "add", f"{address}/{PREFIX_LENGTH}", "dev", "eth0"])
        run(["ip", "-n", netns, "link", "set", "eth0", "up"])
        run(["ip", "-n", netns, "route", "add", "default", "via", WIRE_ADDRESS])


def shape(place: str, megabits: int) -> None:
    """Bounds what reaches a place; `unshape` is its undo."""
    _on_wire("tc", "qdisc", "replace", "dev", place, "root", "tbf", "rate", f"{megabits}mbit", "burst", f"{BURST_BYTES}",
             "latency", f"{QUEUE_MILLISECONDS}ms")  # fmt: skip


def unshape(place: str) -> None:
    """Ends `shape`, if it was called."""
    _on_wire("tc", "qdisc", "del", "dev", place, "root", check=False)


def cut(place: str) -> None:
    """Nothing passes to a place or from it, and nobody is told; `mend` is its undo."""
    _on_wire("bridge", "link", "set", "dev", place, "state", "0")


def mend(place: str) -> None:
    """Ends `cut`."""
    _on_wire("bridge", "link", "set", "dev", place, "state", "3")


def _on_wire(*argv: str, check: bool = True) -> None:
    run(["nsenter", f"--net={namespace_path(WIRE)}", "--", *argv], check=check)


def namespaces() -> list[str]:
    """The network namespaces of this lab that exist."""
    wanted = [qualified(place) for place in [*HOST_ADDRESSES, CLIENT, WIRE]]
    return [name for name in wanted if (Path("/run/netns") / name).exists()]


def processes_inside(namespace: str) -> set[int]:
    """The processes whose network namespace this is."""
    listed = run(["ip", "netns", "pids", namespace], check=False)
    return {int(pid) for pid in listed.stdout.split()}


def remove_links() -> None:
    """Removes the namespaces and with them bridge, links and addresses."""
    for namespace in namespaces():
        run(["ip", "netns", "delete", namespace])
