"""Pods: containers which an annotation groups share one shim, as those of Kubernetes do."""

from tests.specs import SpecTest
from tests.support import STOCK_RUNTIME

SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
KIND = "io.kubernetes.cri.container-type"
GROUP = "io.containerd.runc.v2.group"


class Pods(SpecTest):
    """A sandbox and its members."""

    def pod(self, annotation: str = SANDBOX_ID, n_members: int = 2) -> list[str]:
        """Starts a sandbox, and members that share its network and its semaphores; their names, the sandbox's first."""
        sandbox = self.new_name()
        self.run_spec(sandbox, annotations={annotation: sandbox, KIND: "sandbox"})
        pid = self.task_pid(sandbox)
        shared = {"network": f"/proc/{pid}/ns/net", "ipc": f"/proc/{pid}/ns/ipc", "uts": f"/proc/{pid}/ns/uts"}
        members = [self.new_name() for _ in range(n_members)]
        for member in members:
            self.run_spec(member, annotations={annotation: sandbox, KIND: "container"}, namespaces=shared)
        return [sandbox, *members]

    def shims(self, *names: str) -> dict[str, str]:
        """The shims that were started for these containers: container and pid."""
        binary = "containerd-shim-" + "-".join(self.runtime.split(".")[-2:])
        lines = (line.split() for line in self.ha.run("ps", "ax", "-o", "pid,args").stdout.splitlines())
        started = [words for words in lines if words[1].endswith(binary) and "-id" in words]
        found = {words[words.index("-id") + 1]: words[0] for words in started}
        return {name: pid for name, pid in found.items() if name in names}

    def works(self, name: str) -> bool:
        """Whether a process can be started in it."""
        done = self.ctr("task", "exec", "--exec-id", "e", name, "echo", "here", check=False)
        return done.stdout == "here\n"

    def sockets(self) -> set[str]:
        return set(self.ha.run("ls", "/run/containerd/s").stdout.split())

    def assert_nothing_left(self, names: list[str], sockets: set[str]) -> None:
        self.soon("the shim to end", lambda: not self.shims(*names))
        self.soon("its socket to go", lambda: self.sockets() <= sockets)
        bundles = self.ha.run("ls", "/run/containerd/io.containerd.runtime.v2.task/default", check=False).stdout.split()
        self.assertEqual(set(), set(bundles) & set(names))
        self.assertEqual("", self.ha.run("sh", "-c", "ls /run/godwit/tasks 2>/dev/null || true").stdout)

    def test_two_pods_have_one_shim_each_which_ends_with_the_last_container(self) -> None:
        before = self.sockets()
        new, old = self.pod(SANDBOX_ID), self.pod(GROUP)
        self.assertEqual({new[0], old[0]}, set(self.shims(*new, *old)))
        self.assertEqual(2, len(self.sockets() - before))
        for name in (*new, *old):
            self.assertTrue(self.works(name), name)
        sandbox, first, second = new
        self.remove(first)
        self.assertTrue(self.works(second))
        self.remove(second)
        self.assertTrue(self.works(sandbox))
        self.assertEqual({new[0], old[0]}, set(self.shims(*new, *old)))
        self.remove(sandbox)
        self.soon("the first pod's shim to end", lambda: set(self.shims(*new, *old)) == {old[0]})
        self.assertTrue(all(self.works(name) for name in old))
        for name in old:
            self.remove(name)
        self.assert_nothing_left([*new, *old], before)

    def test_a_member_outlives_the_sandbox_and_one_that_ends_stays_until_deleted(self) -> None:
        before = self.sockets()
        sandbox, first, second = self.pod()
        self.ctr("task", "kill", "--signal", "SIGKILL", first)
        self.soon("its end", lambda: not self.task_pid(first))
        self.remove(sandbox)
        self.assertTrue(self.works(second))
        self.assertEqual({sandbox}, set(self.shims(sandbox, first, second)))
        self.remove(first)
        self.assertTrue(self.works(second))
        self.remove(second)
        self.assert_nothing_left([sandbox, first, second], before)

    def test_a_pod_whose_shim_is_killed_is_cleaned_up_whole(self) -> None:
        before = self.sockets()
        names = self.pod()
        pids = [self.task_pid(name) for name in names]
        (shim,) = self.shims(*names).values()
        self.ha.run("kill", "-9", shim)
        self.soon("containerd to see it", lambda: not any(self.task_pid(name) for name in names))
        self.soon("the processes to end", lambda: not any(self.ha.path(f"/proc/{pid}").exists() for pid in pids))
        for name in names:
            self.remove(name)
        self.assert_nothing_left(names, before)
        self.assertEqual("", self.ha.run("sh", "-c", "find /sys/fs/cgroup -type d -path '*/specs/t*'").stdout)

    def test_a_member_is_checkpointed_while_it_and_its_pod_run_on(self) -> None:
        self.needs_checkpoint_options()
        sandbox, first, second = self.pod()
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/member")
        self.ha.run("mkdir", "-m", "700", "/run/member")
        self.ctr("task", "checkpoint", "--image-path", "/run/member", first)
        self.assertIn("godwit.json", self.ha.run("ls", "/run/member").stdout)
        for name in (sandbox, first, second):
            self.assertTrue(self.works(name), name)

    def test_the_shims_out_of_memory_score_is_that_of_the_stock_shim(self) -> None:
        def score(pid: str) -> int:
            return int(self.ha.run("cat", f"/proc/{pid}/oom_score_adj").stdout)

        scores = {}
        for runtime in (self.runtime, STOCK_RUNTIME):
            self.runtime = runtime
            (name,) = self.pod(n_members=0)
            scores[runtime] = score(self.shims(name)[name])
        self.assertEqual({score(str(self.ha.daemon_pid("containerd"))) + 1}, set(scores.values()), scores)
