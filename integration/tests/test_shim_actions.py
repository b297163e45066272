"""What a shim's binary does besides serving: `start`, `delete` after its server died, `-info`, `-v`; beside the stock one."""

import json
import subprocess
from collections.abc import Callable

from tests.task_api import FOREVER, OURS, STOCK, Shim, ShimTest, moment, runc_options
from tests.ttrpc import any_of, decode, encode, message, number, text

GROUP = "io.kubernetes.cri.sandbox-id"
FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


class Delete(ShimTest):
    """After the server was killed, the binary alone cleans up."""

    def deleted(self, binary: str, prepare: Callable[[Shim], None], *argv: str, **config) -> tuple[int, str]:
        """The status and the moment that `delete` tells; nothing may be left by then."""
        with Shim(self.ha, binary, *(argv or FOREVER), **config) as shim:
            pid = shim.run()
            prepare(shim)
            inside = self.processes(shim)
            shim.kill_shim()
            answer = shim.delete()
            self.assertEqual(pid, number(answer, 1))
            self.soon_gone(shim, inside)
            return number(answer, 2), moment(message(answer, 3))

    def processes(self, shim: Shim) -> list[str]:
        """The container's processes, in the host's numbering."""
        return [str(number(decode(raw), 1)) for raw in shim.ok("Pids").payload[1]]

    def soon_gone(self, shim: Shim, processes: list[str]) -> None:
        """Nothing is left of a container: no process, mount, state, socket, cgroup or control directory."""
        left = self.ha.run("sh", "-c", f"for p in {' '.join(processes)}; do [ -e /proc/$p ] && cat /proc/$p/status; done; true").stdout
        self.assertEqual("", left)
        self.assertNotIn(shim.bundle, self.ha.run("cat", "/proc/self/mountinfo").stdout)
        self.assertFalse(self.ha.path(f"/run/containerd/runc/taskapi/{shim.id}").exists())
        self.assertEqual("", self.ha.run("find", "/sys/fs/cgroup", "-type", "d", "-name", shim.id).stdout)
        if shim.binary == OURS:
            self.assertFalse(self.ha.path(shim.address).exists())
            records = [path.read_text() for path in self.ha.path("/run/godwit/tasks").glob("*/shim.json")]
            self.assertFalse([record for record in records if json.loads(record)["id"] == shim.id])

    def test_a_running_container_is_killed(self) -> None:
        for binary in (STOCK, OURS):
            with self.subTest(binary):
                self.assertEqual((137, "now"), self.deleted(binary, lambda _: None))

    def test_a_paused_container_and_its_execs_are_killed(self) -> None:
        def paused(shim: Shim) -> None:
            shim.exec("e", *FOREVER)
            shim.ok("Start", exec_id="e")
            shim.ok("Pause")

        for binary in (STOCK, OURS):
            with self.subTest(binary):
                self.assertEqual((137, "now"), self.deleted(binary, paused))

    def test_the_processes_of_a_container_with_the_hosts_pids_are_killed(self) -> None:
        argv = ("sh", "-c", "sleep 100000 & sleep 100000 & wait")
        with_host_pids = self.shim(OURS).specification["linux"]
        with_host_pids["namespaces"] = [n for n in with_host_pids["namespaces"] if n["type"] != "pid"]

        def grown(shim: Shim) -> None:
            self.ha.run("sh", "-c", f"until [ $(runc --root /run/containerd/runc/taskapi ps -f json {shim.id} | tr , '\\n' | wc -l) = 3 ]; do sleep 0.05; done")

        self.assertEqual((137, "now"), self.deleted(OURS, grown, *argv, linux=with_host_pids))

    def test_how_a_container_has_ended_before_is_told(self) -> None:
        def ended(shim: Shim) -> None:
            shim.ok("Wait")

        with Shim(self.ha, OURS, "sh", "-c", "exit 6") as shim:
            shim.run()
            ended(shim)
            shim.kill_shim()
            answer = shim.delete()
            self.assertEqual((6, "now"), (number(answer, 2), moment(message(answer, 3))))

    def test_a_container_under_another_root_is_found(self) -> None:
        root = "/run/lab/taskapi/other-root"
        with Shim(self.ha, OURS, options=runc_options(root=root)) as shim:
            pid = shim.run()
            self.assertTrue(self.ha.path(f"{root}/taskapi/{shim.id}").exists())
            shim.kill_shim()
            self.assertEqual(137, number(shim.delete(), 2))
            self.assertFalse(self.ha.path(f"/proc/{pid}").exists())
            self.assertFalse(self.ha.path(f"{root}/taskapi/{shim.id}").exists())

    def test_a_bundle_in_which_nothing_was_created(self) -> None:
        # The stock shim tells -1 for the pid.
        with Shim(self.ha, OURS) as shim:
            shim.kill_shim()
            answer = shim.delete()
            self.assertEqual((0, 137, "now"), (number(answer, 1), number(answer, 2), moment(message(answer, 3))))


