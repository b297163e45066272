"""`docker checkpoint create` and `docker start --checkpoint`: what a container has before it, it has after it."""

import time

from tests.checkpoints import SERVER, CheckpointTest
from tests.support import Terminal

LEAVE_RUNNING = "io.godwit.checkpoint.leave-running"
TCP = "io.godwit.checkpoint.tcp"


class Restored(CheckpointTest):
    """A container on Docker's default bridge, with a published port."""

    def test_a_web_server_goes_on_with_its_network_connections_and_log(self) -> None:
        self.needs_sockets()
        name = self.serve("--publish", "8080:80")
        published = self.link("client", self.ha.address, 8080)
        direct = self.link("ha", self.address(name))
        self.assertEqual([1, 2, 3], [published.ask(), direct.ask(), published.ask()])
        self.checkpoint(name)
        self.assertEqual("exited", self.status(name))
        n_before = len(self.ticks(name))
        address = self.inspect(name, "{{.State.Pid}}")
        self.assertEqual("0", address)

        self.restore(name)
        self.assertEqual("running", self.status(name))
        self.assertEqual(4, published.ask(), "the connection through the published port")
        self.assertEqual(5, direct.ask(), "the connection to the container's own address")
        self.assertEqual(6, self.link("client", self.ha.address, 8080).ask(), "a new connection")
        self.soon("the log to go on", lambda: len(self.ticks(name)) > n_before + 2)
        ticks = self.ticks(name)
        self.assertEqual(list(range(1, len(ticks) + 1)), ticks, "a line of the log is lost or there twice")
        self.assert_no_trace(name)

    def test_docker_knows_the_real_pid_and_can_exec_and_stop(self) -> None:
        name = self.serve()
        self.talk(name).ask()
        self.checkpoint(name)
        self.restore(name)
        pid = self.inspect(name, "{{.State.Pid}}")
        self.assertIn("listener = socket", self.ha.run("cat", f"/proc/{pid}/cmdline").stdout)
        self.assertIn(self.inspect(name, "{{.Id}}"), self.ha.run("cat", f"/proc/{pid}/cgroup").stdout)
        self.assertEqual("python3", self.docker("exec", name, "sh", "-c", "read x </proc/1/comm; echo $x").stdout.strip())
        self.docker("stop", name)
        self.assertEqual("exited 3", self.inspect(name, "{{.State.Status}} {{.State.ExitCode}}"))
        self.soon("the control directory's removal", lambda: not self.tasks())

    def test_a_restored_container_can_be_checkpointed_again(self) -> None:
        name = self.serve()
        link = self.talk(name)
        for n_round in (1, 2, 3):
            self.assertEqual(2 * n_round - 1, link.ask())
            self.assertEqual(2 * n_round, link.ask())
            self.checkpoint(name, f"c{n_round}")
            self.restore(name, f"c{n_round}")
        self.assertEqual(7, link.ask())
        self.assert_no_trace(name)

    def test_one_image_restores_more_than_once(self) -> None:
        name = self.serve()
        self.assertEqual(1, self.talk(name).ask())
        self.checkpoint(name)
        for _ in range(2):
            self.restore(name)
            self.assertEqual(2, self.talk(name).ask())
            self.docker("kill", name)

    def test_a_restart_policy_and_a_plain_start_still_work(self) -> None:
        name = self.serve("--restart", "on-failure")
        self.assertEqual(1, self.talk(name).ask())
        self.checkpoint(name)
        self.soon("the container to be back", lambda: self.status(name) in ("exited", "running"))
        self.docker("stop", name)
        self.restore(name)
        self.assertEqual(2, self.talk(name).ask())
        pid = self.inspect(name, "{{.State.Pid}}")
        self.ha.run("kill", "-9", pid)
        self.soon("its restart", lambda: self.inspect(name, "{{.State.Pid}}") not in (pid, "0"))
        self.assertEqual(1, self.talk(name).ask(), "it was started afresh")

    def test_a_shell_on_a_terminal_goes_on(self) -> None:
        name = self.start("busybox", "sh", options=("--tty", "--interactive"))
        with Terminal(self.ha, "docker", "attach", name) as terminal:
            terminal.send("word=kept; stty rows 33 cols 99; echo set-$((1+1))\n")
            terminal.expect("set-2")
        self.checkpoint(name)
        self.restore(name)
        with Terminal(self.ha, "docker", "attach", name) as terminal:
            terminal.send("tty; echo $word-$((2+2))\n")
            terminal.expect("kept-4")
            self.assertIn("/dev/pts/0", terminal.output)
        self.assert_no_trace(name)


    def test_a_terminal_is_attached_amid_a_dump(self) -> None:
        pause = self.pause()
        for leave in ("true", "false"):
            options = ("--tty", "--interactive", "--annotation", f"{LEAVE_RUNNING}={leave}", *pause.OPTIONS)
            name = self.start("busybox", "sh", options=options)
            with Terminal(self.ha, "docker", "attach", name) as before:
                before.send("word=kept; echo set-$((1+1))\n")
                before.expect("set-2")
                pause.at("post-dump")
                dump = self.in_background(lambda: self.checkpoint(name))  # noqa: B023
                self.soon("the dump", pause.reached)
                before.send("echo $word-$((2+2))\n")  # which its terminal keeps until it runs
                with Terminal(self.ha, "docker", "attach", name) as amid:
                    # containerd pauses a container for its checkpoint, and Docker attaches to none that is paused.
                    amid.expect("cannot attach to a paused container")
                    self.assertNotEqual(0, amid.exit_code())
                pause.over()
                dump.result()
                if leave == "true":
                    before.expect("kept-4")
                else:
                    before.exit_code()  # it ends with the container
                    self.restore(name)
            with Terminal(self.ha, "docker", "attach", name) as after:
                after.send("echo $word-$((3+3))\n")
                after.expect("kept-6")
                after.send("stty size\n")
                after.expect("24 80")
            self.assert_no_trace(name)
            self.docker("rm", "--force", name)


