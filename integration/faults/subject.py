"""The container that is struck: a Redis with some memory, an address that moves, and a file by which its files are told.

Its engine would start it again whenever it ended, so that a second copy would not be long in coming. It keeps nothing of
its memory in files: whoever finds it empty knows that it was started afresh.
"""

import secrets

from lab import memory
from lab.hosts import Host
from lab.layout import LAN_NETWORK

CONTAINER = "chaos"
ADDRESS = "10.77.0.60"
MAC_ADDRESS = "02:42:0a:4d:00:3c"
PROGRAM = "redis-server"
RESTART_POLICY = "always"
MARK = "/mark"
# So much over the link of integration/chaos takes a third of a second, so that a fault can strike in the middle of it.
MIB = 16


def start(host: Host) -> None:
    """Starts it, with something to hold."""
    host.run(
        *("docker", "run", "--detach", "--name", CONTAINER, "--runtime", "io.containerd.godwit.v2"),
        *("--restart", RESTART_POLICY, "--network", LAN_NETWORK, "--ip", ADDRESS, "--mac-address", MAC_ADDRESS, "redis:8"),
    )
    fill()


def fill() -> None:
    """Gives it something to hold, as soon as it answers; to fill it twice changes nothing."""
    memory.wait_for_answer(ADDRESS)
    memory.fill(ADDRESS, MIB)


def leave_mark(host: Host) -> str:
    """Writes a file in it that is as no other was; returns its content."""
    mark = secrets.token_hex(8)
    host.run("docker", "exec", CONTAINER, "dash", "-c", f"echo {mark} >{MARK}")
    return mark


def bears(host: Host, mark: str) -> bool:
    """Whether a host's files of it have the mark; it need not run."""
    # What comes is an archive with this one file.
    return mark in host.run("docker", "cp", f"{CONTAINER}:{MARK}", "-", check=False).stdout


def inspect(host: Host, what: str) -> str:
    """A word of its engine's on it."""
    return host.run("docker", "inspect", "--format", what, CONTAINER).stdout.strip()
