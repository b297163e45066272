"""Bad input: what a shim is given that cannot work. The error says what is wrong, and nothing is left of it.

Most of it no engine would send, so the shim is started by hand as containerd does, on a bundle made here.
"""

import json
import os
import re
import shlex

from tests.checkpoints import CheckpointTest
from tests.support import RUNTIME, STOCK_RUNTIME

SHIM = "/usr/local/bin/containerd-shim-godwit-v2"
ENGINE = "/run/containerd/containerd.sock"
CTR_IMAGE = "docker.io/library/busybox:latest"
FOREVER = ("sh", "-c", "while :; do sleep 1; done")
CONFIG = {
    "ociVersion": "1.0.2",
    "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
}


class Traces(CheckpointTest):
    """What a container leaves on a host while it lives; nothing of it may stay."""

    def traces(self) -> dict[str, list[str]]:
        """Shims, runCs and holders; mounts of bundles; control directories; sockets; cgroups of the host."""
        processes = self.ha.run("ps", "ax", "-o", "args").stdout.splitlines()
        mounts = self.ha.run("cat", "/proc/self/mountinfo").stdout.splitlines()
        return {
            "processes": sorted(line for line in processes if re.match(r"\S*(containerd-shim-|runc|criu)", line)),
            "mounts": sorted(line.split()[4] for line in mounts if "/rootfs" in line or "/bad" in line),
            "tasks": self.listing("/run/godwit/tasks"),
            "sockets": self.listing("/run/containerd/s"),
            "bundles": self.listing("-d /run/containerd/io.containerd.runtime.v2.task/*/*"),
            "runc": self.listing("-d /run/containerd/runc/*/* /run/docker/runtime-runc/*/*"),
            # runC leaves the cgroup of a namespace, which ctr's containers are in, when it is the first to use it.
            "cgroups": self.ha.run("sh", "-c", "find /sys/fs/cgroup -type d ! -name default | sort").stdout.split(),
        }

    def listing(self, what: str) -> list[str]:
        return sorted(self.ha.run("sh", "-c", f"ls {what} 2>&-; :").stdout.split())

    def assert_nothing_left(self, before: dict[str, list[str]]) -> None:
        try:
            self.soon("the traces to go", lambda: self.traces() == before)
        finally:
            self.assertEqual(before, self.traces())


class Bundles(Traces):
    """`start` on a bundle, and what engines make of it."""

    def setUp(self) -> None:
        super().setUp()
        self.before = self.traces()
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/bad")

    def start_shim(self, config: str | None, container_id: str = "bad", bundle: str = "/run/bad", *options: str):
        """Runs `start` in a bundle as containerd does; what it said."""
        self.ha.run("mkdir", "-p", f"{bundle}/rootfs")
        if config is not None:
            self.ha.write(f"{bundle}/config.json", config)
        argv = [SHIM, "-namespace", "bad", "-id", container_id, "-address", ENGINE, *options, "start"]
        script = f"cd {shlex.quote(bundle)} && {shlex.join(argv)} </dev/null"
        return self.ha.run("sh", "-c", script, check=False)

    def test_a_configuration_that_is_none(self) -> None:
        for config, why in [
            (None, "config.json"),
            ("", "config.json"),
            ('{"ociVersion": "1.0.2", "root": ', "config.json"),
            ('{"root": 1}', "config.json"),
            ("[" * 100_000, "config.json"),
            (json.dumps({**CONFIG, "annotations": ["a"]}), "config.json"),
        ]:
            with self.subTest(config=(config or "none")[:40]):
                done = self.start_shim(config)
                self.assertEqual(1, done.returncode)
                self.assertEqual("", done.stdout)
                self.assertIn(why, done.stderr)
                self.assertEqual(1, len(done.stderr.splitlines()), done.stderr)
                self.assertNotIn("panic", done.stderr)
                self.assert_nothing_left(self.before)
                self.ha.run("rm", "-rf", "/run/bad")

    def test_a_bundle_whose_path_has_blanks_and_more(self) -> None:
        bundle = "/run/bad/a b'c\"ü"
        done = self.start_shim(json.dumps(CONFIG), bundle=bundle)
        self.assertEqual(0, done.returncode, done.stderr)
        address = json.loads(done.stdout)["address"]
        self.assertEqual(address, self.ha.path(f"{bundle}/address").read_text())
        self.ha.run("kill", "-9", self.ha.path(f"{bundle}/shim.pid").read_text())
        script = f"cd /run && {SHIM} -namespace bad -id bad -bundle {shlex.quote(bundle)} delete"
        done = self.ha.run("sh", "-c", script, check=False)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assert_nothing_left(self.before)

    def test_noise_on_stdin(self) -> None:
        self.ha.run("mkdir", "-p", "/run/bad")
        self.ha.write("/run/bad/config.json", json.dumps(CONFIG))
        for noise in (b"\xff\xff\xff\xff", b"{}", os.urandom(4096) + b"\xff" * 12):
            argv = f"cd /run/bad && {SHIM} -namespace bad -id bad -address {ENGINE} start"
            done = self.ha.run("sh", "-c", argv, stdin=noise, check=False)
            self.assertEqual((1, ""), (done.returncode, done.stdout))
            self.assertNotIn("panic", done.stderr)
            self.assert_nothing_left(self.before)


