"""What may be asked of a move: another name, a source that keeps its container, an end in time, a rate."""

import json

from lab.hosts import Host
from tests.moving import FORGETFUL_REDIS, MoveTest
from tests.test_move_containerd import COUNTER, CtrMoveTest
from tests.test_move_refusals import FAILED, REFUSED

UNCONFIRMED = 3


class Kept(MoveTest):
    """Docker's containers that move under another name, or stay at the source as well, stopped."""

    def start_counter(self, *options: str) -> str:
        """A container that counts in its memory, and that Docker would start again."""
        name = self.start("busybox", *COUNTER, options=("--network", "none", "--hostname", "inside", *options))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.count(name, self.ha)
        return name

    def count(self, name: str, host: Host) -> tuple[str, int]:
        """The counter's own word, and how far it is."""
        said: list[str] = []

        def read() -> bool:
            said[:] = self.docker("exec", name, "cat", "/count", host=host, check=False).stdout.split()
            return len(said) == 2

        self.soon("the counter", read)
        return said[0], int(said[1])

    def goes_on_counting(self, name: str, since: tuple[str, int], host: Host) -> None:
        """The same process counts on."""
        word, n = self.count(name, host)
        self.assertEqual(since[0], word, "it was started afresh")
        self.assertGreaterEqual(n, since[1])
        self.soon("it to count on", lambda: self.count(name, host)[1] > n)

    def is_kept(self, name: str) -> None:
        """It is stopped on ha, and Docker lets it be."""
        self.soon("it to be stopped", lambda: self.containers(self.ha).get(name) == "exited")
        self.assertEqual("no 0", self.inspect(name, "{{.HostConfig.RestartPolicy.Name}} {{.RestartCount}}"))
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)

    def test_a_container_moves_under_another_name_and_stays_stopped_under_its_own(self) -> None:
        self.needs_moves()
        name = self.start_counter("--restart", "always")
        there = f"{name}-moved"
        self.addCleanup(lambda: self.docker("rm", "--force", there, host=self.hb, check=False))
        before = self.count(name, self.ha)
        options = ("--keep-source", "--name", there)
        plan = json.loads(self.ha.run("godwit", "plan", name, "hb", "--json", *options).stdout)
        self.assertTrue(plan["possible"], plan)
        move = self.begin_move(name, options=options).end()
        self.assertEqual(0, move.code, move.said)
        report = move.events[-1]["report"]
        self.assertEqual((name, there, "stopped", []), tuple(report[key] for key in ("container", "renamed", "source", "remarks")))
        self.goes_on_counting(there, before, self.hb)
        self.assertNotIn(name, self.containers(self.hb))
        self.assertEqual("inside", self.docker("exec", there, "hostname", host=self.hb).stdout.strip())
        self.assertEqual("always", self.inspect(there, "{{.HostConfig.RestartPolicy.Name}}", self.hb))
        self.is_kept(name)
        # its files are there as well, as they were
        self.docker("cp", f"{name}:/count", "/run/count")
        self.assertEqual(before[0], self.ha.run("cat", "/run/count").stdout.split()[0])

    def test_a_person_is_told_what_stays(self) -> None:
        self.needs_moves()
        name = self.start_counter()
        said = self.ha.run("godwit", "migrate", name, "hb", "--keep-source").stdout
        self.assertIn(f"{name} stays on ha, stopped", said)
        self.is_kept(name)
        back = self.begin_move(name, self.hb, self.ha).end()
        self.assertEqual(REFUSED, back.code, back.said)
        self.assertIn(f"a container named {name} is there already (exited)", back.message)
        back = self.begin_move(name, self.hb, self.ha, options=("--name", f"{name}-back")).end()
        self.addCleanup(self.docker, "rm", "--force", f"{name}-back", check=False)
        self.assertEqual(0, back.code, back.said)
        self.assertEqual("nothing", back.events[-1]["report"]["source"])

    def test_a_name_that_is_taken_or_is_none_is_refused(self) -> None:
        name = self.start_counter()
        self.start_other("other")
        unmoved = self.unmoved(name)
        for wrong, why in (("other", "a container named other is there already"), ("a/b", "is no name of a container")):
            move = self.begin_move(name, options=("--name", wrong)).end()
            self.assertEqual(REFUSED, move.code, move.said)
            self.assertIn(why, move.message)
        unmoved()

    def start_other(self, name: str) -> None:
        """A container of this name on hb."""
        self.image("busybox", self.hb)
        self.docker("create", "--name", name, "busybox", "true", host=self.hb)
        self.addCleanup(self.docker, "rm", "--force", name, host=self.hb)

    def test_a_container_that_docker_would_remove_is_not_kept(self) -> None:
        name = self.start_counter("--rm")
        unmoved = self.unmoved(name)
        move = self.begin_move(name, options=("--keep-source",)).end()
        self.assertEqual(REFUSED, move.code, move.said)
        self.assertIn("was started with --rm", move.message)
        unmoved()

    def test_a_source_whose_agent_dies_after_the_commit_keeps_it_when_it_is_back(self) -> None:
        self.needs_moves()
        name = self.start_counter("--restart", "always")
        before = self.count(name, self.ha)
        move = self.begin_move(name, options=("--keep-source",))
        move.until("commit")
        self.kill_agent(self.ha)
        self.assertIn(move.end().code, (0, UNCONFIRMED), move.said)
        self.goes_on_counting(name, before, self.hb)
        self.start_agent(self.ha)
        self.is_kept(name)


