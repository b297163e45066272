"""The examples in every command's `--help`, which its manual page has too, run as they stand on a host.

The lab is given what they speak of: a container `redis` with a volume `data`, one of containerd in the namespace `birds`, one
called `web` with its checkpoints, and a move for each id. What an example is piped to is left out. Those that need nothing of this are run by `migrate/tests/examples.rs` as well.
"""

import json
import re
import shlex

from tests.checkpoints import CheckpointTest
from tests.support import STOCK_RUNTIME
from tests.test_move_containerd import COUNTER, CtrMoveTest

NAME, WEB = "redis", "web"
IMAGE, KEPT = "/var/tmp/one", "/var/tmp/kept"
EXIT_FAILED, EXIT_REFUSED = 1, 4
ID = re.compile(r"\b[0-9a-f]{16}\b")
# Examples that cannot succeed here, with what they say then.
ELSEWHERE = {
    "godwit agent": (EXIT_FAILED, "an agent is running already"),
    "godwit agent --config ./agent.toml": (EXIT_FAILED, "cannot read the configuration ./agent.toml"),
    "godwit migrations abort": (EXIT_FAILED, "is over"),
    "godwit migrations recover": (EXIT_FAILED, ""),
    "godwit force-complete": (EXIT_FAILED, ""),
}


class Examples(CtrMoveTest, CheckpointTest):
    """Each is run, and ends as its page says."""

    def setUp(self) -> None:
        super().setUp()
        if self.runtime == STOCK_RUNTIME:
            self.skipTest("under the stock runtime's name a move is refused")
        for host in self.hosts:
            self.addCleanup(self.docker, "rm", "--force", "--volumes", NAME, host=host, check=False)
            self.addCleanup(self.docker, "volume", "rm", "--force", "data", host=host, check=False)
        self.addCleanup(self.docker, "image", "rm", "--force", "redis-checkpoint:1", check=False)
        self.addCleanup(self.docker, "rm", "--force", WEB, "again", check=False)
        self.addCleanup(self.ha.run, "rm", "-rf", IMAGE, KEPT)
        self.directory = self.ha.run("mktemp", "-d").stdout.strip()
        self.addCleanup(self.ha.run, "rm", "-r", self.directory)

    def examples(self, *command: str) -> list[str]:
        """The lines below `Examples:`, without what is said of them."""
        text = self.ha.run("godwit", *command, "--help").stdout
        block = text.partition("Examples:\n")[2].partition("\n\n")[0]
        return [re.split(r" {3,}| \| ", line.strip())[0] for line in block.splitlines()]

    def commands(self) -> list[str]:
        """What `godwit --help` lists."""
        block = self.ha.run("godwit", "--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0]
        return [line.split()[0] for line in block.splitlines() if line.split()[0] != "help"]

    def here(self) -> None:
        """The containers of the examples run on ha; the volume is where the container is."""
        if NAME not in self.docker("ps", "--format", "{{.Names}}").stdout.split():
            self.nowhere()
            self.docker("run", "--detach", "--name", NAME, "--runtime", self.runtime, "--network", "none", "--volume", "data:/data",
                        self.image("redis"))  # fmt: skip

        if "counter" not in self.ctr("-n", "birds", "container", "ls", "--quiet").stdout.split():
            self.ctr("-n", "birds", "task", "rm", "--force", "counter", host=self.hb, check=False)
            self.ctr("-n", "birds", "container", "rm", "counter", host=self.hb, check=False)
            self.ctr("-n", "birds", "run", "--detach", "--runtime", self.runtime, "docker.io/library/busybox:latest", "counter",
                     *COUNTER)  # fmt: skip

    def nowhere(self) -> None:
        """Neither the container nor its volume is on any host."""
        for host in self.hosts:
            self.docker("rm", "--force", "--volumes", NAME, host=host, check=False)
            self.docker("volume", "rm", "--force", "data", host=host, check=False)

    def move_id(self) -> str:
        """The last move."""
        return json.loads(self.ha.run("godwit", "migrations", "--json").stdout)[0]["migration"]

    def check(self, line: str) -> None:
        """Runs one example in a directory of its own."""
        if line.startswith("godwit import "):
            self.nowhere()
        else:
            self.here()
        if line.endswith(" -o -"):
            line += " >/dev/null"  # what it is piped to is left out
        if line.startswith(f"godwit restore {WEB}"):
            self.docker("kill", WEB, check=False)
        if ID.search(line):
            line = ID.sub(self.move_id(), line)
        done = self.ha.run("sh", "-c", f"cd {shlex.quote(self.directory)} && {line}", check=False)
        known = next((told for start, told in ELSEWHERE.items() if line == start or ID.sub("", line).strip() == start), (0, ""))
        if "--mode pre" in line and done.returncode == EXIT_REFUSED:
            known = (EXIT_REFUSED, "memory cannot be copied beforehand")
        self.assertEqual(known[0], done.returncode, f"{line}: {done.stdout}{done.stderr}")
        self.assertIn(known[1], done.stdout + done.stderr, line)

    def start_web(self) -> None:
        """A container that is stopped, with the checkpoints that the examples name."""
        self.docker("run", "--detach", "--name", WEB, "--runtime", self.runtime, "--network", "none", "busybox", *COUNTER)
        self.ha.run("mkdir", "--mode", "700", KEPT)
        self.past_leftovers("checkpoint", "create", "--checkpoint-dir", KEPT, WEB, "one")
        self.ha.run("godwit", "restore", WEB, "one", "--checkpoint-dir", KEPT)
        self.past_leftovers("checkpoint", "create", WEB, "one")
        self.ha.run("sh", "-c", f"cp -a /var/lib/docker/containers/*/checkpoints/one {IMAGE}")
        # the least that an archive has
        self.ha.run("tar", "-cf", f"{self.directory}/web.tar", "-C", IMAGE, "--transform", "s,^[.],checkpoint,", ".")

    def test_every_example_of_a_help_text_ends_as_it_says(self) -> None:
        self.load("docker.io/library/busybox:latest", namespace="birds")
        self.new_container("birds")
        for host in self.hosts:
            self.addCleanup(self.ctr, "-n", "birds", "container", "rm", "counter", host=host, check=False)
            self.addCleanup(self.ctr, "-n", "birds", "task", "rm", "--force", "counter", host=host, check=False)
        self.start_web()
        n_run = 0
        for command in ((), *((name,) for name in self.commands())):
            lines = self.examples(*command)
            self.assertTrue(lines, command)
            for line in lines:
                with self.subTest(line):
                    self.check(line)
                n_run += 1
        self.assertGreater(n_run, 20)
        self.ha.run("godwit", "setup", "docker", "--undo")
