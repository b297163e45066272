"""Moves that fail before the commit, and one that fails after it: whose the container is, and what is left where.

After each fault the container must run on ha as if nothing had happened, with its client's connection; hb must hold
nothing; and with the fault lifted the next move must succeed.
"""

import os
import signal
import subprocess
import time
from contextlib import contextmanager

from lab.images import import_image
from tests.moving import FORGETFUL_REDIS, Move, MoveTest

# An image that takes two seconds over the slow link, so that a fault can strike in the middle of it.
IMAGE_BYTES = 24 << 20
SLOW_MEGABITS = 80
SOME_OF_IT = 4 << 20
# A lost link is noticed after 5 s of silence; what comes after that is undoing.
UNDO_SECONDS = 15.0
HOLD_SECONDS = 4


class Fault(MoveTest):
    """Has a Redis on ha with a client that writes without pause, whose memory travels in the freeze."""

    mode = "stop"

    def setUp(self) -> None:
        super().setUp()
        self.needs_moves()
        if self.docker("image", "inspect", "redis:8", host=self.hb, check=False).returncode != 0:
            import_image(self.hb, "redis")  # what is slowed and counted is the container, not its image
        self.name = self.start_redis("--restart", "always", command=FORGETFUL_REDIS)
        self.unmoved_check = self.unmoved(self.name)

    def filled(self) -> None:
        """Makes the transfer long enough to be struck."""
        self.fill(IMAGE_BYTES)
        self.slow_link(SLOW_MEGABITS)

    @contextmanager
    def unharmed(self, *, then_moves: bool = True):
        """Inside a move fails; afterwards nothing has happened, and the next move succeeds."""
        client = self.start_load()
        yield
        self.goes_on(client)
        self.unmoved_check(layers_may_stay=True)
        if then_moves:
            self.free_link()
            self.move(self.name)
            self.goes_on(client)
            self.holds_nothing(self.ha)
            self.holds_nothing(self.hb)
        self.kept_all(client)

    def failed(self, move: Move, code: int, *said: str) -> None:
        """Checks how a move ended and that its message says where and why."""
        self.assertEqual(code, move.code, move.said)
        for words in said:
            self.assertIn(words, move.message)
        self.assertLess(move.seconds, UNDO_SECONDS, move.said)