class Engines(Traces):
    """The same by the engines' own commands, next to what the stock shim makes of it."""

    def setUp(self) -> None:
        super().setUp()
        self.import_for_ctr()
        self.before = self.traces()

    def ctr_run(self, *options: str, name: str = "bad", runtime: str = RUNTIME):
        """`ctr run`, which must fail without leaving anything; its error."""
        done = self.ha.run("ctr", "run", "--rm", "--runtime", runtime, *options, name, *FOREVER, check=False)
        self.ha.run("ctr", "container", "rm", name, check=False)
        self.assertEqual(1, done.returncode, done.stdout)
        self.assertNotIn("panic", done.stderr)
        self.assert_nothing_left(self.before)
        return done.stderr

    def test_a_rootfs_that_does_not_exist(self) -> None:
        for runtime in (RUNTIME, STOCK_RUNTIME):
            error = self.ctr_run("--rootfs", "/no/such/rootfs", runtime=runtime)
            self.assertIn("/no/such/rootfs", error)

    def test_ids_that_are_too_long_or_hostile(self) -> None:
        for name in ("../x", "a/b", "x" * 300, "ü", "a b", ".", "-a\n"):
            with self.subTest(name=name[:10]):
                self.ctr_run(CTR_IMAGE, "--", name=name) if name.startswith("-") else self.ctr_run(CTR_IMAGE, name=name)

    def test_an_id_of_the_greatest_length_runs(self) -> None:
        name = "x" * 76
        self.addCleanup(self.ha.run, "ctr", "container", "rm", name, check=False)
        done = self.ha.run("ctr", "run", "--rm", "--runtime", RUNTIME, CTR_IMAGE, name, "echo", "up", check=False)
        self.assertEqual((0, "up\n"), (done.returncode, done.stdout), done.stderr)
        self.assert_nothing_left(self.before)

    def test_a_checkpoint_where_no_image_can_be(self) -> None:
        self.needs_checkpoint_options()
        name = self.new_name()
        self.addCleanup(self.ha.run, "ctr", "container", "rm", name, check=False)
        self.addCleanup(self.ha.run, "ctr", "task", "rm", "--force", name, check=False)
        self.ha.run("ctr", "run", "--detach", "--runtime", RUNTIME, CTR_IMAGE, name, *FOREVER)
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/file")
        self.ha.write("/run/file", "")
        for path in ("/run/file", "/run/file/below", "/proc"):
            done = self.ha.run("ctr", "task", "checkpoint", "--image-path", path, name, check=False)
            self.assertEqual(1, done.returncode)
            self.assertIn(path, done.stderr)
            self.assertIn("RUNNING", self.ha.run("ctr", "task", "ls").stdout)
            self.assertEqual([], self.helpers())
        pid = self.ha.run("ctr", "task", "ls").stdout.splitlines()[-1].split()[1]
        self.assertEqual("thawed", self.freezer(pid))


