"""Requests that cannot be served: each is answered soon and clearly, and nothing has changed on either host."""

from lab.commands import run
from lab.hosts import Host
from lab.images import import_image
from lab.layout import DISK_DIR, binaries_dir
from tests.moving import ANSWER_DEADLINE_SECONDS, FORGETFUL_REDIS, Move, MoveTest
from tests.support import STOCK_RUNTIME

FOREVER = ("busybox", "sh", "-c", "while :; do sleep 1; done")
FAILED, REFUSED, NO_AGENT = 1, 4, 5


class Refusals(MoveTest):
    """Each test asks for one thing that cannot be."""

    def start_forever(self, *options: str, command: tuple[str, ...] = FOREVER) -> str:
        """A container that could be moved, were it not for what the test does."""
        return self.start(*command, options=("--network", "none", *options))

    def refused(self, name: str, code: int, *said: str, target: str = "hb") -> Move:
        """Asks for a move as a person does, and checks the answer."""
        move = Move(self.ha, name, target, json_lines=False).end()
        self.assertEqual(code, move.code, move.said)
        for words in said:
            self.assertIn(words, move.stderr)
        self.assertLess(move.seconds, ANSWER_DEADLINE_SECONDS, move.stderr)
        self.assertEqual("", move.stdout)
        return move

    def untouched(self, name: str, code: int, *said: str, target: str = "hb") -> None:
        """The same for a container that is there, of which nothing may change."""
        unmoved = self.unmoved(name)
        self.refused(name, code, *said, target=target)
        unmoved()

    # -- who and where -------------------------------------------------------------------------------------------------

    def test_an_unknown_container(self) -> None:
        self.refused("nonesuch", FAILED, "no such container: nonesuch")
        self.holds_nothing(self.hb)

    def test_an_unknown_host(self) -> None:
        self.untouched(self.start_forever(), FAILED, "unknown host hc", "peers: hb", target="hc")

    def test_the_host_it_is_on(self) -> None:
        self.untouched(self.start_forever(), FAILED, "this is host ha", target="ha")

    def test_a_name_that_could_be_a_path(self) -> None:
        self.refused("../images/json", FAILED, "../images/json")

    # -- the other agent -----------------------------------------------------------------------------------------------

    def test_a_host_whose_agent_is_stopped(self) -> None:
        name = self.start_forever()
        self.kill_agent(self.hb)
        self.untouched(name, FAILED, "no agent answers at 10.77.0.12:7433", "running on hb?")

    def test_a_host_that_does_not_answer(self) -> None:
        name = self.start_forever()
        unmoved = self.unmoved(name)
        self.cut_link()
        self.refused(name, FAILED, "hb", "10.77.0.12:7433")
        self.mend_link()
        unmoved()

    def test_a_certificate_of_another_authority(self) -> None:
        name = self.start_forever()
        godwit, other = str(binaries_dir() / "godwit"), DISK_DIR / "other-ca"
        run([godwit, "ca", "init", "--dir", str(other)])
        run([godwit, "ca", "issue", "--dir", str(other), "--host", "hb", "--address", self.hb.address, "--out", str(other / "hb")])
        with self.agent_files(self.hb, {file.name: file.read_bytes() for file in (other / "hb").iterdir()}):
            self.untouched(name, FAILED, "hb", "certificate")

    def agent_files(self, host: Host, files: dict[str, bytes]):
        """The agent's certificates replaced inside the context."""
        context = self.agent_file(host, "/etc/godwit/agent.toml", lambda text: text.replace("/etc/godwit/tls", "/etc/godwit/other"))
        for name, content in files.items():
            path = host.path(f"/etc/godwit/other/{name}")
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)
        return context

    def test_no_agent_here(self) -> None:
        self.needs_moves()
        name = self.start_forever()
        self.kill_agent(self.ha)
        self.refused(name, NO_AGENT, "agent", "/run/godwit/agent.sock")
        self.start_agent(self.ha)
        self.move_back_and_forth_is_possible(name)

    def move_back_and_forth_is_possible(self, name: str) -> None:
        """What was refused works when the reason is gone."""
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.move(name)

    # -- the other host ------------------------------------------------------------------------------------------------

    def test_a_name_that_is_taken_on_the_other_host(self) -> None:
        name = self.start_forever()
        import_image(self.hb, "busybox")
        self.docker("create", "--name", name, "busybox", host=self.hb)
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.untouched(name, REFUSED, f"hb: a container named {name} is there already")

    def test_a_host_without_criu(self) -> None:
        name = self.start_forever()
        self.hb.run("mv", "/usr/sbin/criu", "/usr/sbin/criu.away")
        self.addCleanup(self.hb.run, "mv", "/usr/sbin/criu.away", "/usr/sbin/criu")
        self.untouched(name, REFUSED, "hb: CRIU is missing", "install criu 4.2")

    def test_a_host_whose_criu_is_too_old(self) -> None:
        name = self.start_forever()
        self.criu_that('case "$*" in *--version*) echo "Version: 4.1.1"; exit;; esac')
        self.untouched(name, REFUSED, "hb: CRIU 4.1 is too old: 4.2 or newer is needed")

    def test_every_reason_is_told_at_once(self) -> None:
        name = self.start_forever("--volume", f"{self.taken_volume('data')}:/d")
        self.criu_that('case "$*" in *--version*) echo "Version: 4.1.1"; exit;; esac')
        self.docker("exec", "--detach", name, "sleep", "60")
        self.untouched(name, REFUSED, "CRIU 4.1 is too old", "volume data exists on this host already, and it is not empty", "exec'ed")

    # -- the container -------------------------------------------------------------------------------------------------

    def test_a_container_of_another_runtime(self) -> None:
        name = self.new_name()
        self.docker("run", "--detach", "--runtime", STOCK_RUNTIME, "--name", name, *FOREVER)
        self.untouched(name, REFUSED, STOCK_RUNTIME, "start it with --runtime io.containerd.godwit.v2")

    def test_a_container_with_an_exec_session(self) -> None:
        name = self.start_forever()
        self.docker("exec", "--detach", name, "sleep", "60")
        self.untouched(name, REFUSED, "exec'ed", "end them first")

    def test_a_paused_container(self) -> None:
        name = self.start_forever()
        self.docker("pause", name)
        self.untouched(name, REFUSED, f"ha: {name} is paused, not running")

    def test_a_stopped_container(self) -> None:
        name = self.start_forever()
        self.docker("kill", name)
        self.untouched(name, REFUSED, f"ha: {name} is not running\n")

    def test_a_second_move_of_the_same_container_while_the_first_is_under_way(self) -> None:
        self.needs_moves()
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(16 << 20)
        self.slow_link(80)
        first = self.begin_move(name)
        first.until("freeze")
        self.refused(name, FAILED, name, "under way")
        self.assertEqual(0, first.end().code, first.said)
        self.assertEqual("running", self.containers(self.hb).get(name))
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)
