"""Pods as Kubernetes makes them: containerd's CRI plugin asks for them, as a kubelet would have it, under the handler `godwit`.

Their network is the host's, as no CNI plugins are here.
"""

import tomllib

from lab.hosts import Host
from lab.layout import REPOSITORY
from tests import dropin
from tests.capabilities import version
from tests.cri import EXITED, NODE, RUNNING, Cri
from tests.support import EngineTest

CONFIG = "/etc/containerd/config.toml"
# Where the plugin's table is, by the version of the file; containerd 2 understands both.
PLUGIN = "io.containerd.grpc.v1.cri"
PAUSE = "docker.io/library/pause:latest"
BUSYBOX = "docker.io/library/busybox:latest"
# A score below containerd's own takes a capability that the lab may not have.
LAB_CONFIG = f"""version = 2
[plugins."{PLUGIN}"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
"""
NAMESPACES = {1: NODE, 2: 1}  # the process numbers are each container's own
LOGS = "/var/log/pods"
CHATTY = ("sh", "-c", "trap 'exit 3' TERM; n=0; while :; do n=$((n+1)); echo $n; echo $n >/next; mv /next /count; sleep 0.1; done")


class Kubernetes(EngineTest):
    """A pod of two containers."""

    @classmethod
    def setUpClass(cls) -> None:
        host = Host("ha")
        before = host.path(CONFIG).read_text()
        cls.addClassCleanup(dropin.restart, host)
        cls.addClassCleanup(host.write, CONFIG, before)
        host.write(CONFIG, LAB_CONFIG)
        host.run("godwit", "setup", "containerd")
        cls.addClassCleanup(host.run, "godwit", "setup", "containerd", "--undo")
        cls.config = tomllib.loads(host.path(CONFIG).read_text())
        dropin.restart(host)
        host.run("sh", "-ec", "docker create --name pause busybox; docker export pause "
                 """| docker import --change 'ENTRYPOINT ["/usr/bin/busybox", "sleep", "2147483647"]' - pause; docker rm pause; """
                 "docker save busybox pause | ctr --namespace k8s.io images import -")  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        self.cri = Cri(str(self.ha.path("/run/containerd/containerd.sock")))
        self.name = self.new_name()
        self.pod = {1: {1: self.name, 2: self.name, 3: "default"}, 3: f"{LOGS}/{self.name}", 8: {2: {1: NAMESPACES}}}
        self.sandbox = self.cri.run_pod_sandbox(self.pod, "godwit")
        self.addCleanup(self.remove_pod)

    def remove_pod(self) -> None:
        """As a kubelet does; a pod that is gone is no error."""
        self.cri.call("StopPodSandbox", {1: self.sandbox})
        self.cri.call("RemovePodSandbox", {1: self.sandbox})

    def add(self, name: str, *argv: str) -> str:
        """Starts a container in the pod; its id."""
        config = {1: {1: name}, 2: {1: BUSYBOX}, 3: list(argv), 11: f"{name}.log", 15: {2: {3: NAMESPACES}}}
        container = self.cri.create_container(self.sandbox, config, self.pod)
        self.cri.start_container(container)
        return container

    def log(self, name: str) -> str:
        """What the container has said, as `kubectl logs` reads it."""
        return self.ha.path(f"{LOGS}/{self.name}/{name}.log").read_text()

    def shims(self) -> list[str]:
        """The pod's shims, each by its arguments."""
        listed = self.ha.run("ps", "ax", "-o", "args=").stdout.splitlines()
        return [line for line in listed if "containerd-shim-" in line and self.sandbox in line]

    def test_two_containers_run_log_take_execs_and_end(self) -> None:
        one, two = self.add("one", *CHATTY), self.add("two", *CHATTY)
        (shim,) = self.shims()
        self.assertIn("containerd-shim-godwit-v2", shim)
        for name, container in (("one", one), ("two", two)):
            self.soon("its log", lambda name=name: " stdout F 3\n" in self.log(name))
            self.assertEqual((RUNNING, 0), self.cri.container_status(container))
            self.assertEqual(("here\n", 7), self.cri.exec_sync(container, "sh", "-c", "echo here; exit 7"))
        self.cri.stop_container(one, 10)
        self.assertEqual((EXITED, 3), self.cri.container_status(one))
        self.cri.call("RemoveContainer", {1: one})
        self.assertEqual(("here\n", 0), self.cri.exec_sync(two, "echo", "here"))
        self.remove_pod()
        self.soon("its shim to end", lambda: not self.shims())
        left = self.ha.run("ctr", "--namespace", "k8s.io", "containers", "ls", "--quiet").stdout.split()
        self.assertEqual([], [container for container in left if container in (self.sandbox, one, two)])

    def test_the_example_configures_what_setup_does(self) -> None:
        example = tomllib.loads((REPOSITORY / "contrib/kubernetes/containerd.toml").read_text())
        runtimes = [config["plugins"][PLUGIN]["containerd"]["runtimes"] for config in (example, self.config)]
        self.assertEqual(*runtimes)

    def test_a_checkpoint_is_written_and_the_container_runs_on(self) -> None:
        if version(self.ha, "ctr") < (2, 1):
            self.skipTest("containerd before 2.1 makes no checkpoint for Kubernetes")
        container = self.add("one", *CHATTY)
        self.soon("its log", lambda: " stdout F 3\n" in self.log("one"))
        archive = f"/var/log/{self.name}.tar"
        self.addCleanup(self.ha.run, "rm", "-f", archive)
        self.cri.call("CheckpointContainer", {1: container, 2: archive})
        members = self.ha.run("tar", "--list", "--file", archive).stdout
        self.assertIn("checkpoint/pages-1.img", members)
        count, _ = self.cri.exec_sync(container, "cat", "/count")
        self.soon("it to run on", lambda: self.cri.exec_sync(container, "cat", "/count")[0] != count)
