"""What the tests of moves share: a Redis that keeps all it acknowledges, moves, what a host holds of them, and faults.

A fault is lifted with the test, whatever its end. A host `holds nothing` when only the engine's containers are left on it.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

from lab.commands import run
from lab.hosts import Host
from lab.layout import WIRE, qualified
from lab.load import LoadClient
from tests.capabilities import version
from tests.support import EngineTest

ADDRESS = "10.77.0.70"
MAC_ADDRESS = "02:42:0a:4d:00:46"
ON_LAN = ("--network", "lan", "--ip", ADDRESS, "--mac-address", MAC_ADDRESS)
# It writes all it acknowledges to a file, which it has open all the time, and logs what it is told to.
REDIS = ("redis:8", "redis-server", "--protected-mode", "no", "--save", "", "--appendonly", "yes", "--appendfsync", "no",
         "--enable-debug-command", "yes")  # fmt: skip
# It keeps all in memory.
FORGETFUL_REDIS = ("redis:8",)
# The agents' own deadlines are shorter; this one ends a test whose agent hangs.
MOVE_DEADLINE_SECONDS = 90.0
# What a user waits for an answer to a request that cannot be served.
ANSWER_DEADLINE_SECONDS = 5.0
# Programs that a move runs and that must be gone at its end; the holder's name is all that tells it from its shim.
PASSING = re.compile(r"(^|/)(criu|hold|gate)( |$)|runc.* (checkpoint|restore) ")


class Move:
    """A running `godwit migrate --json`; its events are read as they come."""

    def __init__(self, source: Host, container: str, target: str, *, json_lines: bool = True, mode: str = "auto",
                 options: tuple[str, ...] = ()) -> None:  # fmt: skip
        self.argv = ["godwit", "migrate", container, target, "--mode", mode, *options, *(["--json"] if json_lines else [])]
        self._host = source
        self._began = time.monotonic()
        # A pid of the host's own is needed to interrupt it.
        script = 'echo $$; exec "$@"'
        self._process = subprocess.Popen(source.command(["sh", "-c", script, "sh", *self.argv]), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        self._pid = int(self._process.stdout.readline())
        self.events: list[dict] = []
        self.seconds = 0.0

    def until(self, phase: str, state: str = "begin") -> None:
        """Reads events up to the one of this phase."""
        for line in self._process.stdout:
            self.events.append(json.loads(line))
            if (self.events[-1].get("phase"), self.events[-1].get("state")) == (phase, state):
                return
        raise AssertionError(f"the move ended before {phase}: {self.events[-1:]} {self._process.stderr.read()}")

    def until_sent(self, n_bytes: int) -> None:
        """Reads events until so many bytes have been sent."""
        for line in self._process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1].get("transferred", 0) >= n_bytes:
                return
        raise AssertionError(f"the move ended before: {self.events[-1:]} {self._process.stderr.read()}")

    def interrupt(self) -> None:
        """What ^C does."""
        self._host.run("kill", f"-{signal.SIGINT.value}", str(self._pid))

    def end(self) -> "Move":
        """Waits for the end and keeps what was said."""
        try:
            output, self.stderr = self._process.communicate(timeout=MOVE_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"the move did not end: {self.events}") from None
        self.seconds = time.monotonic() - self._began
        self.stdout = output
        if "--json" in self.argv:
            self.events += [json.loads(line) for line in output.splitlines()]
        self.code = self._process.returncode
        return self

    @property
    def said(self) -> str:
        """All of it, for a person."""
        return f"exit code {self.code}, {self.stderr} {self.events[-1:] if self.events else self.stdout}"

    @property
    def message(self) -> str:
        """The error in a sentence."""
        return self.events[-1].get("message", "") if self.events else self.stderr


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
        listed = self.docker("ps", "--all", "--format", "{{.Names}} {{.State}}", host=host).stdout
        return dict(line.split() for line in listed.splitlines())

    def images(self, host: Host) -> set[str]:
        """The images of a host, by their ids."""
        return set(self.docker("images", "--quiet", host=host).stdout.split())

    # -- moves ---------------------------------------------------------------------------------------------------------

    def begin_move(self, name: str, source: Host | None = None, target: Host | None = None) -> Move:
        """Begins a move, from ha to hb unless told."""
        return Move(source or self.ha, name, (target or self.hb).name, mode=self.mode)

    def move(self, name: str, source: Host | None = None, target: Host | None = None) -> Move:
        """A move that must succeed."""
        source, target = source or self.ha, target or self.hb
        move = self.begin_move(name, source, target).end()
        self.assertEqual(0, move.code, move.said)
        self.assertEqual([], move.events[-1]["report"]["remarks"])
        self.assertEqual("running", self.containers(target).get(name))
        self.assertNotIn(name, self.containers(source))
        return move

    # -- what hosts hold -----------------------------------------------------------------------------------------------

    def holdings(self, host: Host) -> dict[str, list[str]]:
        """Everything of moves that is on a host, without the containers."""
        processes = host.run("ps", "-eo", "args=", check=False).stdout.splitlines()
        mounts = host.run("cat", "/proc/1/mountinfo").stdout.splitlines()
        return {
            "images": self._names(host, "/run/godwit/migrations"),
            "tickets": self._names(host, "/run/godwit/tickets/moby"),
            "journals": self._names(host, "/var/lib/godwit/migrations"),
            "processes": [line for line in processes if PASSING.search(line)],
            "mounts": [line for line in mounts if "/godwit/" in line.split()[4]],
            "firewall": [line for line in host.run("nft", "list", "tables").stdout.splitlines() if "godwit" in line],
        }

    def holds_nothing(self, host: Host) -> None:
        """Soon there is nothing of any move on this host, and no task without its container."""
        nothing = {key: [] for key in ("images", "tickets", "journals", "processes", "mounts", "firewall")}
        try:
            self.soon("nothing to be left", lambda: self.holdings(host) == nothing and self._tasks_fit(host))
        except Exception:
            tasks = self._names(host, "/run/godwit/tasks")
            self.fail(f"{host.name} still holds {self.holdings(host)}; tasks {tasks}; {self.containers(host)}")

    def _tasks_fit(self, host: Host) -> bool:
        # A container of another runtime has no task of ours.
        n_running = sum(state in ("running", "paused") for state in self.containers(host).values())
        return len(self._names(host, "/run/godwit/tasks")) <= n_running

    @staticmethod
    def _names(host: Host, directory: str) -> list[str]:
        path = host.path(directory)
        return sorted(entry.name for entry in path.iterdir()) if path.exists() else []

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
        self._on_wire("tc", "qdisc", "replace", "dev", "hb", "root", "tbf", "rate", f"{megabits}mbit", "burst", "128kb",
                      "latency", "100ms")  # fmt: skip
        self.addCleanup(self.free_link)

    def free_link(self) -> None:
        """Ends `slow_link`."""
        self._on_wire("tc", "qdisc", "del", "dev", "hb", "root", check=False)

    def cut_link(self) -> None:
        """Nothing passes to hb or from it, and nobody is told."""
        self._on_wire("bridge", "link", "set", "dev", "hb", "state", "0")
        self.addCleanup(self.mend_link)

    def mend_link(self) -> None:
        """Ends `cut_link`."""
        self._on_wire("bridge", "link", "set", "dev", "hb", "state", "3")

    @staticmethod
    def _on_wire(*argv: str, check: bool = True) -> None:
        run(["nsenter", f"--net=/run/netns/{qualified(WIRE)}", "--", *argv], check=check)

    def kill_agent(self, host: Host, number: signal.Signals = signal.SIGKILL) -> None:
        """Kills an agent; the test's end starts it again if the test did not."""
        self.addCleanup(self.start_agent, host)
        host.signal_daemon("agent", number)

    def start_agent(self, host: Host) -> None:
        """Starts the agent if it does not run."""
        if host.daemon_pid("agent") is None:
            host.start_daemon("agent")

    def criu_that(self, script: str) -> Callable[[], None]:
        """Puts a program before CRIU on hb; what it returns takes it away, as the test's end does."""
        wrapper = self.hb.path("/usr/local/sbin/criu")
        self.hb.write("/usr/local/sbin/criu", f'#!/bin/sh\n{script}\nexec /usr/sbin/criu "$@"\n')
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
