"""A busy container that is checkpointed again and again and runs on: nothing grows, nothing is left."""

import re
import threading

from tests.checkpoints import SERVER, CheckpointTest
from tests.support import needs_slow

# Beside the answers: programs that come and go, a file that grows and shrinks, memory that changes.
BUSY = SERVER.replace(
    "connections, n_served",
    """
if os.fork() == 0:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sh", ["sh", "-c", ": >/tmp/$$"])
        os.waitpid(pid, 0)
        with open("/growing", "ab") as growing:
            growing.write(b"x" * 10000)
            if growing.tell() > 10_000_000:
                growing.truncate(0)
connections, n_served""",
    1,
)
# The first dumps make what stays: pools of memory, caches, the log's directory.
N_WARM_UP = 2
# An allocator keeps pieces of what a dump needed; a leak of one dump's state would be there fifty times.
RSS_GROWTH_KIB = 1024


class Soak(CheckpointTest):
    """Leave-running."""

    def census(self, name: str, shim: str) -> dict[str, object]:
        """All that a checkpoint may leave behind, on the host and in the container."""
        pid = self.inspect(name, "{{.State.Pid}}")
        count = {
            "descriptors of the shim": f"ls /proc/{shim}/fd | wc -l",
            "descriptors of the container": f"ls /proc/{pid}/fd | wc -l",
            "threads of the shim": f"ls /proc/{shim}/task | wc -l",
            "children of the shim": f"cat /proc/{shim}/task/*/children | wc -w",
            "mounts of the host": "wc -l </proc/self/mountinfo",
            "mounts of the shim": f"wc -l </proc/{shim}/mountinfo",
            "mounts of the container": f"wc -l </proc/{pid}/mountinfo",
            "rules of the host": "(nft list ruleset; iptables-save) 2>/dev/null | grep -cv '^#'",
            "rules of the container": f"(nsenter -t {pid} -n nft list ruleset; nsenter -t {pid} -n iptables-save) 2>/dev/null | grep -cv '^#'",
            "temporary files": "ls -A /tmp | grep -c -e criu -e crtools -e godwit -e ctrd",
            "cgroups": "find /sys/fs/cgroup -type d | wc -l",
            "control files": "find /run/godwit -not -path '*/work-*' | wc -l",
            "work directories": "find /run/godwit -name 'work-*' | wc -l",
            "logs kept": "ls /var/log/godwit | wc -l",
            "files of the bundle": f"ls -A /run/containerd/io.containerd.runtime.v2.task/moby/{self.inspect(name, '{{.Id}}')} | wc -l",
        }
        script = "; ".join(f"echo $( {command} )" for command in count.values())
        return dict(zip(count, self.ha.run("sh", "-c", script).stdout.split(), strict=True))

    def rss_kib(self, shim: str) -> int:
        return int(re.search(r"^VmRSS:\s+(\d+)", self.ha.run("cat", f"/proc/{shim}/status").stdout, re.MULTILINE).group(1))

    def survive(self, n_checkpoints: int) -> None:
        name = self.serve("--publish", "8080:80", "--annotation", "io.godwit.checkpoint.leave-running=true",
                          command=("python3", "-c", BUSY))  # fmt: skip
        link, asked = self.link("client", self.ha.address, 8080), self.link("ha", self.address(name))
        container_id = self.inspect(name, "{{.Id}}")
        lines = self.ha.run("ps", "ax", "-o", "pid,args").stdout.splitlines()
        (shim,) = (line.split()[0] for line in lines if container_id in line and "containerd-shim" in line)
        answers, stop, errors = [link.ask()], threading.Event(), []

        def ask() -> None:
            try:
                while not stop.is_set():
                    answers.append(link.ask())
            except OSError as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(N_WARM_UP):
                self.checkpoint_and_drop(name)
            before, rss_before = self.census(name, shim), self.rss_kib(shim)
            for _ in range(n_checkpoints):
                self.checkpoint_and_drop(name)
            self.soon("the helpers to end", lambda: not self.helpers())
            self.assertEqual(before, self.census(name, shim))
            self.assertLess(self.rss_kib(shim) - rss_before, RSS_GROWTH_KIB)
        finally:
            stop.set()
            asking.join()
        self.assertEqual([], errors)
        # Each answer is one more than the last: none was lost, none was given twice.
        self.assertEqual(list(range(1, len(answers) + 1)), answers)
        self.assertEqual(len(answers) + 1, asked.ask())
        self.assert_runs_on(name, asked)

    def checkpoint_and_drop(self, name: str) -> None:
        self.checkpoint(name)
        self.docker("checkpoint", "rm", name, "c1")

    def test_five_checkpoints_leave_nothing(self) -> None:
        self.survive(5)

    @needs_slow
    def test_fifty_checkpoints_leave_nothing(self) -> None:
        self.survive(50)
