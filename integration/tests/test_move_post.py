"""Moves whose memory follows after the container runs: what comes, and what happens when something dies meanwhile.

The container belongs to hb by then and runs there. Whatever is killed or cut, it goes on when that is back, with all its
memory; only what ends the container itself ends it, and never does it run with memory that is not its own.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.images import import_image
from tests.moving import ADDRESS, FORGETFUL_REDIS, Move, MoveTest

# Memory that takes some seconds over the slow link.
MEMORY_BYTES = 96 << 20
SLOW_MEGABITS = 160
TESTS = Path(__file__).parent


class PostCopy(MoveTest):
    """Has a Redis on ha with memory, and a client that writes without pause."""

    mode = "post"

    def setUp(self) -> None:
        super().setUp()
        self.needs_moves()
        if self.docker("image", "inspect", "redis:8", host=self.hb, check=False).returncode != 0:
            import_image(self.hb, "redis")  # what is slowed and counted is the container, not its image

    def filled_redis(self) -> str:
        """A Redis whose memory is looked at as a whole: its digest covers every key."""
        name = self.start_redis(command=(*FORGETFUL_REDIS, "redis-server", "--protected-mode", "no", "--save", "",
                                         "--enable-debug-command", "yes"))  # fmt: skip
        self.fill(MEMORY_BYTES)
        return name

    def start_program(self, program: str) -> str:
        """A container that runs one of the programs here, once it says that it is ready."""
        with tempfile.TemporaryDirectory() as directory:
            source = TESTS / f"{program}.c"
            subprocess.run(["gcc", "-static", "-O1", "-pthread", "-o", f"{directory}/{program}", source], check=True)
            for host in self.hosts:
                host.install(Path(directory, program), f"/srv/{program}", 0o755)
        name = self.start("busybox:latest", f"/{program}", options=("--volume", f"/srv/{program}:/{program}:ro"))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.soon("its memory", lambda: "ready" in self.logs(name))
        return name

    def digest(self, name: str, host=None) -> str:
        """What Redis holds but for what the client writes."""
        keys = f"""
import socket
redis = socket.create_connection(("{ADDRESS}", 6379), timeout=60)
lines = redis.makefile("rb")
for number in range({MEMORY_BYTES >> 20}):
    redis.sendall(b"DEBUG DIGEST-VALUE fill:%d\\r\\n" % number)
    lines.readline()
    print(lines.readline().decode().strip())
