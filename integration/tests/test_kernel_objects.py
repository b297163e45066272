"""Kernel objects that a container holds when it is dumped: after the restore they are there, and work.

One container holds many of them (see kernel_objects.py and kernel_objects.c). What CRIU cannot take fails the dump with an error
that says what to do, and the container runs on.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from tests.checkpoints import CheckpointTest
from tests.containerd import shim_pid
from tests.support import Terminal

TESTS = Path(__file__).parent
PROGRAM = (TESTS / "kernel_objects.py").read_text()



class KernelObjects(CheckpointTest):
    """Objects that survive."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.program = Path(cls.directory.name, "objects")
        subprocess.run(["gcc", "-static", "-O1", "-o", cls.program, TESTS / "kernel_objects.c"], check=True)

    def holding(self, *objects: str, native: tuple[str, ...] = ("posix_shared_memory",), options: tuple[str, ...] = ()) -> str:
        """A container that holds objects, those of the program in C among them."""
        self.ha.install(self.program, "/opt/objects", 0o755)
        self.ha.run("mkdir", "-p", "/run/bound")
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/bound")
        mounts = ("--volume", "/opt/objects:/objects:ro", "--volume", "/run/bound:/bind", "--volume", "/volume", "--tmpfs", "/tmpfs")
        command = ("sh", "-c", f'/objects {" ".join(native)} & exec python3 -W ignore -c "$0" "$@"', PROGRAM, *objects)
        name = self.start("python:3", *command, options=(*mounts, *options))
        self.soon("the objects", lambda: self.logs(name).count("ready") == 2 or self.status(name) != "running")
        self.assertEqual("running", self.status(name), self.logs(name))
        return name

    def look(self, name: str, *objects: str) -> None:
        """Lets the programs look at their objects again."""
        self.docker("exec", name, "sh", "-c", ": >/tmpfs/go")
        self.soon("the programs' word", lambda: self.logs(name).count("done") == 2)
        said = dict(line.split(" ", 1) for line in self.logs(name).splitlines() if " " in line)
        self.assertEqual({one: "ok" for one in objects}, said)

    def survive(self, *objects: str, native: tuple[str, ...] = ("posix_shared_memory",), options: tuple[str, ...] = ()) -> None:
        """Dumps and restores a container that holds objects."""
        name = self.holding(*objects, native=native, options=options)
        self.checkpoint(name)
        self.assertEqual("exited", self.status(name))
        self.restore(name)
        self.look(name, *objects, *native)
        self.assert_no_trace(name)

    def test_files_locks_and_mounts(self) -> None:
        self.survive("file_offset", "working_directory", "deleted_file", "big_deleted_file", "deleted_file_with_another_name",
                     "flock", "posix_lock", "tmpfs", "bind_mount", "volume", "fifo",
                     native=("inotify_on_tmpfs", "inotify_on_a_volume", "inotify_on_a_bind_mount"))  # fmt: skip

    def test_pipes_sockets_and_shared_memory(self) -> None:
        self.needs_sockets()
        self.survive("pipe", "unix_stream_pair", "unix_datagram_pair", "unix_seqpacket_pair", "unix_stream_server",
                     "unix_seqpacket_server", "unix_abstract_server", "unix_datagram_server", "passed_descriptor",
                     "udp4", "udp6", "tcp4", "tcp6", "memfd",
                     native=("anonymous_shared_memory", "posix_shared_memory", "sysv_shared_memory", "sysv_semaphore",
                             "sysv_message_queue"))  # fmt: skip

    def test_signals_and_timers(self) -> None:
        self.survive("eventfd", "epoll", "pending_signal", "signal_handler", "timerfd", "interval_timer",
                     native=("signalfd", "posix_timer"))  # fmt: skip

    def test_processes_threads_and_security(self) -> None:
        # Threads come last: those that fork are made before them.
        self.survive("processes", "zombie", "daemon", "process_attributes", "security", "terminal", "threads", native=("vfork",))

    def test_a_read_only_root(self) -> None:
        self.survive("tmpfs", "volume", options=("--read-only",))

    def test_an_init_of_the_engines(self) -> None:
        self.survive("tmpfs", "deleted_file", options=("--init",))

    def test_inotify_on_the_containers_own_files_where_the_path_is_named(self) -> None:
        self.survive("tmpfs", native=("inotify",), options=("--annotation", "io.godwit.checkpoint.irmap-scan-path=/watched"))

    def test_a_paused_container_amid_a_vfork(self) -> None:
        name = self.holding("tmpfs", native=("vfork",), options=("--annotation", "io.godwit.checkpoint.leave-running=true"))
        for n_round in range(3):
            self.docker("pause", name)
            self.checkpoint(name, f"c{n_round}")
            self.assertEqual("paused", self.status(name))
            self.docker("unpause", name)
        self.look(name, "tmpfs", "vfork")

    def test_a_paused_container_whose_holder_is_killed_stays_paused(self) -> None:
        name = self.holding("tmpfs", native=("endless_vfork",))
        self.docker("pause", name)
        pid = self.inspect(name, "{{.State.Pid}}")
        failed = self.in_background(lambda: self.failed_checkpoint(name))
        holders = r"ps ax -o pid=,args= | awk '$2 ~ /\/run\/godwit\/tasks\/[0-9a-f]+\/hold$/ {print $1}'"
        holder = ""

        def is_let_go() -> bool:
            """Stops the holder at a moment of its choice; whether the container runs then."""
            nonlocal holder
            holder = self.ha.run("sh", "-c", holders).stdout.strip()
            if holder and self.ha.run("kill", "-STOP", holder, check=False).returncode == 0:
                if self.freezer(pid) == "thawed":
                    return True
                self.ha.run("kill", "-CONT", holder)
            return False

        self.soon("the container to be let go", is_let_go)
        self.ha.run("kill", "-9", holder)
        failed.result()
        self.assertEqual("paused", self.status(name))
        self.soon("it to be paused", lambda: self.freezer(pid) in ("FROZEN", "1"))
        self.soon("the helpers to end", lambda: not self.helpers())
        self.assertIn(self.freezer(pid), ("FROZEN", "1"))

    def start_without_tmp(self, *options: str) -> str:
        """A container that counts in its log and has a read-only root without a directory /tmp."""
        self.ha.run("sh", "-c", "docker rm -f bare >/dev/null 2>&1; docker create --name bare busybox >/dev/null && "
                    "docker export bare | tar --delete tmp --wildcards 'tmp/*' 2>/dev/null | docker import - bare >/dev/null; "
                    "docker rm bare >/dev/null")  # fmt: skip
        self.addCleanup(self.docker, "rmi", "--force", "bare")
        command = ("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done")
        return self.start("bare", *command, options=("--read-only", *options))

    def test_a_shim_that_is_killed_amid_a_restore_leaves_nothing_in_the_root(self) -> None:
        pause = self.pause()
        name = self.start_without_tmp(*pause.OPTIONS)
        self.soon("its log", lambda: len(self.ticks(name)) > 2)
        self.checkpoint(name)
        container_id, upper = self.inspect(name, "{{.Id}} {{.GraphDriver.Data.UpperDir}}").split()
        tmp = self.ha.path(f"{upper}/tmp")
        pause.at("pre-restore")
        started = self.in_background(lambda: self.restore(name, check=False))
        self.soon("the restore", pause.reached)
        self.assertTrue(tmp.is_dir())
        self.ha.run("kill", "-9", str(shim_pid(self.ha, container_id)))
        self.soon("it to be taken back", lambda: not tmp.exists())
        self.soon("the helpers to end", lambda: not self.helpers())
        self.assertNotEqual(0, started.result().returncode)
        self.assertEqual([], self.tasks())
        pause.over()
        self.restore(name)
        self.assertFalse(tmp.exists())

    def test_a_read_only_root_without_a_directory_for_temporary_files(self) -> None:
        name = self.start_without_tmp()
        self.assertNotEqual(0, self.docker("exec", name, "test", "-e", "/tmp", check=False).returncode, "the image has a /tmp")
        self.soon("its log", lambda: len(self.ticks(name)) > 2)
        self.checkpoint(name)
        n_before = len(self.ticks(name))
        self.restore(name)
        self.soon("its log to go on", lambda: len(self.ticks(name)) > n_before + 2)
        ticks = self.ticks(name)
        self.assertEqual(list(range(1, len(ticks) + 1)), ticks)
        self.assertNotEqual(0, self.docker("exec", name, "test", "-e", "/tmp", check=False).returncode, "it has a /tmp now")

    # === what CRIU cannot take

    def refused(self, name: str, *why: str) -> None:
        """A dump fails and says why; the container runs on, and its objects are as they were."""
        error = self.failed_checkpoint(name)
        for word in why:
            self.assertIn(word, error)
        self.assertEqual("running", self.status(name))
        self.assert_no_trace(name)

    def test_inotify_on_the_containers_own_files_is_refused(self) -> None:
        name = self.holding("tmpfs", native=("inotify",))
        self.refused(name, "watched (inotify)", "irmap-scan-path")
        self.look(name, "tmpfs", "inotify")

    def test_a_nested_user_namespace_is_refused(self) -> None:
        name = self.holding("user_namespace", options=("--security-opt", "seccomp=unconfined", "--cap-add", "SYS_ADMIN"))
        self.refused(name, "nested user namespace", "switch that off")
        self.look(name, "user_namespace", "posix_shared_memory")

    def test_a_vfork_whose_child_never_ends_is_refused(self) -> None:
        self.refused(self.holding("tmpfs", native=("endless_vfork",)), "made by vfork", "does not exec")

    def test_a_stopped_process_is_refused_on_cgroup_v1(self) -> None:
        if self.ha.state()["cgroups"] == "v2":
            return self.survive("stopped_process")
        name = self.holding("stopped_process")
        self.refused(name, "stopped by a signal", "kill -CONT")
        self.look(name, "stopped_process", "posix_shared_memory")
        return None

    def test_processes_of_exec_are_killed_first_where_that_is_asked_for(self) -> None:
        for is_paused in (False, True):
            name = self.holding("tmpfs", options=("--annotation", "io.godwit.checkpoint.kill-execs=true"))
            for script in ("import time; time.sleep(1000)", "import signal; signal.pause()"):
                self.docker("exec", "--detach", name, "python3", "-c", script)
            # Children of each kind: one that waits to be waited for, one in a session of its own, one that is the init's.
            child, leader, orphan = self.sleep(1001), self.sleep(1002, "os.setsid()"), self.sleep(1003)
            self.docker("exec", "--detach", name, "sh", "-c", f"{child} & {leader} & ({orphan} &); wait")
            count = "n=0; while :; do n=$((n+1)); echo $n >/tmpfs/count; sleep 0.05; done"
            self.docker("exec", name, "sh", "-c", f"({count}) </dev/null >/dev/null 2>&1 &")
            with Terminal(self.ha, "docker", "exec", "-it", name, "sh") as terminal:
                terminal.send(f"{self.sleep(1004)} & ({self.sleep(1005)} &)\n")
                self.soon("all of them", lambda: self.sleepers(name) == [str(n) for n in range(1000, 1006)])
                if is_paused:
                    self.docker("pause", name)
                self.checkpoint(name)
            self.assertEqual("exited", self.status(name))
            self.restore(name)
            self.assertEqual([], self.sleepers(name))
            self.assert_counts(name)
            self.look(name, "tmpfs", "posix_shared_memory")
            self.docker("rm", "--force", name)

    @staticmethod
    def sleep(seconds: int, first: str = "pass") -> str:
        """A shell's command that sleeps."""
        return f"python3 -c 'import os, time; {first}; time.sleep({seconds})'"

    def sleepers(self, name: str) -> list[str]:
        """How long the sleeps in a container are to last."""
        return sorted(re.findall(r"time\.sleep\((\d{4})\)$", self.docker("top", name, "-o", "pid,args").stdout, re.MULTILINE))

    def assert_counts(self, name: str) -> None:
        """What an exec has left behind goes on counting."""
        read = ("exec", name, "sh", "-c", "read n </tmpfs/count; echo $n")
        first = self.docker(*read).stdout
        self.soon("the daemon to go on", lambda: self.docker(*read).stdout != first)

    def test_what_an_exec_leaves_behind_is_checkpointed_along(self) -> None:
        name = self.holding("tmpfs")
        count = "n=0; while :; do n=$((n+1)); echo $n >/tmpfs/count; sleep 0.05; done"
        self.docker("exec", name, "sh", "-c", f"({count}) </dev/null >/dev/null 2>&1 &")
        self.checkpoint(name)
        self.restore(name)
        self.assert_counts(name)
