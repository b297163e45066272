"""What the tests of moves share: a Redis that keeps all it acknowledges, moves, what a host holds of them, and faults.

A fault is lifted with the test, whatever its end. What a move is, and what a host holds of moves, stands in lab/moves.py.
"""

import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from lab import links
from lab.commands import run
from lab.hosts import Host, client_command
from lab.layout import LAN_NETWORK, LAN_RANGES, SUBNET, WIRE_ADDRESS
from lab.load import LoadClient
from lab.moves import Move, containers, holdings
from tests.capabilities import version
from tests.support import EngineTest

ADDRESS = "10.77.0.70"
MAC_ADDRESS = "02:42:0a:4d:00:46"
# Where `put_ipv6_on_lan` has been called.
ADDRESS6, CLIENT_ADDRESS6, SUBNET6 = "fd00:77::70", "fd00:77::20", "fd00:77::/64"
ON_LAN = ("--network", "lan", "--ip", ADDRESS, "--mac-address", MAC_ADDRESS)
# It writes all it acknowledges to a file, which it has open all the time, and logs what it is told to.
REDIS = ("redis:8", "redis-server", "--protected-mode", "no", "--save", "", "--appendonly", "yes", "--appendfsync", "no",
         "--enable-debug-command", "yes")  # fmt: skip
# It keeps all in memory.
FORGETFUL_REDIS = ("redis:8",)
# What a user waits for an answer to a request that cannot be served.
ANSWER_DEADLINE_SECONDS = 5.0