class Start(ShimTest):
    """Bringing up a server."""

    def test_a_second_start_finds_the_server_that_is_there(self) -> None:
        for binary in (STOCK, OURS):
            with self.subTest(binary):
                shim = self.shim(binary)
                self.assertEqual(shim.address, shim.start())
                self.assertEqual(shim.pid, shim.shim_pid())

    def test_a_pods_containers_share_a_server_and_it_stays_for_the_last(self) -> None:
        for binary in (STOCK, OURS):
            with self.subTest(binary):
                annotations = {GROUP: f"pod-{binary}"}
                first = self.shim(binary, annotations=annotations)
                second = self.shim(binary, annotations=annotations)
                self.assertEqual((first.address, first.pid), (second.address, second.pid))
                first.run()
                second.run()
                first.end()
                first.ok("Delete")
                first.ok("Shutdown")
                second.ok("State")
                second.end()
                second.ok("Delete")
                self.assertEqual("NOT_FOUND", second.call("State").code)

    def test_a_socket_that_a_dead_server_has_left_is_replaced(self) -> None:
        for binary in (STOCK, OURS):
            with self.subTest(binary):
                shim = self.shim(binary)
                shim.kill_shim()
                self.assertTrue(self.ha.path(shim.address).exists())
                self.assertEqual(shim.address, shim.start())
                before, shim.pid = shim.pid, shim.shim_pid()
                self.assertNotEqual(before, shim.pid)
                shim.run()

    def test_wrong_calls_fail_and_say_why(self) -> None:
        for binary in (STOCK, OURS):
            shim = self.placed(binary)
            for flags in (("-no-such-flag",), ("-namespace", "", "start")):
                done = shim.action(*flags)
                self.assertNotEqual(0, done.returncode, (binary, flags))
                self.assertTrue(done.stderr.strip(), (binary, flags))
            (self.ha.path(shim.bundle) / "config.json").unlink()
            done = shim.action("start")
            self.assertNotEqual(0, done.returncode, binary)
            self.assertEqual("", self.ha.run("sh", "-c", f"ps ax -o args | grep '[-]id {shim.id} '; true").stdout)

    def test_the_server_is_the_last_that_a_lack_of_memory_takes_before_containerd(self) -> None:
        scores = []
        for binary in (STOCK, OURS):
            shim = self.shim(binary)
            scores.append(self.ha.run("cat", f"/proc/{shim.pid}/oom_score_adj").stdout.strip())
        self.assertEqual(*scores)
        self.assertEqual("1", scores[0])


class Info(ShimTest):
    """What the runtime says of itself."""

    def info(self, binary: str, options: bytes = b"") -> dict[int, list]:
        """The answer to -info."""
        done = subprocess.run(self.ha.command([binary, "-info"]), input=options, capture_output=True, timeout=30)
        self.assertEqual(b"", done.stderr)
        return decode(done.stdout)

    def stock_has_info(self) -> bool:
        """False for that of containerd 1.7."""
        return "not defined: -info" not in self.ha.run(STOCK, "-info", check=False).stderr

    def test_its_answer_has_the_stock_ones_shape_and_features(self) -> None:
        if not self.stock_has_info():
            self.skipTest("the stock shim of this containerd has no -info")
        options = runc_options(binary_name="runc")
        stock, ours = self.info(STOCK, options), self.info(OURS, options)
        self.assertEqual(("io.containerd.runc.v2", "io.containerd.godwit.v2"), (text(stock, 1), text(ours, 1)))
        self.assertTrue(text(message(ours, 2), 1))
        self.assertEqual(message(stock, 3), message(ours, 3))
        features = []
        for answer in (stock, ours):
            packed = message(answer, 4)
            self.assertEqual(FEATURES_TYPE, text(packed, 1))
            features.append(json.loads(text(packed, 2)))
        self.assertEqual(*features)

    def test_its_annotations_name_runc_and_criu(self) -> None:
        annotations = {text(e, 1): text(e, 2) for e in map(decode, self.info(OURS)[5])}
        runc = self.ha.run("runc", "--version").stdout.splitlines()[0]
        criu = self.ha.run("criu", "--version").stdout.splitlines()[0].removeprefix("Version: ")
        self.assertEqual(
            {"io.godwit.runc.version": runc, "io.godwit.criu.version": criu,
             "org.opencontainers.runc.checkpoint.enabled": "true"},
            annotations,
        )  # fmt: skip

    def test_without_criu_it_checkpoints_nothing(self) -> None:
        path = "/run/lab/taskapi/only-runc"
        self.ha.run("sh", "-c", f"mkdir -p {path} && ln -sf /usr/sbin/runc {path}/")
        done = subprocess.run(
            self.ha.command(["sh", "-c", f"shim=$(command -v {OURS}); PATH={path} exec $shim -info"]),
            input=b"", capture_output=True, timeout=30,
        )  # fmt: skip
        annotations = {text(e, 1): text(e, 2) for e in map(decode, decode(done.stdout)[5])}
        self.assertEqual("false", annotations["org.opencontainers.runc.checkpoint.enabled"])
        self.assertNotIn("io.godwit.criu.version", annotations)

    def test_a_runtime_that_is_not_there_and_options_that_are_none_fail(self) -> None:
        for options in (runc_options(binary_name="/no/such/runc"), encode(any_of("no.such.Options", b"x"))):
            for binary in (STOCK, OURS) if self.stock_has_info() else (OURS,):
                done = subprocess.run(self.ha.command([binary, "-info"]), input=options, capture_output=True, timeout=30)
                self.assertNotEqual(0, done.returncode, binary)
                self.assertIn(b"no.such" if b"Options" in options[:20] else b"/no/such/runc", done.stderr)

    def test_version(self) -> None:
        for binary in (STOCK, OURS):
            said = self.ha.run(binary, "-v").stdout
            self.assertRegex(said, rf"^{binary}:\n  Version: +\d+\.\d+")
