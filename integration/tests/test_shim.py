"""Docker and ctr with the runtime under test, as a person uses them: they must not tell it from the stock one."""

import json
import signal
import subprocess
import time

from tests.support import EngineTest, Terminal

FOREVER = ("busybox", "sh", "-c", "while :; do sleep 1; done")
# As pid 1 a shell ignores SIGTERM unless it says otherwise.
STOPPABLE = ("busybox", "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done")


class Docker(EngineTest):
    """The engine's own commands."""

    def test_run_prints_the_output_and_returns_the_exit_code(self) -> None:
        done = self.docker("run", "--rm", "--runtime", self.runtime, "busybox", "sh", "-c",
                           "echo out; echo err >&2; exit 5", check=False)  # fmt: skip
        self.assertEqual(("out\n", "err\n", 5), (done.stdout, done.stderr, done.returncode))

    def test_run_rm_leaves_no_container(self) -> None:
        name = self.new_name()
        self.docker("run", "--rm", "--runtime", self.runtime, "--name", name, "busybox", "true")
        self.soon("its removal", lambda: name not in self.docker("ps", "--all").stdout)

    def test_run_passes_standard_input_to_its_end(self) -> None:
        done = self.ha.run("docker", "run", "--rm", "-i", "--runtime", self.runtime, "busybox", "wc", "-c",
                           stdin=b"x" * 100_000)  # fmt: skip
        self.assertEqual("100000", done.stdout.strip())

    def test_a_program_that_does_not_exist_fails_with_127(self) -> None:
        done = self.docker("run", "--rm", "--runtime", self.runtime, "busybox", "/no/such/program", check=False)
        self.assertEqual(127, done.returncode)
        self.assertIn("/no/such/program", done.stderr)

    def test_run_detached_is_running_with_a_real_pid_and_the_runtime(self) -> None:
        name = self.start(*FOREVER)
        self.assertEqual(f"running {self.runtime}", self.inspect(name, "{{.State.Status}} {{.HostConfig.Runtime}}"))
        pid = self.inspect(name, "{{.State.Pid}}")
        self.assertIn("while :", self.ha.run("cat", f"/proc/{pid}/cmdline").stdout)

    def test_logs_hold_both_streams(self) -> None:
        name = self.start("busybox", "sh", "-c", "echo one; echo two >&2; echo three")
        self.docker("wait", name)
        done = self.docker("logs", name)
        self.assertEqual(("one\nthree\n", "two\n"), (done.stdout, done.stderr))

    def test_a_large_output_is_complete(self) -> None:
        name = self.start("busybox", "seq", "1", "50000")
        self.docker("wait", name)
        self.assertEqual([str(n) for n in range(1, 50001)], self.docker("logs", name).stdout.split())

    def test_run_on_a_terminal_is_a_terminal(self) -> None:
        argv = ("docker", "run", "-it", "--rm", "--runtime", self.runtime, "busybox", "sh")
        with Terminal(self.ha, *argv) as terminal:
            terminal.expect("# ")
            terminal.send("tty; stty size; echo done-$((40+2))\n")
            terminal.expect("done-42")
            self.assertIn("/dev/pts/0", terminal.output)
            self.assertIn("24 80", terminal.output)
            terminal.send("exit 4\n")
            self.assertEqual(4, terminal.exit_code())

    def test_a_key_on_the_terminal_interrupts(self) -> None:
        argv = ("docker", "run", "-it", "--rm", "--runtime", self.runtime, "busybox", "sh")
        with Terminal(self.ha, *argv) as terminal:
            terminal.expect("# ")
            terminal.send("trap 'echo caught-$((1+1))' INT; echo set-$((2+1))\n")
            terminal.expect("set-3")
            terminal.send("\x03")
            terminal.expect("caught-2")
            terminal.send("exit\n")

    def test_exec_returns_output_and_exit_code(self) -> None:
        name = self.start(*FOREVER)
        done = self.docker("exec", name, "sh", "-c", "echo out; echo err >&2; exit 6", check=False)
        self.assertEqual(("out\n", "err\n", 6), (done.stdout, done.stderr, done.returncode))

    def test_exec_passes_standard_input(self) -> None:
        name = self.start(*FOREVER)
        done = self.ha.run("docker", "exec", "-i", name, "cat", stdin=b"through")
        self.assertEqual("through", done.stdout)

    def test_exec_on_a_terminal_is_a_terminal(self) -> None:
        name = self.start(*FOREVER)
        with Terminal(self.ha, "docker", "exec", "-it", name, "sh") as terminal:
            terminal.expect("# ")
            terminal.send("tty; echo done-$((40+2))\n")
            terminal.expect("done-42")
            self.assertRegex(terminal.output, r"/dev/pts/\d")
            terminal.send("exit 9\n")
            self.assertEqual(9, terminal.exit_code())

    def test_exec_in_the_same_container_at_once(self) -> None:
        name = self.start(*FOREVER)
        running = [
            subprocess.Popen(self.ha.command(["docker", "exec", name, "sh", "-c", f"sleep 0.2; echo {n}; exit {n}"]),
                             stdout=subprocess.PIPE)
            for n in range(1, 6)
        ]  # fmt: skip
        for n, process in enumerate(running, start=1):
            output, _ = process.communicate(timeout=30)
            self.assertEqual((f"{n}\n".encode(), n), (output, process.returncode))

    def test_attach_shows_what_the_container_writes(self) -> None:
        name = self.start("sh", options=("--interactive", "--tty", "busybox"))
        with Terminal(self.ha, "docker", "attach", name) as terminal:
            terminal.send("echo seen-$((6*7))\n")
            terminal.expect("seen-42")
            terminal.send("exit 2\n")
            self.assertEqual(2, terminal.exit_code())

    def test_stop_sends_the_stop_signal(self) -> None:
        name = self.start(*STOPPABLE)
        self.soon("its trap", lambda: "up" in self.logs(name))
        begin = time.monotonic()
        self.docker("stop", name)
        self.assertLess(time.monotonic() - begin, 8)
        self.assertEqual("exited 3", self.inspect(name, "{{.State.Status}} {{.State.ExitCode}}"))

    def test_stop_kills_what_ignores_the_signal(self) -> None:
        name = self.start("busybox", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
        self.docker("stop", "--time", "1", name)
        self.assertEqual("exited 137", self.inspect(name, "{{.State.Status}} {{.State.ExitCode}}"))

    def test_kill_sends_a_chosen_signal(self) -> None:
        name = self.start("busybox", "sh", "-c", "trap 'echo usr1' USR1; echo up; while :; do sleep 0.1; done")
        self.soon("its trap", lambda: "up" in self.logs(name))
        self.docker("kill", "--signal", "USR1", name)
        self.soon("the signal", lambda: "usr1" in self.logs(name))
        self.docker("kill", name)
        self.assertEqual("137", self.docker("wait", name).stdout.strip())

    def test_wait_returns_the_exit_code(self) -> None:
        name = self.start("busybox", "sh", "-c", "sleep 0.5; exit 42")
        self.assertEqual("42", self.docker("wait", name).stdout.strip())

    def test_a_stopped_container_starts_again(self) -> None:
        name = self.start("busybox", "sh", "-c", "echo again; exit 1")
        self.docker("wait", name)
        self.docker("start", name)
        self.docker("wait", name)
        self.assertEqual("again\nagain\n", self.logs(name))

    def test_a_restart_policy_restarts(self) -> None:
        name = self.start("busybox", "sh", "-c", "echo up; exit 1", options=("--restart", "on-failure:2"))
        self.soon("two restarts", lambda: self.inspect(name, "{{.RestartCount}} {{.State.Status}}") == "2 exited")
        self.assertEqual("up\nup\nup\n", self.logs(name))

    def test_pause_stops_and_unpause_continues(self) -> None:
        name = self.start("busybox", "sh", "-c", "while :; do echo x; sleep 0.05; done")
        self.docker("pause", name)
        self.assertEqual("paused", self.inspect(name, "{{.State.Status}}"))
        before = len(self.logs(name))
        time.sleep(0.3)
        self.assertEqual(before, len(self.logs(name)))
        self.docker("unpause", name)
        self.soon("it to go on", lambda: len(self.logs(name)) > before)

    def test_stats_counts_processes_and_memory(self) -> None:
        name = self.start(*FOREVER)
        stats = json.loads(self.docker("stats", "--no-stream", "--format", "{{json .}}", name).stdout)
        if self.ha.state()["cgroups"] == "v1":  # the machine's unified hierarchy may have neither controller
            self.assertGreaterEqual(int(stats["PIDs"]), 1)
            self.assertNotEqual("0B", stats["MemUsage"].split(" / ")[0])

    def test_top_lists_the_processes(self) -> None:
        name = self.start(*FOREVER)
        self.assertIn("while :", self.docker("top", name).stdout)

    def test_update_changes_a_limit(self) -> None:
        if self.ha.state()["cgroups"] != "v1":
            self.skipTest("needs a memory controller")
        name = self.start(*FOREVER, options=("--memory", "64m", "--memory-swap", "-1"))
        self.docker("update", "--memory", "96m", "--memory-swap", "-1", name)
        limit = self.docker("exec", name, "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes").stdout
        self.assertEqual(96 << 20, int(limit))

    def test_removal_ends_the_shim_and_leaves_no_directory_of_it(self) -> None:
        name = self.start(*FOREVER)
        container_id = self.inspect(name, "{{.Id}}")
        self.docker("rm", "--force", name)
        self.soon("its shim to end", lambda: container_id not in self.ha.run("ps", "ax", "-o", "args").stdout)
        self.assertFalse(self.ha.path(f"/run/containerd/io.containerd.runtime.v2.task/moby/{container_id}").exists())


class Ctr(EngineTest):
    """containerd's own client, without Docker."""

    def setUp(self) -> None:
        super().setUp()
        if self.ha.state()["cgroups"] == "v2" and "cpu" not in self.ha.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout:
            self.skipTest("ctr asks for a share of the cpu, and this machine's cgroup v2 has no cpu controller")
        self.image = "docker.io/library/busybox:latest"
        self.ha.run("sh", "-c", "docker save busybox:latest | ctr images import -")

    def run_detached(self, *argv: str) -> str:
        name = self.new_name()
        self.addCleanup(self.ha.run, "ctr", "container", "rm", name, check=False)
        self.addCleanup(self.ha.run, "ctr", "task", "rm", "--force", name, check=False)
        self.ha.run("ctr", "run", "--detach", "--runtime", self.runtime, self.image, name, *argv)
        return name

    def task_status(self, name: str) -> str:
        lines = self.ha.run("ctr", "task", "ls").stdout.splitlines()
        return next((line.split()[2] for line in lines if line.split()[0] == name), "none")

    def test_run_prints_the_output_and_returns_the_exit_code(self) -> None:
        argv = ("ctr", "run", "--rm", "--runtime", self.runtime, self.image, "once", "sh", "-c", "echo out; exit 5")
        done = self.ha.run(*argv, check=False)
        self.assertEqual(("out\n", 5), (done.stdout, done.returncode))

    def test_exec_pause_resume_and_kill(self) -> None:
        name = self.run_detached("sh", "-c", "while :; do sleep 1; done")
        self.assertEqual("RUNNING", self.task_status(name))
        done = self.ha.run("ctr", "task", "exec", "--exec-id", "e1", name, "sh", "-c", "echo in; exit 3", check=False)
        self.assertEqual(("in\n", 3), (done.stdout, done.returncode))
        self.ha.run("ctr", "task", "pause", name)
        self.assertEqual("PAUSED", self.task_status(name))
        self.ha.run("ctr", "task", "resume", name)
        self.assertEqual("RUNNING", self.task_status(name))
        self.ha.run("ctr", "task", "kill", "--signal", str(signal.SIGKILL.value), name)
        self.soon("its end", lambda: self.task_status(name) == "STOPPED")
        self.ha.run("ctr", "task", "rm", name)
        self.assertEqual("none", self.task_status(name))

    def test_run_on_a_terminal_is_a_terminal(self) -> None:
        argv = ("ctr", "run", "--rm", "--tty", "--runtime", self.runtime, self.image, "term", "sh")
        with Terminal(self.ha, *argv) as terminal:
            terminal.expect("# ")
            terminal.send("tty; echo done-$((40+2))\n")
            terminal.expect("done-42")
            self.assertIn("/dev/pts/0", terminal.output)
            terminal.send("exit 4\n")
            self.assertEqual(4, terminal.exit_code())