"""
        done = self.at_clients(sys.executable, "-c", keys)
        self.assertEqual(0, done.returncode, done.stderr)
        return done.stdout

    def draining(self, name: str) -> Move:
        """A move over a slow link whose container runs at hb and whose memory is still coming."""
        self.slow_link(SLOW_MEGABITS)
        move = self.begin_move(name)
        move.until("drain")
        return move

    def arrived(self, name: str, before: str) -> None:
        """All of it is at hb, and nothing of it anywhere else."""
        self.free_link()
        self.soon("ha to let go", lambda: name not in self.containers(self.ha))
        self.assertEqual("running", self.containers(self.hb)[name])
        self.assertEqual(before, self.digest(name, self.hb))
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)


class Arrives(PostCopy):
    def test_memory_follows_a_container_that_runs_already(self) -> None:
        name = self.filled_redis()
        before = self.digest(name)
        client = self.start_load()
        report = self.move(name).events[-1]["report"]
        self.assertEqual("post", report["mode"])
        memory = report["memory"]
        self.assertGreater(memory["raw"] + memory["lz4"] + memory["zstd"], MEMORY_BYTES)
        self.assertLess(report["bytes"]["image"], MEMORY_BYTES / 8, "it was not in the image")
        self.arrived(name, before)
        back = self.move(name, self.hb, self.ha).events[-1]["report"]
        self.assertEqual("post", back["mode"])
        self.assertEqual(before, self.digest(name, self.ha))
        self.kept_all(client)

    def test_children_and_mappings_made_meanwhile_have_the_right_memory(self) -> None:
        name = self.start_program("churn")
        self.slow_link(SLOW_MEGABITS // 4)
        move = self.begin_move(name)
        move.until("drain")
        self.docker("kill", "--signal", "USR1", name, host=self.hb)
        self.assertEqual(0, move.end().code, move.said)
        self.soon("its verdict", lambda: "verdict" in self.logs(name, self.hb))
        self.assertIn("verdict: 0 stale, 0 wrong", self.logs(name, self.hb))

    def test_large_mappings_come_as_they_are(self) -> None:
        name = self.start_program("corners")
        report = self.move(name).events[-1]["report"]
        self.assertEqual("post", report["mode"])
        self.docker("kill", "--signal", "USR1", name, host=self.hb)
        self.soon("its verdict", lambda: "verdict" in self.logs(name, self.hb))
        self.assertIn("verdict: 0 wrong, the child right, the stack right", self.logs(name, self.hb))
        self.assertNotIn("nothing can be locked", self.logs(name, self.hb))

    def test_criu_does_not_look_at_what_is_left_in_the_tasks(self) -> None:
        name = self.filled_redis()
        before = self.digest(name)
        move = self.draining(name)
        said = self.ha.run("sh", "-c", "cat /run/godwit/tasks/*/work-dump/dump.log").stdout
        looked_at = [int(pages) for pages in re.findall(r"Pagemap generated: (\d+) pages", said)]
        self.assertGreater(sum(looked_at), 0, said[-2000:])
        self.assertLess(sum(looked_at) * 4096, MEMORY_BYTES / 4)
        self.arrived(name, before)
        self.assertEqual(0, move.end().code, move.said)

    def test_meanwhile_it_can_neither_be_moved_on_nor_checkpointed(self) -> None:
        name = self.filled_redis()
        move = self.draining(name)
        onward = Move(self.hb, name, "ha").end()
        self.assertIn(onward.code, (1, 4), onward.said)
        self.assertIn("still on", onward.message)
        refused = self.docker("checkpoint", "create", name, "c1", host=self.hb, check=False)
        self.assertNotEqual(0, refused.returncode)
        self.assertIn("still on", refused.stderr)
        self.free_link()
        self.assertEqual(0, move.end().code, move.said)

    def test_a_container_that_is_killed_meanwhile_leaves_nothing(self) -> None:
        name = self.filled_redis()
        move = self.draining(name)
        self.docker("rm", "--force", name, host=self.hb)
        self.free_link()
        move.end()
        self.soon("ha to let go", lambda: name not in self.containers(self.ha))
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)


class Faults(PostCopy):
    def struck(self, strike) -> None:
        """Something dies while the memory is coming; the container goes on and all its memory comes."""
        name = self.filled_redis()
        before = self.digest(name)
        client = self.start_load()
        move = self.draining(name)
        strike()
        move.end()
        self.free_link()
        self.goes_on(client)
        self.arrived(name, before)
        self.kept_all(client)

    def test_the_sources_agent_is_killed_and_comes_back(self) -> None:
        def strike() -> None:
            self.kill_agent(self.ha)
            time.sleep(1)
            self.start_agent(self.ha)

        self.struck(strike)

    def test_the_destinations_agent_is_killed_and_comes_back(self) -> None:
        def strike() -> None:
            self.kill_agent(self.hb)
            time.sleep(1)
            self.start_agent(self.hb)

        self.struck(strike)

    def test_both_agents_are_killed_and_come_back(self) -> None:
        def strike() -> None:
            self.kill_agent(self.ha)
            self.kill_agent(self.hb)
            self.start_agent(self.hb)
            self.start_agent(self.ha)

        self.struck(strike)

    def test_the_link_is_cut_and_mended(self) -> None:
        def strike() -> None:
            self.cut_link()
            time.sleep(7)  # longer than the silence after which a link is lost
            self.mend_link()

        self.struck(strike)

    def test_criu_is_killed_at_the_source(self) -> None:
        self.struck(lambda: self.ha.run("pkill", "-KILL", "-x", "criu"))

    def test_criu_and_the_holder_are_killed_at_the_source(self) -> None:
        def strike() -> None:
            self.ha.run("pkill", "-KILL", "-f", "^/run/godwit/tasks/[0-9a-f]*/hold")
            self.ha.run("pkill", "-KILL", "-x", "criu", check=False)

        self.struck(strike)

    def test_a_pager_that_is_killed_ends_the_container_and_never_its_truth(self) -> None:
        name = self.filled_redis()
        move = self.draining(name)
        self.hb.run("pkill", "-KILL", "-f", "^/run/godwit/tasks/[0-9a-f]*/pager")
        self.soon("its end", lambda: self.containers(self.hb).get(name) == "exited")
        self.assertEqual("137", self.inspect(name, "{{.State.ExitCode}}", self.hb))
        self.free_link()
        move.end()
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)

    def test_before_the_commit_a_fault_costs_nothing(self) -> None:
        name = self.filled_redis()
        before = self.digest(name)
        client = self.start_load()
        unmoved = self.unmoved(name)
        lift = self.criu_that('case "$*" in swrk*) sleep 1;; esac')
        move = self.begin_move(name)
        move.until("restore")
        self.kill_agent(self.hb)
        self.assertEqual(1, move.end().code, move.said)
        lift()
        self.start_agent(self.hb)
        self.goes_on(client)
        unmoved(layers_may_stay=True)
        self.assertEqual(before, self.digest(name))
        self.kept_all(client)