class KeptByContainerd(CtrMoveTest):
    """The same with containers of containerd."""

    def test_a_container_moves_under_another_id_and_stays_stopped_under_its_own(self) -> None:
        name = self.run_ctr(*COUNTER, options=("--label", "containerd.io/restart.status=running"))
        there = self.new_container()
        before, host_name = self.count(name, self.ha), self.inside(name, "hostname", host=self.ha)
        record = self.spec(name, self.ha)
        move = self.ctr_move(name, "--engine", "containerd", "--keep-source", "--name", there)
        self.assertEqual(0, move.code, move.said)
        report = move.events[-1]["report"]
        self.assertEqual((there, "stopped", []), tuple(report[key] for key in ("renamed", "source", "remarks")))
        self.goes_on_counting(there, before, self.hb)
        self.assertEqual(host_name, self.inside(there, "hostname", host=self.hb))
        self.assertEqual("running", self.labels(there, self.hb)["containerd.io/restart.status"])
        self.assertNotIn(name, self.states(self.hb))
        # the record and the files stay, and nothing starts it again
        self.assertEqual("none", self.states(self.ha)[name])
        record["Labels"].pop("containerd.io/restart.status")
        kept = self.spec(name, self.ha)
        kept["Labels"].pop("containerd.io/restart.status", None)
        self.assertEqual(record, kept)
        self.assertNotEqual("running", self.labels(name, self.ha).get("containerd.io/restart.status"))
        self.assertIn(name, self.ctr("snapshots", "ls").stdout)


# Writes two files of its root all the time, over what they hold.
CHURN_MIB = 8
CHURN_BYTES = CHURN_MIB << 20
CHURN = ("sh", "-c", f"while :; do for n in 0 1; do dd if=/dev/urandom of=/churn.$n bs=1M count={CHURN_MIB} conv=notrunc; done; done")