class BeforeTheCommit(Fault):
    def test_the_destinations_agent_is_killed_during_the_transfer(self) -> None:
        self.filled()
        with self.unharmed():
            move = self.begin_move(self.name)
            move.until("freeze")
            move.until_sent(SOME_OF_IT)
            self.kill_agent(self.hb)
            self.failed(move.end(), 1, "freeze failed on ha", "connection to the agent on hb was lost")
            self.start_agent(self.hb)

    def test_the_destinations_agent_is_killed_during_the_restore_and_does_not_come_back_at_once(self) -> None:
        lift = self.criu_that('case "$*" in swrk*) sleep 3;; esac')
        with self.unharmed():
            move = self.begin_move(self.name)
            move.until("restore")
            self.kill_agent(self.hb)
            self.failed(move.end(), 1, "restore failed on ha", "agent on hb was lost")
            time.sleep(4)  # CRIU reaches its hold and nobody is there
            self.assertEqual("PONG", self.redis(self.name, "PING"))
            lift()
            self.start_agent(self.hb)

    def test_the_sources_agent_is_killed_while_the_container_is_frozen_and_starts_again(self) -> None:
        self.filled()
        with self.unharmed():
            move = self.begin_move(self.name)
            move.until("freeze")
            move.until_sent(SOME_OF_IT)
            self.kill_agent(self.ha)
            self.assertEqual(1, move.end().code, move.said)
            self.start_agent(self.ha)

    def test_the_sources_agent_is_killed_and_the_container_runs_on_without_it(self) -> None:
        self.filled()
        with self.agent_file(self.ha, "/etc/godwit/agent.toml", lambda text: f"hold_seconds = {HOLD_SECONDS}\n{text}"):
            with self.unharmed():
                client = self.start_load()
                move = self.begin_move(self.name)
                move.until("freeze")
                move.until_sent(SOME_OF_IT)
                self.kill_agent(self.ha)
                self.goes_on(client)  # nobody has started the agent
                self.assertIsNone(self.ha.daemon_pid("agent"))
                self.kept_all(client)
                self.start_agent(self.ha)

    def test_the_link_is_cut_without_a_word_during_the_transfer(self) -> None:
        self.filled()
        with self.unharmed():
            move = self.begin_move(self.name)
            move.until("freeze")
            move.until_sent(SOME_OF_IT)
            self.cut_link()
            self.failed(move.end(), 1, "freeze failed on ha", "connection to the agent on hb was lost")
            self.assertRegex(move.message, "nothing was heard for 5 s|timed out|was lost")
            self.mend_link()

    def test_the_restore_is_refused_by_criu(self) -> None:
        lift = self.criu_that('case "$*" in swrk*) echo no >&2; exit 1;; esac')
        with self.unharmed():
            move = self.begin_move(self.name).end()
            self.failed(move, 1, "restore failed on hb")
            lift()

    def test_the_memory_backed_space_at_the_destination_is_full(self) -> None:
        self.fill(IMAGE_BYTES)
        place = "/run/godwit/migrations"
        inside = ("nsenter", "-t", "1", "-m", "--")
        self.hb.run(*inside, "sh", "-c", f"mkdir -p {place}; mount -t tmpfs -o size=8m,mode=700 tmpfs {place}")
        self.addCleanup(self.hb.run, *inside, "umount", place, check=False)
        with self.unharmed():
            move = self.begin_move(self.name).end()
            self.assertIn(move.code, (1, 4), move.said)
            self.assertRegex(move.message, "on hb|hb: ")
            self.assertRegex(move.message, "[Nn]o space|free|room")
            self.hb.run(*inside, "umount", place)

    def test_the_user_interrupts_during_the_transfer(self) -> None:
        self.filled()
        with self.unharmed():
            move = self.begin_move(self.name)
            move.until("freeze")
            move.until_sent(SOME_OF_IT)
            move.interrupt()
            self.failed(move.end(), 130, "aborted on request")

    def test_an_agent_that_is_told_to_stop_undoes_its_move_first(self) -> None:
        self.filled()
        with self.unharmed():
            move = self.begin_move(self.name)
            move.until("freeze")
            move.until_sent(SOME_OF_IT)
            self.kill_agent(self.ha, signal.SIGTERM)
            self.assertNotEqual(0, move.end().code, move.said)
            self.start_agent(self.ha)

    def test_the_holder_is_killed_and_criu_takes_that_for_a_refusal(self) -> None:
        self.filled()
        with self.unharmed():
            self.begin_and_kill("hold")

    def test_the_holder_and_the_thawer_are_killed_and_the_shim_settles(self) -> None:
        self.filled()
        with self.unharmed():
            self.begin_and_kill("thaw", "hold")

    def test_criu_is_killed_while_the_container_is_held(self) -> None:
        self.filled()
        client = self.start_load()
        move = self.begin_move(self.name)
        move.until("freeze")
        move.until_sent(SOME_OF_IT)
        self.ha.run("pkill", "-KILL", "-x", "criu")
        # At once, and not only when the move is over.
        self.goes_on(client)
        tables = self.ha.run("nsenter", "-t", self.inspect(self.name, "{{.State.Pid}}"), "-n", "nft", "list", "tables")
        self.assertNotIn("CRIU", tables.stdout)
        self.assertEqual(1, move.end().code, move.said)  # the load and the image share the slow link
        self.unmoved_check(layers_may_stay=True)
        self.kept_all(client)

    def test_criu_is_killed_at_the_destination_during_the_restore(self) -> None:
        lift = self.criu_that('case "$*" in swrk*) sleep 1;; esac')
        with self.unharmed():
            move = self.begin_move(self.name)
            move.until("restore")
            self.soon("CRIU to restore", lambda: self.hb.run("pgrep", "-x", "criu", check=False).returncode == 0)
            self.hb.run("pkill", "-KILL", "-x", "criu")
            self.failed(move.end(), 1, "restore failed on hb")
            lift()

    def test_a_container_that_crashes_with_its_criu_is_started_again_as_its_engine_would(self) -> None:
        # CRIU's breakpoint kills it with this status; a signal from outside does not kill a container's first process.
        crashes = ("sh", "-c", "trap 'exit 133' USR1; while :; do sleep 1 & wait; done")
        name = self.start("busybox", *crashes, options=("--network", "none", "--restart", "always"))
        pid, began = self.inspect(name, "{{.State.Pid}}"), self.inspect(name, "{{.State.StartedAt}}")
        lift = self.criu_that(f'case "$*" in swrk*) kill -USR1 {pid}; sleep 1; kill -KILL $$;; esac', self.ha)
        self.failed(self.begin_move(name).end(), 1, "freeze failed on ha")
        lift()
        self.soon("it to run again", lambda: self.containers(self.ha)[name] == "running")
        self.assertNotEqual(began, self.inspect(name, "{{.State.StartedAt}}"))
        self.assertEqual("always", self.inspect(name, "{{.HostConfig.RestartPolicy.Name}}"))
        self.assertNotIn(name, self.containers(self.hb))
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)

    def begin_and_kill(self, *names: str) -> None:
        """Has a move fail because the programs that CRIU calls die while the container is held."""
        move = self.begin_move(self.name)
        move.until("freeze")
        move.until_sent(SOME_OF_IT)
        for name in names:
            self.ha.run("pkill", "-KILL", "-f", f"^/run/godwit/tasks/[0-9a-f]*/{name}")
        self.failed(move.end(), 1, "let run on before the commit")


