"""`godwit setup` on a host: the runtime by name, the drop-in under which all options arrive, and the undo of both."""

import json

from lab.hosts import Host
from tests import dropin
from tests.checkpoints import CheckpointTest
from tests.support import STOCK_RUNTIME

DAEMON_JSON = "/etc/docker/daemon.json"
CTR_IMAGE = "docker.io/library/busybox:latest"
COUNTER = ("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n >/next; mv /next /count; sleep 0.05; done")


class ByName(CheckpointTest):
    """Docker knows the runtime by a short name."""

    def test_docker_takes_the_runtime_and_the_undo_is_exact(self) -> None:
        before = self.ha.path(DAEMON_JSON).read_text()
        self.addCleanup(self.ha.write, DAEMON_JSON, before)
        planned = self.ha.run("godwit", "setup", "docker", "--dry-run").stdout
        self.assertIn("would change", planned)
        self.assertEqual(before, self.ha.path(DAEMON_JSON).read_text())
        said = self.ha.run("godwit", "setup", "docker").stdout
        self.assertIn("systemctl reload docker", said)
        after = json.loads(self.ha.path(DAEMON_JSON).read_text())
        self.assertEqual("io.containerd.godwit.v2", after.pop("runtimes")["godwit"]["runtimeType"])
        self.assertEqual(json.loads(before), after)
        self.reload_dockerd("godwit")
        done = self.docker("run", "--rm", "--runtime", "godwit", "--network", "none", "busybox", "echo", "up")
        self.assertEqual("up\n", done.stdout)
        self.assertIn("set up already", self.ha.run("godwit", "setup", "docker").stdout)
        self.ha.run("godwit", "setup", "docker", "--undo")
        self.assertEqual(before, self.ha.path(DAEMON_JSON).read_text())
        self.assertIn("nothing to undo", self.ha.run("godwit", "setup", "docker", "--undo").stdout)

    def reload_dockerd(self, runtime: str) -> None:
        """What `systemctl reload docker` does."""
        self.ha.run("kill", "-HUP", str(self.ha.daemon_pid("dockerd")))
        self.soon("the runtime", lambda: runtime in self.docker("info", "--format", "{{json .Runtimes}}").stdout)

    def test_what_it_cannot_understand_it_refuses_and_leaves(self) -> None:
        before = self.ha.path(DAEMON_JSON).read_text()
        self.addCleanup(self.ha.write, DAEMON_JSON, before)
        self.ha.write(DAEMON_JSON, "{ // mine\n}")
        done = self.ha.run("godwit", "setup", "docker", check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn(f"{DAEMON_JSON} cannot be changed: it is no JSON", done.stderr)
        self.assertEqual("{ // mine\n}", self.ha.path(DAEMON_JSON).read_text())


class DropIn(CheckpointTest):
    """Under the stock runtime's name, as Docker and ctr use it when nothing is said."""

    runtime = STOCK_RUNTIME

    @classmethod
    def setUpClass(cls) -> None:
        dropin.install(Host("ha"))
        cls.addClassCleanup(dropin.remove, Host("ha"))

    def shim_of(self, name: str) -> str:
        """The program that serves a container."""
        pid = self.ha.run("pgrep", "-f", f"^\\S*containerd-shim-.*{self.inspect(name, '{{.Id}}')}").stdout.split()[0]
        return self.ha.run("readlink", f"/proc/{pid}/exe").stdout.strip()

    def test_every_container_gets_our_shim(self) -> None:
        name = self.new_name()
        self.docker("run", "--detach", "--name", name, "--network", "none", "busybox", "sleep", "1000")
        self.assertEqual("/usr/local/bin/containerd-shim-godwit-v2", self.shim_of(name))

    def test_leave_running_and_its_absence_are_as_docker_documents(self) -> None:
        name = self.serve()
        link = self.link("ha", self.address(name))
        self.docker("checkpoint", "create", "--leave-running", name, "on")
        self.assert_runs_on(name, link)
        before = link.ask()
        self.checkpoint(name, "off")
        self.soon("its stop", lambda: self.status(name) == "exited")
        self.restore(name, "off")
        self.assertEqual(before + 1, link.ask())
        self.assert_no_trace(name)

    def test_ctr_checkpoints_and_options_arrive_under_the_stock_name(self) -> None:
        self.import_for_ctr()
        name = self.new_name()
        self.addCleanup(self.ha.run, "ctr", "container", "rm", name, check=False)
        self.addCleanup(self.ha.run, "ctr", "task", "rm", "--force", name, check=False)
        # an option of the stock shim's: where runC keeps its state
        self.ha.run("ctr", "run", "--detach", "--runc-root", "/run/other-root", CTR_IMAGE, name, *COUNTER)
        self.assertEqual([name], self.ha.run("ls", "/run/other-root/default").stdout.split())
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/image", "/run/other-root")
        self.ha.run("mkdir", "-m", "700", "/run/image")
        self.ha.run("ctr", "task", "checkpoint", "--image-path", "/run/image", name)
        self.assertIn("RUNNING", self.ha.run("ctr", "task", "ls").stdout)
        self.assertIn("godwit.json", self.ha.run("ls", "/run/image").stdout)
        self.ha.run("ctr", "task", "checkpoint", "--exit", name)
        self.soon("its end", lambda: "STOPPED" in self.ha.run("ctr", "task", "ls").stdout)

    def test_a_runc_that_does_not_exist_or_is_none_is_named(self) -> None:
        self.import_for_ctr()
        for binary in ("/no/such/runc", "/etc/hostname"):
            done = self.ha.run("ctr", "run", "--rm", "--runc-binary", binary, CTR_IMAGE, "bad", "true", check=False)
            self.ha.run("ctr", "container", "rm", "bad", check=False)
            self.assertEqual(1, done.returncode)
            self.assertIn(binary, done.stderr)
            self.soon("the shim to end", lambda: "-id bad " not in self.ha.run("ps", "ax", "-o", "args").stdout)
            self.assertEqual("", self.ha.run("sh", "-c", "find /sys/fs/cgroup /run/containerd -name bad").stdout)
            self.assertNotIn("/default/bad/", self.ha.run("cat", "/proc/self/mountinfo").stdout)
