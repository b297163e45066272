"""Restarts: containerd, dockerd or the shim itself goes, by request or by SIGKILL, and nothing that runs is lost."""

import json
import signal
import time
import unittest

from tests.containerd import TASKS, shim_pid
from tests.support import RUNTIME, STOCK_RUNTIME, EngineTest, needs_slow

is_stock = RUNTIME == STOCK_RUNTIME
stock_never_tells = unittest.skipIf(is_stock, "stock sends ends before Docker listens again, or gives them up")
# Counts in its memory and on its output, and ends with the code that appears in a file.
COUNTER = "n=0; while [ ! -e /end ]; do n=$((n+1)); echo $n; sleep 0.1; done; exit $(cat /end)"
# containerd has been back for 5 s before a shim tells it what it has missed, so that Docker hears it.
MISSED_SECONDS = 30.0


class RestartTest(EngineTest):
    """Docker's containers on ha while its daemons come and go. Afterwards the daemons are as they were."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.bring_back)

    def bring_back(self) -> None:
        for daemon in ("containerd", "dockerd"):
            if self.ha.daemon_pid(daemon) is None:
                self.ha.start_daemon(daemon)

    def counter(self) -> str:
        """A container that counts, and has begun."""
        name = self.start("busybox", "sh", "-c", COUNTER, options=("--stop-timeout", "1"))
        self.soon("its output", lambda: self.logs(name) != "")
        return name

    def end(self, pid: int, code: int) -> None:
        """Lets a counter end without the help of any daemon."""
        (self.ha.path(f"/proc/{pid}/root/end")).write_text(f"{code}\n")

    def pid(self, name: str) -> int:
        return int(self.inspect(name, "{{.State.Pid}}"))

    def state(self, name: str) -> str:
        return self.inspect(name, "{{.State.Status}} {{.State.ExitCode}}")

    def ends_as(self, name: str, state: str) -> None:
        """Docker finds out, in its own time."""
        self.soon_after_restart(f"Docker to say {state} of {name}", lambda: self.state(name) == state)

    def soon_after_restart(self, what: str, condition) -> None:
        ends_at = time.monotonic() + MISSED_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), ends_at, what)
            time.sleep(0.1)

    def assert_works(self, name: str, pid: int) -> None:
        """The container is the same, and all that can be done with one is done with it."""
        self.assertEqual(f"running {pid}", self.inspect(name, "{{.State.Status}} {{.State.Pid}}"))
        done = self.docker("exec", name, "sh", "-c", "echo in; exit 3", check=False)
        self.assertEqual(("in\n", 3), (done.stdout, done.returncode), done.stderr)
        before = len(self.logs(name).split())
        self.soon("its output to go on", lambda: len(self.logs(name).split()) > before)
        numbers = [int(number) for number in self.logs(name).split()]
        self.assertEqual(list(range(1, len(numbers) + 1)), numbers, "output was lost")
        self.docker("pause", name)
        self.docker("unpause", name)

    def restart(self, daemon: str, number: signal.Signals) -> None:
        self.ha.signal_daemon(daemon, number)
        self.ha.start_daemon(daemon)


class Containerd(RestartTest):
    """containerd goes; Docker stays."""

    def assert_survives(self, number: signal.Signals) -> None:
        name, other = self.counter(), self.counter()
        pid = self.pid(name)
        self.restart("containerd", number)
        self.soon_after_restart("Docker to find containerd", lambda: self.docker("exec", name, "true", check=False).returncode == 0)
        self.assert_works(name, pid)
        self.end(self.pid(other), 7)
        self.ends_as(other, "exited 7")
        self.docker("stop", "--time", "1", name)
        self.assertEqual("exited 137", self.state(name))

    @needs_slow
    def test_containers_survive_its_restart(self) -> None:
        self.assert_survives(signal.SIGTERM)

    def test_containers_survive_its_kill(self) -> None:
        self.assert_survives(signal.SIGKILL)

    @stock_never_tells
    def test_docker_hears_of_what_ended_meanwhile(self) -> None:
        names = [self.counter() for _ in range(3)]
        pids = [self.pid(name) for name in names]
        self.ha.signal_daemon("containerd", signal.SIGKILL)
        for code, pid in enumerate(pids, start=1):
            self.end(pid, code)
        time.sleep(1)
        self.ha.start_daemon("containerd")
        for code, name in enumerate(names, start=1):
            self.ends_as(name, f"exited {code}")
        self.docker("start", names[1])  # its file says at once to end, so its end is heard again
        self.assertEqual("2", self.docker("wait", names[1]).stdout.strip())

    @needs_slow
    @stock_never_tells
    def test_docker_hears_of_what_ends_as_it_comes_back(self) -> None:
        name = self.counter()
        pid = self.pid(name)
        self.ha.signal_daemon("containerd", signal.SIGKILL)
        time.sleep(1)
        self.ha.start_daemon("containerd")
        self.end(pid, 8)  # before Docker has found back to it
        self.ends_as(name, "exited 8")


class Dockerd(RestartTest):
    """dockerd goes; containerd stays."""

    def live_restore(self) -> None:
        """Docker leaves its containers alone when it ends, and finds them when it starts."""
        path = "/etc/docker/daemon.json"
        before = self.ha.path(path).read_text()

        def undo() -> None:
            self.bring_back()
            self.ha.write(path, before)
            self.ha.restart_daemon("dockerd")

        self.ha.write(path, json.dumps(json.loads(before) | {"live-restore": True}))
        self.ha.restart_daemon("dockerd")
        self.addCleanup(undo)

    def test_containers_survive_its_restart_and_kill_with_live_restore(self) -> None:
        self.live_restore()
        name, other = self.counter(), self.counter()
        pid, other_pid = self.pid(name), self.pid(other)
        self.restart("dockerd", signal.SIGTERM)
        self.assert_works(name, pid)
        self.ha.signal_daemon("dockerd", signal.SIGKILL)
        n_before = len(self.ha.run("cat", f"/proc/{pid}/cmdline").stdout)
        self.assertGreater(n_before, 0)
        self.end(other_pid, 7)
        time.sleep(0.5)
        self.ha.start_daemon("dockerd")
        self.assert_works(name, pid)
        self.ends_as(other, "exited 7")
        if not is_stock:  # which drops what the container wrote last
            numbers = [int(number) for number in self.logs(other).split()]
            self.assertEqual(list(range(1, len(numbers) + 1)), numbers)
        self.docker("stop", "--time", "1", name)
        self.assertEqual("exited 137", self.state(name))

    @needs_slow
    def test_without_live_restore_it_stops_them_and_starts_them_again(self) -> None:
        name = self.counter()
        self.restart("dockerd", signal.SIGTERM)
        self.assertEqual("exited 137", self.state(name))
        self.docker("start", name)
        self.restart("dockerd", signal.SIGKILL)
        self.ends_as(name, "exited 137")
        self.docker("start", name)
        self.assertEqual("running", self.inspect(name, "{{.State.Status}}"))


class Shim(RestartTest):
    """The shim itself is killed."""

    def traces(self, container_id: str) -> str:
        """What there is of a container on the host, one per line."""
        script = (
            f"ps ax -o args | grep -v grep | grep {container_id}; "
            f"grep {container_id} /proc/self/mountinfo | grep -v /var/lib/docker/; "
            f"find /sys/fs/cgroup -type d -name '*{container_id}*'; "
            f"ls -d {TASKS}/moby/{container_id} /run/containerd/runc/moby/{container_id} 2>/dev/null; "
            f"ls -d /run/docker/runtime-runc/moby/{container_id} 2>/dev/null; "
            f"grep -l {container_id} /run/godwit/tasks/*/* 2>/dev/null; true"
        )
        return self.ha.run("sh", "-c", script).stdout.strip()

    def sockets(self) -> set[str]:
        return set(self.ha.run("sh", "-c", "ls /run/containerd/s").stdout.split())

    def test_its_kill_ends_the_container_and_leaves_nothing(self) -> None:
        sockets = self.sockets()
        name = self.start("busybox", "sh", "-c", "sleep 1000 & exec sleep 1001")
        container_id, pid = self.inspect(name, "{{.Id}}"), self.pid(name)
        self.assertIn(TASKS, self.traces(container_id))
        self.assertNotEqual(sockets, self.sockets())
        shim = shim_pid(self.ha, container_id)
        self.ha.run("kill", "-9", str(shim))
        self.soon("Docker to say so", lambda: self.state(name) == "exited 137")
        self.assertFalse(self.ha.path(f"/proc/{pid}").exists())
        self.soon("its traces to go", lambda: self.traces(container_id) == "")
        if not is_stock:  # which leaves its socket
            self.assertEqual(sockets, self.sockets())
        self.docker("start", name)
        self.assertEqual("running", self.inspect(name, "{{.State.Status}}"))

    def test_its_kill_while_containerd_is_dead_is_found_out(self) -> None:
        name = self.start("busybox", "sleep", "1000")
        container_id = self.inspect(name, "{{.Id}}")
        shim = shim_pid(self.ha, container_id)
        self.ha.signal_daemon("containerd", signal.SIGKILL)
        self.ha.run("kill", "-9", str(shim))
        self.ha.start_daemon("containerd")
        self.soon("its traces to go", lambda: self.traces(container_id) == "")
        self.restart("dockerd", signal.SIGKILL)
        self.assertNotIn("running", self.state(name))
        self.docker("start", name)
        self.assertEqual("running", self.inspect(name, "{{.State.Status}}"))
