"""Events: in the order in which things happened, each once, also while containerd is away, hangs or is killed."""

import signal
import time
import unittest

from tests.containerd import IMAGE, ContainerdTest, Listener
from tests.support import RUNTIME, STOCK_RUNTIME, needs_slow

is_stock = RUNTIME == STOCK_RUNTIME
WAIT_FOR_GO = "while [ ! -e /go/{0} ]; do sleep 0.05; done"


class Events(ContainerdTest):
    """What `ctr events` shows."""

    def lived(self, listener: Listener, name: str) -> list[str]:
        """The topics told of a container, after its last one."""
        listener.wait(f"the end of {name}", lambda: any(str(event) == "delete" for event in listener.of(name)))
        return [str(event) for event in listener.of(name)]

    def test_a_life_is_told_in_order(self) -> None:
        name = self.new_task_name()
        with Listener(self.ha) as listener:
            self.ctr("run", "--detach", "--null-io", "--runtime", self.runtime, IMAGE, name, "sleep", "1000")
            self.ctr("task", "exec", "--exec-id", "e1", name, "sh", "-c", "exit 4", check=False)
            self.ctr("task", "pause", name)
            self.ctr("task", "resume", name)
            self.ctr("task", "kill", "--signal", "SIGKILL", name)
            self.soon("its end", lambda: self.task_status(name) == "STOPPED")
            self.ctr("task", "rm", name)
            topics = self.lived(listener, name)
            told = listener.of(name)
        self.assertEqual(
            ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"], topics
        )
        pid = told[0].body["pid"]
        self.assertEqual([pid, pid, pid], [told[n].body["pid"] for n in (1, 7, 8)])
        self.assertEqual(("e1", 4), (told[4].body["id"], told[4].body["exit_status"]))
        self.assertEqual(told[3].body["pid"], told[4].body["pid"])
        self.assertEqual((name, 137), (told[7].body["id"], told[7].body["exit_status"]))
        self.assertEqual(told[7].body["exited_at"], told[8].body["exited_at"])

    def test_processes_that_end_at_once_are_told_in_order_with_their_codes(self) -> None:
        n_lives = 8
        name = self.run_detached("sleep", "1000")
        with Listener(self.ha) as listener:
            # all at once, so that some end before the answer to their start
            script = (
                f"for n in $(seq {n_lives}); do "
                f"ctr task exec --exec-id quick$n {name} sh -c 'exit '$n & "
                f"ctr run --rm --null-io --runtime {self.runtime} {IMAGE} {name}-$n sh -c 'exit '$n & "
                "done; wait"
            )
            self.ha.run("sh", "-c", script)
            listener.wait("all ends", lambda: sum(str(event) == "delete" for event in listener.events) == n_lives)
            listener.wait("all execs", lambda: sum(str(event) == "exit" for event in listener.of(name)) == n_lives)
            for n in range(1, n_lives + 1):
                self.assertEqual(["create", "start", "exit", "delete"], self.lived(listener, f"{name}-{n}"))
                self.assertEqual(n, listener.of(f"{name}-{n}")[2].body["exit_status"])
                told = [event for event in listener.of(name)
                        if f"quick{n}" in (event.body.get("exec_id"), event.body.get("id"))]  # fmt: skip
                self.assertEqual(["exec-added", "exec-started", "exit"], [str(event) for event in told])
                self.assertEqual(n, told[2].body["exit_status"])

    def test_a_lack_of_memory_is_told_before_the_exit(self) -> None:
        if self.ha.state()["cgroups"] != "v1":
            self.skipTest("needs a memory controller")
        name = self.new_task_name()
        with Listener(self.ha) as listener:
            self.ctr("run", "--rm", "--null-io", "--memory-limit", str(16 << 20), "--runtime", self.runtime, IMAGE, name,
                     "sh", "-c", "head -c 200000000 /dev/zero | tail -c 100000000", check=False)  # fmt: skip
            topics = self.lived(listener, name)
        self.assertIn("oom", topics)
        self.assertLess(topics.index("oom"), topics.index("delete"))

    def waiters(self, n_containers: int) -> tuple[str, list[str]]:
        """Containers that end with 1, 2, 3... when a file of that name appears in the directory."""
        directory = self.new_directory()
        mount = f"type=bind,src={directory},dst=/go,options=rbind:rw"
        names = [
            self.run_detached("sh", "-c", f"{WAIT_FOR_GO.format(n)}; exit {n}", options=("--null-io", "--mount", mount))
            for n in range(1, n_containers + 1)
        ]
        return directory, names

    def exits(self, listener: Listener, name: str) -> list[tuple[str, int]]:
        """Which processes of a container were told to have ended, and how. containerd itself removes a task that it
        finds ended when it comes back."""
        told = [event.body for event in listener.of(name) if str(event) == "exit"]
        return [(body["id"], body["exit_status"]) for body in told]

    def go(self, directory: str, numbers: range) -> None:
        """Lets containers end, one after the other."""
        for n in numbers:
            self.ha.write(f"{directory}/{n}", "")
            time.sleep(0.2)

    @unittest.skipIf(is_stock, "stock sends what waited before anybody listens again, or gives it up")
    def test_ends_while_containerd_is_dead_are_told_once_when_it_is_back(self) -> None:
        directory, names = self.waiters(4)
        # one shim sees an exec end as well: its events are in order
        self.ha.run("ctr", "task", "exec", "--detach", "--exec-id", "e1", names[3], "sh", "-c", "while [ ! -e /go/3 ]; do sleep 0.05; done; exit 9")  # fmt: skip
        self.ha.signal_daemon("containerd", signal.SIGKILL)
        self.go(directory, range(1, 5))
        self.ha.start_daemon("containerd")
        with Listener(self.ha) as listener:  # not there at once, as Docker is not
            listener.wait("all ends", lambda: all("exit" in map(str, listener.of(name)) for name in names))
            listener.settle(1)
            for n, name in enumerate(names[:3], start=1):
                self.assertEqual([(name, n)], self.exits(listener, name))
            self.assertEqual([("e1", 9), (names[3], 4)], self.exits(listener, names[3]))

    @needs_slow
    def test_ends_while_containerd_hangs_are_told_once(self) -> None:
        directory, names = self.waiters(2)
        pid = self.ha.daemon_pid("containerd")
        with Listener(self.ha) as listener:
            self.ha.run("kill", "-STOP", str(pid))
            try:
                self.go(directory, range(1, 3))
                time.sleep(6)  # longer than stock waits for an answer before it sends again
            finally:
                self.ha.run("kill", "-CONT", str(pid))
            listener.wait("both ends", lambda: all("exit" in map(str, listener.of(name)) for name in names))
            listener.settle(2)
            if not is_stock:
                for n, name in enumerate(names, start=1):
                    self.assertEqual([(name, n)], self.exits(listener, name))

    @needs_slow
    @unittest.skipIf(is_stock, "stock gives an event up after five attempts")
    def test_no_end_is_lost_over_many_kills_of_containerd(self) -> None:
        for _ in range(5):
            directory, names = self.waiters(6)
            self.go(directory, range(1, 3))
            self.ha.signal_daemon("containerd", signal.SIGKILL)
            self.go(directory, range(3, 5))
            self.ha.start_daemon("containerd")
            with Listener(self.ha) as listener:
                self.go(directory, range(5, 7))
                late = names[2:]
                listener.wait("the late ends", lambda late=late: all("exit" in map(str, listener.of(name)) for name in late))
                for n, name in enumerate(late, start=3):
                    self.assertEqual([(name, n)], self.exits(listener, name))