class Bounded(MoveTest):
    """Moves with an end in time, or a rate; nothing is said of how fast they may be, only of how slow they must be."""

    def start_churn(self) -> str:
        """A container whose files never come to rest."""
        self.image("busybox", self.hb)
        name = self.start("busybox", *CHURN, options=("--network", "none"))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.soon("files", lambda: self.docker("exec", name, "test", "-s", "/churn.1", check=False).returncode == 0)
        return name

    def sent(self, report: dict) -> int:
        """Bytes of all streams."""
        memory = report["memory"]["wire"] if report["memory"] else 0
        return sum(report["bytes"].values()) + memory

    def test_a_move_stays_below_its_rate_in_every_mode(self) -> None:
        self.needs_moves()
        for mode in ("stop", "post"):
            with self.subTest(mode=mode):
                name = self.start_redis(command=FORGETFUL_REDIS)
                self.fill(24 << 20)
                report = self.bounded(name, "--bandwidth", "40M", "--mode", mode)
                seconds = report["total_micros"] / 1e6
                self.assertGreater(self.sent(report), 24 << 20, "its memory")
                self.assertLess(self.sent(report) * 8 / seconds, 40e6 * 1.05)
                self.docker("rm", "--force", name, host=self.hb)

    def bounded(self, name: str, *options: str) -> dict:
        """The report of a move that must succeed."""
        move = self.begin_move(name, options=options).end()
        self.assertEqual(0, move.code, move.said)
        return move.events[-1]["report"]

    def test_the_agents_rate_binds_a_move_that_asked_for_none(self) -> None:
        self.needs_moves()
        with self.agent_file(self.ha, "/etc/godwit/agent.toml", lambda text: f'bandwidth = "40M"\n{text}'):
            name = self.start_churn()
            report = self.bounded(name)
            self.assertGreater(report["bytes"]["files"], 2 * CHURN_BYTES)
            self.assertLess(self.sent(report) * 8 / (report["total_micros"] / 1e6), 40e6 * 1.05)

    def test_a_move_that_takes_too_long_is_given_up_cleanly_and_one_that_does_not_is_not(self) -> None:
        self.needs_moves()
        name = self.start_churn()
        unmoved = self.unmoved(name)
        # a round alone takes six seconds
        move = self.begin_move(name, options=("--timeout", "3", "--bandwidth", "10M")).end()
        self.assertEqual(FAILED, move.code, move.said)
        self.assertIn("not committed within 3 s", move.message)
        self.assertGreater(move.seconds, 3)
        unmoved()
        self.bounded(name, "--timeout", "80")

    def test_a_timeout_amid_the_freeze_lets_the_container_run_on(self) -> None:
        self.needs_moves()
        name = self.start_redis()
        client = self.start_load()
        unmoved = self.unmoved(name)
        self.criu_that('case "$*" in swrk*) sleep 20;; esac')
        move = self.begin_move(name, options=("--timeout", "6")).end()
        self.assertEqual(FAILED, move.code, move.said)
        self.assertEqual("restore", next(event["phase"] for event in move.events if event.get("state") == "failed"))
        self.goes_on(client)
        self.kept_all(client)
        unmoved()

    def test_a_timeout_after_the_commit_changes_nothing(self) -> None:
        self.needs_moves()
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(24 << 20)
        # the memory alone, which follows after the commit, takes five seconds
        report = self.bounded(name, "--timeout", "4", "--bandwidth", "40M", "--mode", "post")
        self.assertEqual("moved", report["outcome"])
        self.assertGreater(report["total_micros"], 4_000_000)

    def test_a_move_that_is_hurried_freezes_after_the_round_that_is_under_way(self) -> None:
        self.needs_moves()
        name = self.start_churn()
        move = self.begin_move(name, options=("--bandwidth", "40M"))
        move.until_sent(1 << 20)
        migration = move.events[0]["migration"]
        self.ha.run("godwit", "force-complete", migration)
        self.assertEqual(0, move.end().code, move.said)
        # both files at first, and both in the freeze; without the word there were three rounds more
        self.assertLess(move.events[-1]["report"]["bytes"]["files"], 5 * CHURN_BYTES)
        self.assertEqual("running", self.containers(self.hb)[name])
        unknown = self.ha.run("godwit", "force-complete", migration, check=False)
        self.assertEqual(FAILED, unknown.returncode)
        self.assertIn(f"no migration {migration} from this host is under way", unknown.stderr)
