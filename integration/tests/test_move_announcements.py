"""A moved address is announced where it is now: captured on the clients' side of the network, while the engine is told to say
nothing itself."""

import json
import subprocess
import sys
import time

from lab.hosts import Host, client_command
from tests.moving import ADDRESS, ADDRESS6, MAC_ADDRESS, MoveTest
from tests.support import SOON_SECONDS
from tests.test_move_refusals import FOREVER

# Docker 28 announces an address as well, when it wires a network, some time before the container runs.
SILENT_ENGINE = ("-o", "com.docker.network.advertise_addr_nmsgs=0")
# Prints each announcement that reaches a device, as JSON: when, of which family, whose address, at which hardware address.
# Ends with its input.
CAPTURE = """
import json, select, socket, sys, time
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("ready", flush=True)
def tell(family, address, mac):
    told = {"at": time.monotonic(), "family": family, "address": address, "mac": mac.hex(":")}
    print(json.dumps(told), flush=True)
while sys.stdin not in select.select([frames, sys.stdin], [], [])[0]:
    frame = frames.recv(2048)
    kind = frame[12:14]
    if kind == b"\\x08\\x06" and frame[28:32] == frame[38:42]:
        tell(4, socket.inet_ntop(socket.AF_INET, frame[28:32]), frame[22:28])
    elif kind == b"\\x86\\xdd" and frame[20] == 58 and frame[54] == 136:
        solicited, override = frame[58] & 0x40, frame[58] & 0x20
        if override and not solicited and frame[78:80] == b"\\x02\\x01":
            tell(6, socket.inet_ntop(socket.AF_INET6, frame[62:78]), frame[80:86])
"""
# What a captured frame needs to be told.
GRACE_SECONDS = 1.0


class Capture:
    """Announcements at the clients' place, or on all devices of a host."""

    def __init__(self, host: Host | None = None) -> None:
        argv = [sys.executable if host is None else "python3", "-c", CAPTURE]
        command = client_command(argv) if host is None else host.command(argv)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def end(self) -> list[dict]:
        """All that was announced."""
        time.sleep(GRACE_SECONDS)
        told = self._process.communicate(timeout=SOON_SECONDS)[0]
        return [json.loads(line) for line in told.splitlines()]

    def stop(self) -> None:
        """Ends it, whether or not that was done."""
        if self._process.poll() is None:
            self._process.communicate(timeout=SOON_SECONDS)


class Announcements(MoveTest):
    """Each test moves a container, or tries to, and looks at what was announced meanwhile."""

    def start_silent(self, *options: str) -> str:
        """A container that says nothing on its network by itself."""
        name = self.start(*FOREVER, options=options)
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        return name

    def of(self, told: list[dict], family: int, address: str) -> list[dict]:
        """The announcements of an address, all of which name the container's hardware address."""
        found = [one for one in told if (one["family"], one["address"]) == (family, address)]
        self.assertEqual({MAC_ADDRESS}, {one["mac"] for one in found}, told)
        return found

    def test_the_destination_announces_both_families_when_the_container_runs_there(self) -> None:
        self.needs_moves()
        self.put_ipv6_on_lan(*SILENT_ENGINE)
        lan = ("--network", "lan", "--ip", ADDRESS, "--ip6", ADDRESS6, "--mac-address", MAC_ADDRESS)
        for mode in ("stop", "post"):
            with self.subTest(mode=mode):
                name = self.start_silent(*lan)
                capture = Capture()
                self.addCleanup(capture.stop)
                move = self.begin_move(name, options=("--mode", mode)).end()
                self.assertEqual(0, move.code, move.said)
                told = capture.end()
                restoring_at = next(seen_at for event, seen_at in zip(move.events, move.seen_at)
                                    if event.get("phase") == "restore")  # fmt: skip
                for family, address in ((4, ADDRESS), (6, ADDRESS6)):
                    (announced,) = self.of(told, family, address)
                    self.assertGreater(announced["at"], restoring_at)
                self.docker("rm", "--force", name, host=self.hb)

    def test_the_source_announces_again_what_it_keeps(self) -> None:
        self.needs_moves()
        self.put_ipv6_on_lan(*SILENT_ENGINE)
        name = self.start_silent("--network", "lan", "--ip", ADDRESS, "--ip6", ADDRESS6, "--mac-address", MAC_ADDRESS)
        unmoved = self.unmoved(name)
        self.criu_that('case "$*" in swrk*) exit 1;; esac')
        capture = Capture()
        self.addCleanup(capture.stop)
        move = self.begin_move(name).end()
        self.assertEqual(1, move.code, move.said)
        told = capture.end()
        for family, address in ((4, ADDRESS), (6, ADDRESS6)):
            self.assertEqual(1, len(self.of(told, family, address)))
        unmoved()

    def test_an_address_in_a_bridge_network_is_announced_on_the_destinations_bridge(self) -> None:
        self.needs_moves()
        create = ("network", "create", *SILENT_ENGINE, "--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd00:88::/64", "own")
        for host in self.hosts:
            self.docker(*create, host=host)
            self.addCleanup(self.docker, "network", "rm", "own", host=host)
        self.addCleanup(self.remove_containers)
        name = self.start_silent("--network", "own", "--ip", "10.88.0.70", "--ip6", "fd00:88::70", "--mac-address", MAC_ADDRESS)
        capture = Capture(self.hb)
        self.addCleanup(capture.stop)
        self.move(name)
        told = capture.end()
        self.assertTrue(self.of(told, 4, "10.88.0.70"))
        self.assertTrue(self.of(told, 6, "fd00:88::70"))
