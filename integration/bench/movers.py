"""The two ways to move a Redis that are measured side by side: Godwit, and podman's checkpoint, copy and restore.

Each keeps a container of its own, with an address that goes along, and moves it to and fro. Nothing but `move` is timed. What a
container leaves at the source in podman's way is removed before the next move, outside the time.
"""

import subprocess
import time
from collections.abc import Sequence

from lab import memory
from lab.commands import LabError
from lab.hosts import Host
from lab.layout import LAN_NETWORK, SUBNET, WIRE_ADDRESS
from lab.moves import Move

MOVE_DEADLINE_SECONDS = 300.0
IMAGE = "redis:8"
COPY_PORT = 7000
# In the memory of both hosts, so that no disk slows the peer's archive.
OUTGOING, INCOMING = "/tmp/outgoing.tar", "/tmp/incoming.tar"


class Godwit:
    """`godwit migrate`."""

    address, mac_address = "10.77.0.50", "02:42:0a:4d:00:32"

    def __init__(self, mode: str | None) -> None:
        self.name = "godwit"
        self._options = [] if mode is None else ["--mode", mode]

    def start(self, host: Host) -> None:
        """Starts Redis."""
        runtime = ("--runtime", "io.containerd.godwit.v2")
        host.run("docker", "run", "--detach", "--name", "ours", *runtime, *_on_lan(self), IMAGE)
        memory.wait_for_answer(self.address)

    def move(self, source: Host, target: Host) -> dict:
        """Moves it; returns the move's own report."""
        move = Move(source, "ours", target.name, options=self._options).end(MOVE_DEADLINE_SECONDS)
        if move.code != 0:
            raise LabError(f"godwit's move from {source.name} to {target.name} failed: {move.said}")
        return move.events[-1]["report"]

    def tidy(self, source: Host) -> None:
        """Nothing is left that could be removed."""

    def remove(self, hosts: Sequence[Host]) -> None:
        """Removes it wherever it is."""
        for host in hosts:
            host.run("docker", "rm", "--force", "ours", check=False)


class Podman:
    """`podman container checkpoint --export`, a copy over the link, `podman container restore --import`."""

    def __init__(self, compression: str, number: int) -> None:
        self.name = f"podman, {compression}"
        self.address, self.mac_address = f"10.77.0.{number}", f"02:42:0a:4d:00:{number:02x}"
        self._compression = compression
        self._container = f"peer-{compression}"

    def start(self, host: Host) -> None:
        """Starts Redis."""
        host.run(*_podman("run", "--detach", "--name", self._container, *_on_lan(self), IMAGE))
        memory.wait_for_answer(self.address)

    def move(self, source: Host, target: Host) -> dict:
        """Moves it; returns how long its parts took and the size of the archive."""
        # It waits before the clock runs, so that entering the host is no part of the time.
        receive = ["sh", "-c", f"rm -f {INCOMING}; exec socat -u TCP-LISTEN:{COPY_PORT},reuseaddr CREATE:{INCOMING}"]
        receiver = subprocess.Popen(target.command(receive), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            began = time.monotonic()
            source.run(
                *_podman("container", "checkpoint", "--export", OUTGOING, "--compress", self._compression),
                *("--tcp-established", self._container),
                deadline=MOVE_DEADLINE_SECONDS,
            )
            exported = time.monotonic()
            to = f"TCP:{target.address}:{COPY_PORT},retry=50,interval=0.1"
            source.run("socat", "-u", "-b", "1048576", f"OPEN:{OUTGOING}", to, deadline=MOVE_DEADLINE_SECONDS)
            receiver.wait(timeout=MOVE_DEADLINE_SECONDS)
            copied = time.monotonic()
            restore = _podman("container", "restore", "--import", INCOMING, "--tcp-established")
            target.run(*restore, deadline=MOVE_DEADLINE_SECONDS)
            restored = time.monotonic()
        finally:
            receiver.kill()
            receiver.communicate()
        times = {"checkpoint": exported - began, "copy": copied - exported, "restore": restored - copied}
        return {"seconds": times, "archive_bytes": target.path(INCOMING).stat().st_size}

    def tidy(self, source: Host) -> None:
        """Removes what the move has left at its source, for which podman has no order of its own."""
        source.run(*_podman("rm", self._container))
        source.run("rm", "-f", OUTGOING)

    def remove(self, hosts: Sequence[Host]) -> None:
        """Removes it wherever it is."""
        for host in hosts:
            host.run(*_podman("rm", "--force", "--time", "0", self._container), check=False)
            host.run("rm", "-f", OUTGOING, INCOMING)


def movers(mode: str | None) -> list[Godwit | Podman]:
    """All that are compared; of podman's the better counts."""
    return [Godwit(mode), Podman("none", 80), Podman("zstd", 81)]


def prepare(hosts: Sequence[Host]) -> None:
    """Gives both engines of both hosts the image, and podman the network."""
    first = hosts[0]
    archive = first.run("mktemp").stdout.strip()
    first.run("docker", "save", "--output", archive, IMAGE)
    content = first.path(archive).read_bytes()
    for host in hosts:
        host.run("docker", "load", stdin=content)
        host.run(*_podman("load"), stdin=content)
        host.run(*_podman("network", "create", "--driver", "macvlan", "--opt", "parent=eth0", "--subnet", SUBNET),
                 "--gateway", WIRE_ADDRESS, LAN_NETWORK)  # fmt: skip
    first.run("rm", archive)


def _podman(*words: str) -> tuple[str, ...]:
    # crun refuses the hybrid set-up of cgroups that a machine with version 1 has. Podman warns of version 1 at each command.
    return ("env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman", "--runtime", "runc", *words)


def _on_lan(mover: Godwit | Podman) -> tuple[str, ...]:
    return ("--network", LAN_NETWORK, "--ip", mover.address, "--mac-address", mover.mac_address)
