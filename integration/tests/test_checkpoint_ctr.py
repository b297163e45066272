"""containerd's own client: checkpoints to a directory and to an image, restores, and terminals."""

from tests.capabilities import version
from tests.checkpoints import CheckpointTest
from tests.support import STOCK_RUNTIME, Terminal

IMAGE = "docker.io/library/busybox:latest"
CHECKPOINT = "registry.test/web:one"
# Writes what only its memory holds: a word of its own and how far it has counted.
COUNTER = ("sh", "-c", 'word=$(cat /proc/sys/kernel/random/uuid); n=0; '
           'while :; do n=$((n+1)); echo "$word $n" >/next; mv /next /count; sleep 0.05; done')  # fmt: skip


class Ctr(CheckpointTest):
    """containerd without Docker."""

    def setUp(self) -> None:
        super().setUp()
        if self.ha.state()["cgroups"] == "v2" and "cpu" not in self.ha.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout:
            self.skipTest("ctr asks for a share of the cpu, and this machine's cgroup v2 has no cpu controller")
        self.ha.run("sh", "-c", "docker save busybox:latest | ctr images import -")
        self.addCleanup(self.ha.run, "sh", "-c", "ctr images ls -q | grep -e registry.test/ -e checkpoint/ | xargs -r ctr images rm")

    def ctr(self, *argv: str, check: bool = True):
        return self.ha.run("ctr", *argv, check=check)

    def run_counter(self, *options: str) -> str:
        name = self.new_name()
        self.addCleanup(self.remove, name)
        self.ctr("run", "--detach", "--runtime", self.runtime, *options, IMAGE, name, *COUNTER)
        return name

    def remove(self, name: str) -> None:
        self.ctr("task", "rm", "--force", name, check=False)
        self.ctr("container", "rm", name, check=False)

    def count(self, name: str) -> tuple[str, int]:
        """The counter's word, and how far it is."""
        counts: list[str] = []

        def read() -> bool:
            done = self.ctr("task", "exec", "--exec-id", "r", name, "cat", "/count", check=False)
            counts[:] = done.stdout.split()
            return len(counts) == 2

        self.soon("the counter's word", read)
        return counts[0], int(counts[1])

    def task_status(self, name: str) -> str:
        lines = self.ctr("task", "ls").stdout.splitlines()
        return next((line.split()[2] for line in lines if line.split()[0] == name), "none")

    def assert_goes_on(self, name: str, since: tuple[str, int]) -> None:
        word, n = self.count(name)
        self.assertEqual(since[0], word, "it was started afresh")
        self.assertGreaterEqual(n, since[1])
        self.soon("it to go on", lambda: self.count(name)[1] > n)

    def needs_checkpoint_options(self) -> None:
        if self.runtime != STOCK_RUNTIME and version(self.ha, "ctr") < (2, 0):
            self.skipTest("ctr before 2.0 sends checkpoint options to the stock runtime's name only")

    def test_a_checkpoint_to_a_directory_leaves_it_running(self) -> None:
        self.needs_checkpoint_options()
        name = self.run_counter()
        before = self.count(name)
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/image", "/run/work")
        self.ha.run("mkdir", "-m", "700", "/run/image", "/run/work")
        self.ctr("task", "checkpoint", "--image-path", "/run/image", "--work-path", "/run/work", name)
        self.assertEqual("RUNNING", self.task_status(name))
        self.assert_goes_on(name, before)
        files = self.ha.run("ls", "/run/image", "/run/work").stdout.split()
        for file in ("inventory.img", "pages-1.img", "godwit.json", "dump.log"):
            self.assertIn(file, files)
        self.assertEqual([], self.helpers())

    def test_a_checkpoint_with_exit_ends_it(self) -> None:
        self.needs_checkpoint_options()
        name = self.run_counter()
        self.count(name)
        self.ctr("task", "checkpoint", "--exit", name)
        self.soon("its end", lambda: self.task_status(name) == "STOPPED")

    def test_a_container_comes_back_from_an_image_with_its_files(self) -> None:
        name = self.run_counter()
        self.ctr("task", "exec", "--exec-id", "w", name, "sh", "-c", "echo kept >/note")
        before = self.count(name)
        self.ctr("container", "checkpoint", "--task", "--rw", name, CHECKPOINT)
        self.assertEqual("RUNNING", self.task_status(name))
        self.assert_goes_on(name, before)
        self.ctr("task", "rm", "--force", name)
        self.ctr("container", "rm", name)
        self.ctr("container", "restore", "--rw", "--live", name, CHECKPOINT)
        self.assert_goes_on(name, before)
        self.assertEqual("kept\n", self.ctr("task", "exec", "--exec-id", "c", name, "cat", "/note").stdout)
        info = self.ctr("container", "info", name).stdout
        self.assertIn(self.runtime, info)

    def test_a_copy_beside_the_living_one_is_refused_with_the_cause(self) -> None:
        if version(self.ha, "runc") < (1, 2):
            self.skipTest("runC before 1.2 lets a container into the cgroup of another")
        name = self.run_counter()
        before = self.count(name)
        self.ctr("container", "checkpoint", "--task", "--rw", name, CHECKPOINT)
        copy = self.new_name()
        self.addCleanup(self.remove, copy)
        done = self.ctr("container", "restore", "--rw", "--live", copy, CHECKPOINT, check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn("cgroup is not empty", done.stderr)
        self.assert_goes_on(name, before)
        self.assertEqual("none", self.task_status(copy))

    def test_a_container_with_a_terminal_comes_back_with_one(self) -> None:
        name = self.new_name()
        self.addCleanup(self.remove, name)
        # ctr wants a terminal itself when the container has one
        with Terminal(self.ha, "ctr", "run", "--detach", "--tty", "--runtime", self.runtime, IMAGE, name, *COUNTER) as run:
            self.assertEqual(0, run.exit_code(), run.output)
        before = self.count(name)
        self.ctr("container", "checkpoint", "--task", "--rw", name, CHECKPOINT)
        self.assert_goes_on(name, before)
        self.ctr("task", "rm", "--force", name)
        self.ctr("container", "rm", name)
        with Terminal(self.ha, "ctr", "container", "restore", "--rw", "--live", name, CHECKPOINT):
            self.assert_goes_on(name, before)
            link = self.ctr("task", "exec", "--exec-id", "t", name, "readlink", "/proc/1/fd/1").stdout
            self.assertIn("/dev/pts/0", link)