class AfterTheCommit(Fault):
    def test_there_is_no_room_at_the_destination_from_the_hold_on(self) -> None:
        client = self.start_load()
        move = self.begin_move(self.name)
        move.until("restore")
        # The source's agent stands still until the restore is held and the room is gone.
        agent = str(self.ha.daemon_pid("agent"))
        self.ha.run("kill", "-STOP", agent)
        self.addCleanup(self.ha.run, "kill", "-CONT", agent, check=False)
        logs = self.hb.path("/run/godwit/tasks")
        self.soon("the restore to be held", lambda: any("post-restore" in log.read_text(errors="replace")
                                                        for log in logs.glob("*/work-restore/restore.log")))  # fmt: skip
        total, _ = self.room_of_run()
        self.addCleanup(self.resize_run, total)
        # Daemons write there meanwhile, and less than what is used is refused.
        self.soon("the room to be gone", lambda: self.resize_run(self.room_of_run()[1], check=False).returncode == 0)
        self.ha.run("kill", "-CONT", agent)
        self.assertEqual(0, move.end().code, move.said)
        self.goes_on(client)
        self.assertEqual("running", self.containers(self.hb)[self.name])
        self.resize_run(total)
        self.kept_all(client)
        # runC knows it, too.
        self.docker("pause", self.name, host=self.hb)
        self.docker("unpause", self.name, host=self.hb)
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)

    def room_of_run(self) -> tuple[int, int]:
        """What hb's /run has room for and what of it is used, in KiB."""
        told = os.statvfs(self.hb.path("/run"))
        return told.f_blocks * told.f_frsize >> 10, (told.f_blocks - told.f_bfree) * told.f_frsize >> 10

    def resize_run(self, kib: int, *, check: bool = True) -> subprocess.CompletedProcess:
        """Gives hb's /run so much room."""
        return self.hb.run("nsenter", "-t", "1", "-m", "--", "mount", "-o", f"remount,size={kib}k", "/run", check=check)

    def test_a_destination_that_dies_with_the_commit_runs_the_container_when_it_is_back(self) -> None:
        client = self.start_load()
        held = self.hb.path("/run/godwit")
        move = self.begin_move(self.name)
        move.until("restore")
        # The source's agent stands still until the destination's has said that it is ready and has died.
        self.ha.run("kill", "-STOP", str(self.ha.daemon_pid("agent")))
        self.soon("the restore to be held", lambda: any(entry.name == "hold.json" for entry in held.glob("tasks/*/*")))
        time.sleep(1)
        self.kill_agent(self.hb)
        self.ha.run("kill", "-CONT", str(self.ha.daemon_pid("agent")))
        self.assertEqual(3, move.end().code, move.said)
        self.soon("ha to have stopped it", lambda: self.containers(self.ha).get(self.name) == "exited")
        self.start_agent(self.hb)
        self.goes_on(client)
        self.soon("ha to let go", lambda: self.name not in self.containers(self.ha))
        self.assertEqual("running", self.containers(self.hb)[self.name])
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)
        self.kept_all(client)