class Images(Traces):
    """Checkpoint images that are not what they should be; truncated ones are in test_checkpoint_faults."""

    def checkpointed(self) -> str:
        name = self.serve("--network", "none")
        self.soon("its output", lambda: len(self.ticks(name)) > 1)
        self.checkpoint(name)
        self.soon("its end", lambda: self.status(name) == "exited")
        return name

    def images(self, name: str):
        return self.ha.path(f"/var/lib/docker/containers/{self.inspect(name, '{{.Id}}')}/checkpoints/c1")

    def test_manifests_of_another_version_and_with_files_elsewhere(self) -> None:
        name = self.checkpointed()
        before = self.traces()
        manifest = self.images(name) / "godwit.json"
        good = json.loads(manifest.read_text())
        for changed, why in [
            ({**good, "version": 99}, "version 99"),
            ({**good, "files": {"../../../etc/hostname": 3}}, "is no file of an image"),
            ({**good, "files": {**good["files"], "extra.img": 1}}, "extra.img has 0 of 1 bytes"),
        ]:
            manifest.write_text(json.dumps(changed))
            done = self.restore(name, check=False)
            self.assertNotEqual(0, done.returncode)
            self.assertIn(why, done.stderr)
            self.assert_nothing_left(before)
        manifest.write_text(json.dumps(good))
        n_ticks = self.ticks(name)[-1]
        self.restore(name)
        self.soon("it to go on where it was", lambda: self.ticks(name)[-1] > n_ticks)
        ticks = self.ticks(name)
        self.assertEqual(list(range(1, len(ticks) + 1)), ticks)

    def test_a_full_disk_below_the_image(self) -> None:
        self.needs_checkpoint_options()
        name = self.serve("--network", "none")
        self.soon("its output", lambda: len(self.ticks(name)) > 1)
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/small")
        self.ha.run("mkdir", "-p", "/run/small")
        for size in ("16k", "512k"):  # not even the first files; some of the pages
            self.ha.run("mount", "-t", "tmpfs", "-o", f"size={size}", "small", "/run/small")
            self.ha.run("mkdir", "-m", "700", "/run/small/i")
            try:
                done = self.ha.run("ctr", "--namespace", "moby", "task", "checkpoint", "--image-path", "/run/small/i",
                                   self.inspect(name, "{{.Id}}"), check=False)  # fmt: skip
            finally:
                self.ha.run("umount", "/run/small")
            self.assertEqual(1, done.returncode, size)
            self.assertIn("No space left on device", done.stderr)
            self.assertEqual("running", self.status(name))
            n_ticks = len(self.ticks(name))
            self.soon("it to go on", lambda: len(self.ticks(name)) > n_ticks)
            self.assert_no_trace(name)

    def test_a_failed_dump_takes_back_the_directory_that_it_made_and_no_other(self) -> None:
        self.needs_checkpoint_options()
        name = self.serve("--network", "none")
        self.soon("its output", lambda: len(self.ticks(name)) > 1)
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/small")
        self.ha.run("mkdir", "-p", "/run/small")
        self.ha.run("mount", "-t", "tmpfs", "-o", "size=512k", "small", "/run/small")
        self.addCleanup(self.ha.run, "umount", "/run/small")
        self.ha.run("mkdir", "-m", "700", "/run/small/there")
        self.ha.write("/run/small/there/own", "")
        for image in ("/run/small/made", "/run/small/there"):
            done = self.ha.run("ctr", "--namespace", "moby", "task", "checkpoint", "--image-path", image,
                               self.inspect(name, "{{.Id}}"), check=False)  # fmt: skip
            self.assertIn("No space left on device", done.stderr)
            log = re.search(r"/var/log/godwit/[^\s:,;]+", done.stderr)[0]
            self.assertIn("Error", self.ha.path(log).read_text(errors="replace"))
        self.assertEqual(["there"], self.listing("/run/small"))
        self.assertIn("own", self.listing("/run/small/there"))
        self.assert_no_trace(name)
