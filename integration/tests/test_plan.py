"""`godwit plan`: all that stops a move is told at once, with its code, and nothing has changed on either host afterwards."""

import json
import subprocess
import tempfile
from pathlib import Path

from lab.hosts import Host
from tests.moving import Move, MoveTest
from tests.test_move_refusals import FOREVER, REFUSED

TESTS = Path(__file__).parent
# What makes namespaces, and io_uring, is forbidden by the engine's own profile.
UNCONFINED = ("--security-opt", "seccomp=unconfined", "--cap-add", "SYS_ADMIN")
# Objects that CRIU takes; the program of the kernel objects' tests makes them.
HARMLESS = ("deleted_file", "flock", "fifo", "pipe", "unix_stream_pair", "unix_abstract_server", "passed_descriptor", "udp4", "tcp4",
            "tcp6", "memfd", "eventfd", "epoll", "timerfd", "interval_timer", "zombie", "terminal", "threads")  # fmt: skip


class Plan(MoveTest):
    """Each test asks for a plan, and finds the reasons in it."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.unmovable = Path(directory.name, "unmovable")
        subprocess.run(["gcc", "-static", "-O1", "-o", cls.unmovable, TESTS / "unmovable.c"], check=True)

    def plan(self, name: str, *, command: tuple[str, ...] = ("plan",)) -> tuple[int, dict]:
        """A plan and its exit status; nothing of the container has changed."""
        unmoved = self.unmoved(name)
        done = self.ha.run("godwit", command[0], name, "hb", "--json", *command[1:], check=False)
        unmoved()
        self.assertIn(done.returncode, (0, REFUSED), done.stderr)
        plan = json.loads(done.stdout)
        self.assertEqual(done.returncode == 0, plan["possible"], plan)
        return done.returncode, plan

    def refused(self, name: str) -> dict[tuple[str, str], str]:
        """The problems of a plan that says no: host and code, and what is said."""
        code, plan = self.plan(name)
        self.assertEqual(REFUSED, code, plan)
        problems: dict[tuple[str, str], str] = {}
        for one in plan["findings"]:
            if one["level"] == "problem":
                key = (one["host"], one["code"])
                problems[key] = f"{problems.get(key, '')}{one['text']} -> {one['remedy']}\n"
        return problems

    def start_holder(self, *objects: str, options: tuple[str, ...] = UNCONFINED) -> str:
        """A container whose program holds these."""
        for host in self.hosts:
            host.install(self.unmovable, "/opt/unmovable", 0o755)
        mount = ("--network", "none", "--volume", "/opt/unmovable:/unmovable:ro")
        name = self.start("busybox", "/unmovable", *objects, options=(*mount, *options))
        self.soon("the objects", lambda: "ready" in self.logs(name) or self.inspect(name, "{{.State.Running}}") == "false")
        self.assertEqual("true", self.inspect(name, "{{.State.Running}}"), self.logs(name))
        return name

    def start_forever(self, *options: str) -> str:
        """A container that could be moved, were it not for what the test does."""
        return self.start(*FOREVER, options=("--network", "none", *options))

    def device(self, host: Host) -> None:
        """Gives a host a device, until the test's end."""
        host.run("mknod", "/dev/fuse", "c", "10", "229")
        self.addCleanup(host.run, "rm", "-f", "/dev/fuse")

    def other_processor(self, host: Host, *without: str) -> None:
        """Takes instructions from what a host says of its processor, until the test's end."""
        text = host.run("cat", "/proc/cpuinfo").stdout
        lines = [" ".join(word for word in line.split(" ") if word not in without) if line.startswith("flags") else line
                 for line in text.splitlines()]  # fmt: skip
        host.write("/run/cpuinfo", "\n".join(lines) + "\n")
        host.run("mount", "--bind", "/run/cpuinfo", "/proc/cpuinfo")
        self.addCleanup(host.run, "umount", "/proc/cpuinfo")

    # -- it can ----------------------------------------------------------------------------------------------------------

    def test_a_container_that_can_move(self) -> None:
        self.needs_moves()
        code, plan = self.plan(self.start_forever())
        self.assertEqual(0, code, plan)
        self.assertEqual(("ha", "hb"), (plan["from"], plan["to"]))
        self.assertIn("stop", plan["modes"])
        self.assertIsInstance(plan["image_wanted"], bool)
        self.assertGreater(plan["memory_bytes"], 0)

    def test_a_dry_run_is_the_same(self) -> None:
        self.needs_moves()
        name = self.start_forever()
        code, plan = self.plan(name, command=("migrate", "--dry-run"))
        self.assertEqual((0, name), (code, plan["container"]), plan)

    def test_mode_pre_is_refused_where_the_kernel_does_not_tell_what_is_written_to(self) -> None:
        self.needs_moves()
        name = self.start_forever()
        if "pre" in self.plan(name)[1]["modes"]:
            self.skipTest("this kernel tells which pages were written to")
        for command in (("plan", "--mode", "pre"), ("migrate", "--dry-run", "--mode", "pre")):
            code, plan = self.plan(name, command=command)
            (problem,) = [one for one in plan["findings"] if one["level"] == "problem"]
            self.assertEqual((REFUSED, "modes"), (code, problem["code"]), plan)
            self.assertIn("CONFIG_MEM_SOFT_DIRTY", problem["text"])
            self.assertIn("--mode post", problem["remedy"])
        unmoved = self.unmoved(name)
        move = Move(self.ha, name, "hb", options=("--mode", "pre")).end()
        self.assertEqual(REFUSED, move.code, move.said)
        self.assertIn("CONFIG_MEM_SOFT_DIRTY", move.message)
        unmoved()

    def test_objects_that_criu_takes_are_no_obstacle(self) -> None:
        self.needs_moves()
        program = (TESTS / "kernel_objects.py").read_text()
        name = self.start("python:3", "python3", "-W", "ignore", "-c", program, *HARMLESS,
                          options=("--network", "none", "--tmpfs", "/tmpfs"))  # fmt: skip
        self.soon("the objects", lambda: "ready" in self.logs(name))
        code, plan = self.plan(name)
        self.assertEqual(0, code, plan)

    # -- what its processes hold -----------------------------------------------------------------------------------------

    def test_what_criu_would_refuse_is_told_with_its_process(self) -> None:
        objects = ["io_uring", "userfaultfd", "mptcp", "vsock", "user", "time", "inotify"]
        is_v1 = self.ha.state()["cgroups"] != "v2"
        problems = self.refused(self.start_holder(*objects, *(["stopped"] if is_v1 else [])))
        for code, words in {
            "kernel-object": ("io_uring is open", "userfaultfd is open", "(unmovable)", "switch io_uring off in the program"),
            "socket": ("protocol MPTCP", "GODEBUG=multipathtcp=0", "protocol AF_VSOCK"),
            "nested-namespace": ("a user namespace was made inside", "a time namespace was made inside"),
            "inotify": ("the container's own root", "irmap-scan-path"),
            **({"stopped-process": ("kill -CONT",)} if is_v1 else {}),
        }.items():
            for word in words:
                self.assertIn(word, problems.get(("ha", code), ""), problems)

    def test_an_open_device(self) -> None:
        self.device(self.ha)
        self.device(self.hb)
        problems = self.refused(self.start_holder("device", options=("--device", "/dev/fuse")))
        self.assertIn("/dev/fuse is open, a character device (10:229)", problems.get(("ha", "open-device"), ""), problems)
        self.assertNotIn(("hb", "device"), problems)

    def test_an_exec_session(self) -> None:
        name = self.start_forever()
        self.docker("exec", "--detach", name, "sleep", "60")
        self.assertIn("end them first", self.refused(name).get(("ha", "exec-sessions"), ""))

    # -- the other host --------------------------------------------------------------------------------------------------

    def test_a_processor_with_fewer_instructions(self) -> None:
        self.needs_moves()
        flags = self.ha.run("grep", "-m1", "^flags", "/proc/cpuinfo").stdout.split()
        if "avx2" not in flags:
            self.skipTest("this machine's processor has no avx2 to take away")
        strict, lenient = self.start_forever(), self.start_forever("--annotation", "io.godwit.migrate.cpu=ignore")
        misspelt = self.start_forever("--annotation", "io.godwit.migrate.cpu=ignored")
        # What only the kernel uses may differ.
        self.other_processor(self.hb, "avx2", "constant_tsc", "nopl")
        said = self.refused(strict).get(("hb", "cpu-flags"), "")
        self.assertIn("lacks what the source's has: avx2;", said)
        self.assertIn("io.godwit.migrate.cpu=ignore", said)
        self.assertIn("it is ignore or strict", self.refused(misspelt).get(("hb", "annotation"), ""))
        code, plan = self.plan(lenient)
        self.assertEqual(0, code, plan)
        self.assertEqual(["cpu-flags"], [one["code"] for one in plan["findings"] if one["level"] == "warning"], plan)
        self.addCleanup(lambda: self.docker("rm", "--force", lenient, host=self.hb, check=False))
        self.move(lenient)

    def test_a_processor_with_more_instructions_is_no_obstacle(self) -> None:
        self.needs_moves()
        self.other_processor(self.ha, "avx2", "aes")
        code, plan = self.plan(self.start_forever())
        self.assertEqual(0, code, plan)

    def test_a_missing_bind_source_and_a_port_in_use(self) -> None:
        self.ha.run("mkdir", "-p", "/run/only-here")
        self.image("busybox", self.hb)
        self.docker("run", "--detach", "--name", "holder", "--publish", "8099:80", *FOREVER, host=self.hb)
        self.addCleanup(lambda: self.docker("rm", "--force", "holder", host=self.hb, check=False))
        name = self.start(*FOREVER, options=("--volume", "/run/only-here:/data", "--publish", "8099:80"))
        problems = self.refused(name)
        self.assertIn("/run/only-here does not exist", problems.get(("hb", "bind-source"), ""), problems)
        self.assertIn("8099/tcp cannot be taken", problems.get(("hb", "port"), ""), problems)

    def test_a_host_that_does_not_answer_is_one_reason_among_others(self) -> None:
        name = self.start_forever()
        self.docker("exec", "--detach", name, "sleep", "60")
        self.kill_agent(self.hb)
        problems = self.refused(name)
        self.assertIn("10.77.0.12:7433", problems.get(("ha", "peer"), ""), problems)
        self.assertIn(("ha", "exec-sessions"), problems)

    def test_everything_at_once_on_both_hosts(self) -> None:
        self.device(self.ha)
        self.ha.run("mkdir", "-p", "/run/only-here")
        options = ("--device", "/dev/fuse", "--volume", "/run/only-here:/data", "--volume",
                   f"{self.taken_volume('data')}:/d", *UNCONFINED)  # fmt: skip
        name = self.start_holder("io_uring", "device", "mptcp", options=options)
        self.docker("exec", "--detach", name, "sleep", "60")
        self.criu_that('case "$*" in *--version*) echo "Version: 4.1.1"; exit;; esac')
        self.other_processor(self.hb, "sse2")
        problems = self.refused(name)
        wanted = {("ha", "kernel-object"), ("ha", "open-device"), ("ha", "socket"), ("ha", "exec-sessions"), ("hb", "criu"),
                  ("hb", "cpu-flags"), ("hb", "device"), ("hb", "bind-source"), ("hb", "volume")}  # fmt: skip
        self.assertLessEqual(wanted, set(problems), problems)

    # -- for a person ----------------------------------------------------------------------------------------------------

    def test_what_a_person_reads(self) -> None:
        name = self.start_forever("--volume", f"{self.taken_volume('data')}:/d")
        done = self.ha.run("godwit", "plan", name, "hb", check=False)
        self.assertEqual(REFUSED, done.returncode, done.stderr)
        self.assertIn(f"{name} cannot move from ha to hb\n", done.stdout)
        self.assertIn("problem  hb: volume data exists on this host already, and it is not empty\n", done.stdout)
        self.assertIn("-> remove it there (docker volume rm data) if nobody needs what it holds", done.stdout)