class MoveTest(EngineTest):
    """A test that moves containers. Whatever it leaves on either host it has to answer for."""

    # How memory goes over, for tests that need one way or the other.
    mode = "auto"

    def setUp(self) -> None:
        super().setUp()
        self.hosts = (self.ha, self.hb)

    def needs_moves(self) -> None:
        """Skips the test where every container is refused."""
        if version(self.ha, "criu") < (4, 2):
            self.skipTest("a move needs CRIU 4.2 or newer")

    # -- containers ----------------------------------------------------------------------------------------------------

    def start_redis(self, *options: str, command: tuple[str, ...] = REDIS, network: tuple[str, ...] = ON_LAN) -> str:
        """Starts a Redis on ha, by default with the address that moves; returns its name when it answers."""
        name = self.start(*command, options=(*network, *options))
        self.addCleanup(lambda: self.docker("rm", "--force", "--volumes", name, host=self.hb, check=False))
        self.soon("redis", lambda: "PONG" in self.redis(name, "PING", check=False))
        return name

    def redis(self, name: str, *words: str, host: Host | None = None, check: bool = True) -> str:
        """What Redis answers, asked from inside."""
        return self.docker("exec", name, "redis-cli", *words, host=host, check=check).stdout.strip()

    def fill(self, n_bytes: int) -> None:
        """Gives Redis so much to hold, which nothing can compress."""
        script = f"""
import os, socket
with socket.create_connection(("{ADDRESS}", 6379)) as redis:
    for number in range({n_bytes >> 20}):
        key = b"fill:%d" % number
        redis.sendall(b"*3\\r\\n$3\\r\\nSET\\r\\n$%d\\r\\n%s\\r\\n$%d\\r\\n" % (len(key), key, 1 << 20))
        redis.sendall(os.urandom(1 << 20) + b"\\r\\n")
        assert redis.recv(5) == b"+OK\\r\\n"
"""
        done = self.at_clients(sys.executable, "-c", script)
        self.assertEqual(0, done.returncode, done.stderr)

    def start_load(self) -> LoadClient:
        """A client that writes on one connection until the test's end."""
        client = LoadClient(ADDRESS)
        self.addCleanup(client.__exit__)
        self.goes_on(client)
        return client

    def goes_on(self, client: LoadClient) -> None:
        """More writes are acknowledged from now on."""
        before = client.mark()["acknowledged"]
        self.soon("the load to go on", lambda: client.mark()["acknowledged"] > before + 20)

    def kept_all(self, client: LoadClient) -> dict:
        """Nothing acknowledged is lost and the connection is the same; ends the load."""
        account = client.finish()
        self.assertEqual((0, "kept"), (account["lost"], account["connection"]), account)
        return account

    def containers(self, host: Host) -> dict[str, str]:
        """The state of each container of a host, by its name."""
        return containers(host)

    def images(self, host: Host) -> set[str]:
        """The images of a host, by their ids."""
        return set(self.docker("images", "--quiet", host=host).stdout.split())

    # -- networks ------------------------------------------------------------------------------------------------------

    def put_ipv6_on_lan(self, *options: str) -> None:
        """Makes the network `lan` of both hosts anew with a subnet of IPv6, in which the clients have an address too, until the
        test's end. No container may be on it."""
        create = ("network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", SUBNET, "--gateway", WIRE_ADDRESS)

        def lan(*options: str) -> None:
            for host in self.hosts:
                self.docker("network", "rm", LAN_NETWORK, host=host, check=False)
                self.docker(*create, "--ip-range", LAN_RANGES[host.name], *options, LAN_NETWORK, host=host)

        def at_clients(what: str) -> None:
            run(client_command(["ip", "address", what, f"{CLIENT_ADDRESS6}/64", "dev", "eth0", "nodad"]))

        lan("--ipv6", "--subnet", SUBNET6, *options)
        self.addCleanup(lan)
        # before that, whatever its own clean-up does
        self.addCleanup(self.remove_containers)
        at_clients("add")
        self.addCleanup(at_clients, "del")

    def remove_containers(self) -> None:
        """Removes every container of both hosts."""
        for host in self.hosts:
            for name in self.containers(host):
                self.docker("rm", "--force", name, host=host, check=False)

    # -- volumes -------------------------------------------------------------------------------------------------------

    def volumes(self, host: Host) -> set[str]:
        """The volumes of a host, by name."""
        return set(self.docker("volume", "ls", "--quiet", host=host).stdout.split())

    def content_of(self, volume: str, host: Host) -> Path:
        """Where a volume's content is, by the machine's path."""
        where = self.docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume, host=host).stdout.strip()
        return host.path(where)

    def new_volume(self, name: str, *options: str) -> str:
        """A volume on ha; the test's end removes it from both hosts."""
        for host in self.hosts:
            self.addCleanup(lambda host=host: self.docker("volume", "rm", "--force", name, host=host, check=False))
        self.docker("volume", "create", *options, name)
        return name

    def taken_volume(self, name: str) -> str:
        """The same, when hb has one of that name with something in it."""
        self.new_volume(name)
        self.docker("volume", "create", name, host=self.hb)
        (self.content_of(name, self.hb) / "theirs").write_text("precious")
        return name

    # -- moves ---------------------------------------------------------------------------------------------------------

    def begin_move(
        self, name: str, source: Host | None = None, target: Host | None = None, *, options: tuple[str, ...] = ()
    ) -> Move:
        """Begins a move, from ha to hb unless told."""
        # clap takes an option once
        mode = () if "--mode" in options else ("--mode", self.mode)
        return Move(source or self.ha, name, (target or self.hb).name, options=(*mode, *options))

    def move(
        self, name: str, source: Host | None = None, target: Host | None = None, *, options: tuple[str, ...] = ()
    ) -> Move:
        """A move that must succeed."""
        source, target = source or self.ha, target or self.hb
        move = self.begin_move(name, source, target, options=options).end()
        self.assertEqual(0, move.code, move.said)
        self.assertEqual([], move.events[-1]["report"]["remarks"])
        self.assertEqual("running", self.containers(target).get(name))
        self.assertNotIn(name, self.containers(source))
        return move

    # -- what hosts hold -----------------------------------------------------------------------------------------------

    def holds_nothing(self, host: Host) -> None:
        """Soon there is nothing of any move on this host, and no task without its container."""
        try:
            self.soon("nothing to be left", lambda: not holdings(host))
        except Exception:
            self.fail(f"{host.name} still holds {holdings(host)}; {self.containers(host)}")

    def unmoved(self, name: str) -> Callable[[], None]:
        """Remembers a container of ha; what it returns checks that nothing of it has changed and hb knows nothing of it."""
        wanted = ("{{.Id}} {{.State.Pid}} {{.State.StartedAt}} {{.State.Status}} {{.RestartCount}}"
                  " {{json .HostConfig.RestartPolicy}}")  # fmt: skip
        before, images = self.inspect(name, wanted), self.images(self.hb)
        elsewhere = self.containers(self.hb)

        def check(*, layers_may_stay: bool = False) -> None:
            self.assertEqual(before, self.inspect(name, wanted))
            self.soon("hb to be as before", lambda: self.containers(self.hb) == elsewhere)
            self.holds_nothing(self.hb)
            self.holds_nothing(self.ha)
            if not layers_may_stay:
                self.assertEqual(images, self.images(self.hb))

        return check

    # -- faults --------------------------------------------------------------------------------------------------------

    def slow_link(self, megabits: int) -> None:
        """Bounds what reaches hb until the test's end."""
        links.shape("hb", megabits)
        self.addCleanup(self.free_link)

    def free_link(self) -> None:
        """Ends `slow_link`."""
        links.unshape("hb")

    def cut_link(self) -> None:
        """Nothing passes to hb or from it, and nobody is told."""
        links.cut("hb")
        self.addCleanup(self.mend_link)

    def mend_link(self) -> None:
        """Ends `cut_link`."""
        links.mend("hb")

    def kill_agent(self, host: Host, number: signal.Signals = signal.SIGKILL) -> None:
        """Kills an agent; the test's end starts it again if the test did not."""
        self.addCleanup(self.start_agent, host)
        host.signal_daemon("agent", number)

    def start_agent(self, host: Host) -> None:
        """Starts the agent if it does not run."""
        if host.daemon_pid("agent") is None:
            host.start_daemon("agent")

    def criu_that(self, script: str, host: Host | None = None) -> Callable[[], None]:
        """Puts a program before CRIU, on hb unless told; what it returns takes it away, as the test's end does."""
        host = host or self.hb
        wrapper = host.path("/usr/local/sbin/criu")
        host.write("/usr/local/sbin/criu", f'#!/bin/sh\n{script}\nexec /usr/sbin/criu "$@"\n')
        wrapper.chmod(0o755)

        def remove() -> None:
            wrapper.unlink(missing_ok=True)

        self.addCleanup(remove)
        return remove

    @contextmanager
    def agent_file(self, host: Host, path: str, change: Callable[[str], str]):
        """One of an agent's files changed; the agent runs with it inside the context."""
        file = host.path(path)
        before = file.read_text()
        file.write_text(change(before))
        host.restart_daemon("agent")
        try:
            yield
        finally:
            file.write_text(before)
            host.restart_daemon("agent")
