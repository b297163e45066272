"""Kills for want of memory: each is told once, and before the end of what it kills."""

from tests.checkpoints import CheckpointTest
from tests.containerd import Listener

LIMIT = ("--memory", "24m", "--memory-swap", "24m")
# What `tail` reads without an end of line it keeps.
GREEDY = "tail /dev/zero"


class OutOfMemory(CheckpointTest):
    """A container with little memory."""

    def setUp(self) -> None:
        super().setUp()
        if self.ha.state()["cgroups"] != "v1":
            self.skipTest("this machine's cgroup v2 has no memory controller; godwit-runtime's oom::tests show it on files")

    def told(self, events: Listener, container_id: str) -> list[str]:
        """The container's events that matter here, when it is gone."""
        events.wait("its deletion", lambda: "delete" in map(str, events.of(container_id)))
        return [str(event) for event in events.of(container_id) if str(event) in ("oom", "exit")]

    def test_each_kill_of_a_child_is_told_once(self) -> None:
        with Listener(self.ha) as events:
            script = f"for n in 1 2 3; do {GREEDY}; echo $?; sleep 0.5; done; while :; do sleep 0.1; done"
            name = self.start("busybox", "sh", "-c", script, options=LIMIT)
            container_id = self.inspect(name, "{{.Id}}")
            self.soon("three kills", lambda: self.logs(name).count("137") == 3)
            self.assertEqual("running", self.status(name))
            self.docker("rm", "--force", name)
            self.assertEqual(["oom"] * 3 + ["exit"], self.told(events, container_id))

    def test_the_kill_of_the_init_is_told_before_its_end(self) -> None:
        with Listener(self.ha) as events:
            name = self.start("busybox", *GREEDY.split(), options=LIMIT)
            container_id = self.inspect(name, "{{.Id}}")
            self.assertEqual("137", self.docker("wait", name).stdout.strip())
            self.assertEqual(["oom", "exit"], self.told(events, container_id))
            self.assertEqual("true", self.inspect(name, "{{.State.OOMKilled}}"))

    def test_a_restored_container_is_watched_as_well(self) -> None:
        script = f"while :; do test -e /go && {GREEDY}; rm -f /go; sleep 0.1; done"
        name = self.start("busybox", "sh", "-c", script, options=LIMIT)
        self.checkpoint(name)
        self.restore(name)
        with Listener(self.ha) as events:
            container_id = self.inspect(name, "{{.Id}}")
            self.docker("exec", name, "touch", "/go")
            events.wait("a kill", lambda: "oom" in map(str, events.of(container_id)))
            self.docker("rm", "--force", name)
            self.assertEqual(["oom"], [one for one in self.told(events, container_id) if one == "oom"])