class Networks(CheckpointTest):
    """Each kind of network."""

    def survives(self, place: str, address: str, *options: str, command: tuple[str, ...] = ("python3", "-c", SERVER)) -> None:
        self.needs_sockets()
        name = self.serve(*options, command=command)
        link = self.link(place, address)
        self.assertEqual(1, link.ask())
        self.checkpoint(name)
        self.restore(name)
        self.assertEqual(2, link.ask())
        self.assertEqual(3, self.link(place, address).ask())
        self.assert_no_trace(name)

    def test_a_bridge_of_the_users_own_with_a_fixed_address(self) -> None:
        self.docker("network", "create", "--subnet", "172.30.0.0/24", "own")
        self.addCleanup(self.docker, "network", "rm", "own")
        self.addCleanup(self.remove_containers)
        self.survives("ha", "172.30.0.7", "--network", "own", "--ip", "172.30.0.7")

    def remove_containers(self) -> None:
        ids = self.docker("ps", "--all", "--quiet").stdout.split()
        self.docker("rm", "--force", *ids, check=False)

    def test_macvlan(self) -> None:
        self.survives("client", "10.77.0.65", "--network", "lan", "--ip", "10.77.0.65",
                      "--mac-address", "02:42:0a:4d:00:41")  # fmt: skip

    def test_the_hosts_own_network(self) -> None:
        self.survives("client", self.ha.address, "--network", "host")

    def test_none(self) -> None:
        name = self.serve("--network", "none")
        self.soon("its log", lambda: len(self.ticks(name)) > 2)
        self.checkpoint(name)
        n_before = len(self.ticks(name))
        self.restore(name)
        self.soon("its log to go on", lambda: len(self.ticks(name)) > n_before)
        ticks = self.ticks(name)
        self.assertEqual(list(range(1, len(ticks) + 1)), ticks)
        self.assert_no_trace(name)


class Options(CheckpointTest):
    """Annotations, and the host's file."""

    def set_host_file(self, text: str) -> None:
        self.ha.write("/etc/godwit/shim.toml", text)
        self.addCleanup(lambda: self.ha.path("/etc/godwit/shim.toml").unlink(missing_ok=True))

    def test_leave_running_leaves_it_running(self) -> None:
        name = self.serve("--annotation", f"{LEAVE_RUNNING}=true")
        link = self.talk(name)
        link.ask()
        pid = self.inspect(name, "{{.State.Pid}}")
        since = str(time.time())
        self.checkpoint(name)
        self.assertEqual(pid, self.inspect(name, "{{.State.Pid}}"))
        self.assert_runs_on(name, link)
        events = self.docker("events", "--since", since, "--until", str(time.time()), "--filter", f"container={name}",
                             "--format", "{{.Action}}").stdout.split()  # fmt: skip
        self.assertIn("checkpoint", events)
        self.assertNotIn("die", events)

    def test_a_checkpoint_of_a_container_that_ran_on_restores_the_past(self) -> None:
        name = self.serve("--annotation", f"{LEAVE_RUNNING}=true", "--annotation", f"{TCP}=close")
        self.assertEqual(1, self.talk(name).ask())
        self.checkpoint(name)
        self.assertEqual(2, self.talk(name).ask())
        self.docker("kill", name)
        self.restore(name)
        self.assertEqual(2, self.talk(name).ask())

    def test_tcp_close_closes_connections_and_keeps_the_listener(self) -> None:
        self.needs_sockets()
        name = self.serve("--annotation", f"{TCP}=close")
        link = self.talk(name)
        self.assertEqual(1, link.ask())
        self.checkpoint(name)
        self.restore(name)
        self.assertEqual(2, self.talk(name).ask())
        with self.assertRaises(OSError):
            link.ask()

    def test_the_hosts_file_speaks_for_containers_that_say_nothing(self) -> None:
        self.set_host_file("[checkpoint]\nleave-running = true\n")
        silent, other = self.serve(), self.serve("--annotation", f"{LEAVE_RUNNING}=false")
        for name in (silent, other):
            self.talk(name)
            self.checkpoint(name)
        self.assertEqual(("running", "exited"), (self.status(silent), self.status(other)))

    def test_a_misspelt_annotation_fails_the_start_and_is_named(self) -> None:
        name = self.new_name()
        for wrong, why in (("leave-runing=true", "expected one of `leave-running`, "), ("tcp=maybe", "expected `established` or `close`")):
            done = self.docker("run", "--detach", "--runtime", self.runtime, "--name", name, "--annotation",
                               f"io.godwit.checkpoint.{wrong}", "busybox", "true", check=False)  # fmt: skip
            self.docker("rm", name)
            self.assertEqual(125, done.returncode)
            self.assertIn(f"io.godwit.checkpoint.{wrong}", done.stderr)
            self.assertIn(why, done.stderr)

    def test_a_misspelt_key_of_the_hosts_file_fails_the_checkpoint_and_is_named(self) -> None:
        self.set_host_file("[checkpoint]\nleave_running = true\n")
        name = self.serve()
        link = self.talk(name)
        error = self.failed_checkpoint(name)
        self.assertIn("/etc/godwit/shim.toml", error)
        self.assertIn("leave_running", error)
        self.assert_runs_on(name, link)
