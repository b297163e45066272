"""An archive as an image: a container goes into its engine as one layer and comes out of it again."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab.moves import Operation, holdings
from tests.moving import FORGETFUL_REDIS
from tests.test_archives import ABORTED, REFUSED, ArchiveTest
from tests.test_move_containerd import BUSYBOX, COUNTER, HEAVY_COUNTER, CtrMoveTest
from tests.test_move_files import FOREVER

# By which others know whose checkpoint it is.
NAMES = ("io.podman.annotations.checkpoint.name", "io.kubernetes.cri-o.annotations.checkpoint.name",
         "org.criu.checkpoint.container.name")  # fmt: skip


class ImageTest(ArchiveTest):
    """What these tests share."""

    def into(self, reference: str, name: str, *options: str, code: int = 0) -> str:
        """Exports a container of ha into an image; what was said."""
        done = self.ha.run("godwit", "export", name, "--oci", reference, *options, check=False)
        self.assertEqual(code, done.returncode, done.stderr)
        return done.stderr

    def out_of(self, reference: str, *options: str, code: int = 0) -> str:
        """Makes a container on ha of an image; what was said."""
        done = self.ha.run("godwit", "import", "--oci", reference, *options, check=False)
        self.assertEqual(code, done.returncode, done.stderr)
        return done.stderr

    @contextmanager
    def half_way(self, daemon: str, name: str, reference: str) -> Iterator[Operation]:
        """An export into an image whose engine stands still within the context, and has taken a part of it at most."""
        # an unpacked layer, since a part of a packed one is no layer to anybody
        export = Operation(self.ha, "export", name, "--oci", reference, "--compress", "none", "--json")
        export.until("freeze")
        pid = str(self.ha.daemon_pid(daemon))
        self.ha.run("kill", "-STOP", pid)
        try:
            # as much as lies between the tasks and an engine that does not read
            export.until_sent(1 << 20)
            yield export
        finally:
            self.ha.run("kill", "-CONT", pid, check=False)


class OfDocker(ImageTest):
    """Docker's images."""

    def new_image(self) -> str:
        """A name that no image has; the test's end removes what has it."""
        reference = f"checkpoint-of-{self.new_name()}:1"
        self.addCleanup(self.docker, "image", "rm", "--force", reference, check=False)
        return reference

    def has(self, reference: str) -> bool:
        """Whether Docker knows an image of this name."""
        return self.docker("image", "inspect", reference, check=False).returncode == 0

    def test_a_redis_comes_out_of_its_image_with_its_data_files_and_volume(self) -> None:
        self.new_volume("birds")
        name = self.start_redis("--volume", "birds:/birds", command=FORGETFUL_REDIS)
        self.redis(name, "SET", "bird", "godwit")
        self.docker("exec", name, "sh", "-c", "echo file >/root/file; echo volume >/birds/volume")
        reference = self.new_image()
        self.assertIn(f"is in image {reference}, and is stopped here", self.into(reference, name))
        self.assertEqual("exited", self.containers(self.ha)[name])
        self.holds_nothing(self.ha)
        labels = json.loads(self.docker("image", "inspect", "--format", "{{json .Config.Labels}}", reference).stdout)
        self.assertEqual([name] * len(NAMES), [labels[key] for key in NAMES])
        self.docker("rm", "--volumes", name)
        self.docker("volume", "rm", "birds")
        self.out_of(reference)
        self.assertEqual("godwit", self.redis(name, "GET", "bird"))
        for path, content in (("/root/file", "file"), ("/birds/volume", "volume")):
            self.assertEqual(content, self.docker("exec", name, "sh", "-c", f"read a <{path}; echo $a").stdout.strip())
        self.holds_nothing(self.ha)

    def test_one_that_runs_on_comes_out_of_its_image_beside_itself(self) -> None:
        name = self.start("redis:8", options=("--network", "bridge", "--restart", "always"))
        self.soon("redis", lambda: "PONG" in self.redis(name, "PING", check=False))
        self.redis(name, "SET", "bird", "godwit")
        pid = self.inspect(name, "{{.State.Pid}}")
        reference = self.new_image()
        self.into(reference, name, "--leave-running")
        self.assertEqual(pid, self.inspect(name, "{{.State.Pid}}"))
        self.assertEqual("always", self.inspect(name, "{{.HostConfig.RestartPolicy.Name}}"))
        self.redis(name, "SET", "bird", "curlew")
        again = self.new_name()
        self.out_of(reference, "--name", again)
        self.assertEqual(("curlew", "godwit"), (self.redis(name, "GET", "bird"), self.redis(again, "GET", "bird")))
        self.holds_nothing(self.ha)

    def test_what_is_refused_touches_nothing_and_says_why(self) -> None:
        name = self.start("busybox", *FOREVER, options=("--network", "none"))
        reference = self.new_image()
        check = self.unmoved(name)
        self.docker("tag", "busybox", reference)
        before = self.images(self.ha)
        self.assertIn(f"an image {reference} is there already", self.into(reference, name, code=REFUSED))
        self.assertIn("cannot be called so", self.into("sha256:16031d20", name, code=1))
        self.assertIn("must be lowercase", self.into("Checkpoint", name, code=1))
        self.assertEqual(before, self.images(self.ha))
        check()
        # an image of one layer, and one of more
        self.assertIn("is no member of a container's archive", self.out_of(reference, code=REFUSED))
        two = self.new_image()
        self.docker("run", "--name", f"{name}-two", "busybox", "touch", "/second")
        self.addCleanup(self.docker, "rm", f"{name}-two", check=False)
        self.docker("commit", f"{name}-two", two)
        self.assertIn("it has 2 layers", self.out_of(two, code=REFUSED))
        self.assertIn("no engine of this host has an image nowhere:1", self.out_of("nowhere:1", code=REFUSED))
        self.holds_nothing(self.ha)

    def test_an_export_that_is_interrupted_or_loses_its_agent_leaves_the_container_running_and_no_image(self) -> None:
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(96 << 20)
        before = self.images(self.ha)
        for fault, code in (("interrupt", ABORTED), ("agent", 1)):
            with self.subTest(fault):
                reference = self.new_image()
                check = self.unmoved(name)
                with self.half_way("dockerd", name, reference) as export:
                    if fault == "interrupt":
                        export.interrupt()
                    else:
                        self.kill_agent(self.ha)
                self.start_agent(self.ha)
                self.assertEqual(code, export.end().code, export.said)
                check()
                self.assertEqual(before, self.images(self.ha))

    def test_an_export_that_is_given_up_when_the_image_may_be_there_removes_it(self) -> None:
        name = self.start_redis(command=FORGETFUL_REDIS)
        before = self.images(self.ha)
        for number in range(20):
            reference = self.new_image()
            check = self.unmoved(name)
            export = Operation(self.ha, "export", name, "--oci", reference, "--json")
            export.until("freeze")
            time.sleep(0.02 * 1.3**number)  # at last three seconds, for a slow machine
            export.interrupt()
            if export.end().code == 0 or "too late" in export.stderr:
                self.soon("it to be stopped", lambda: self.containers(self.ha)[name] == "exited")
                self.assertTrue(self.has(reference), export.said)
                return
            self.assertEqual(ABORTED, export.code, export.said)
            check()
            self.assertEqual(before, self.images(self.ha), number)
        self.fail("it was never too late")

    def test_an_image_of_podmans_comes_to_run_under_docker(self) -> None:
        name = self.start_at_podman()
        self.podman("exec", name, "redis-cli", "SET", "bird", "curlew")
        reference = f"localhost/{self.new_image()}"
        self.addCleanup(self.podman, "image", "rm", "--force", reference, check=False)
        self.addCleanup(self.docker, "image", "rm", "--force", reference, check=False)
        self.podman("container", "checkpoint", name, "--create-image", reference)
        self.podman("rm", name)
        self.podman("save", "--output", "/var/tmp/archives/checkpoint.tar", reference)
        self.docker("load", "--input", "/var/tmp/archives/checkpoint.tar")
        self.out_of(reference)
        self.assertEqual("curlew", self.redis(name, "GET", "bird"))
        self.holds_nothing(self.ha)


class OfContainerd(ImageTest, CtrMoveTest):
    """containerd's images."""

    def new_image(self, namespace: str = "default") -> str:
        """A name that no image has; the test's end removes what has it."""
        reference = f"localhost/checkpoint-of-{self.new_name()}:1"
        self.addCleanup(self.ctr, "-n", namespace, "images", "rm", reference, check=False)
        return reference

    def content(self) -> list[str]:
        """The blobs of the store, finished or not."""
        root = self.ha.path("/var/lib/containerd/io.containerd.content.v1.content")
        return sorted(path.name for place in ("blobs/sha256/*", "ingest/*") for path in root.glob(place))

    def test_a_container_comes_out_of_its_image_and_counts_on(self) -> None:
        cases = (("default", "zstd", "tar+zstd"), ("default", "gzip", "tar+gzip"), ("birds", "none", "tar"))
        for namespace, compression, media_type in cases:
            with self.subTest(compression):
                name = self.run_ctr(*COUNTER, namespace=namespace)
                before = self.count(name, self.ha, namespace)
                reference = self.new_image(namespace)
                self.into(reference, f"{namespace}/{name}", "--compress", compression)
                self.assertEqual("none", self.states(self.ha, namespace)[name])
                listed = self.ctr("-n", namespace, "images", "ls", f"name=={reference}").stdout.splitlines()[1]
                manifest = json.loads(self.ctr("-n", namespace, "content", "get", listed.split()[2]).stdout)
                self.assertEqual([f"application/vnd.oci.image.layer.v1.{media_type}"],
                                 [layer["mediaType"] for layer in manifest["layers"]])  # fmt: skip
                for key in NAMES:
                    self.assertEqual(name, manifest["annotations"][key].rpartition("/")[2])
                # which fails if the configuration does not say what the layer is unpacked
                self.ctr("-n", namespace, "images", "mount", reference, "/mnt")
                self.assertIn("checkpoint", self.ha.run("ls", "/mnt").stdout)
                self.ctr("-n", namespace, "images", "unmount", "--rm", "/mnt")
                self.ctr("-n", namespace, "container", "rm", name)
                self.ctr("-n", namespace, "snapshots", "rm", name, check=False)
                self.out_of(reference, *(() if namespace == "default" else ("--namespace", namespace)))
                self.goes_on_counting(name, before, self.ha, namespace)

    def test_what_is_refused_touches_nothing_and_says_why(self) -> None:
        name = self.run_ctr(*COUNTER)
        self.assertIn("is there already", self.into(BUSYBOX, name, code=REFUSED))
        self.assertIn("no image is called so", self.into("a b", name, code=1))
        self.assertIn("is no member of a container's archive", self.out_of(BUSYBOX, "--engine", "containerd", code=REFUSED))
        self.assertIn("no engine of this host has", self.out_of("nowhere:1", "--namespace", "birds", code=REFUSED))
        self.assertEqual("running", self.states(self.ha)[name])
        self.soon("nothing to be left", lambda: not set(holdings(self.ha)) - {"tasks"})

    def test_an_export_that_is_interrupted_leaves_the_container_running_and_nothing_in_the_store(self) -> None:
        name = self.run_ctr(*HEAVY_COUNTER)
        since = self.count(name, self.ha)
        before, reference = self.content(), self.new_image()
        with self.half_way("containerd", name, reference) as export:
            export.interrupt()
        self.assertEqual(ABORTED, export.end().code, export.said)
        self.soon("its blobs to be gone", lambda: self.content() == before)
        self.still_here(name, since, reference)

    def test_an_engine_that_dies_costs_nothing_but_the_image(self) -> None:
        name = self.run_ctr(*HEAVY_COUNTER)
        since, reference = self.count(name, self.ha), self.new_image()
        with self.half_way("containerd", name, reference) as export:
            self.ha.signal_daemon("containerd", signal.SIGKILL)
        self.ha.start_daemon("containerd")
        self.assertEqual(1, export.end().code, export.said)
        self.still_here(name, since, reference)

    def still_here(self, name: str, since: tuple[str, int], reference: str) -> None:
        """A container of ha counts on, and there is no image of it."""
        self.goes_on_counting(name, since, self.ha)
        self.assertNotIn(reference, self.ctr("images", "ls", "--quiet").stdout.split())
        self.soon("nothing to be left", lambda: not set(holdings(self.ha)) - {"tasks"})
        self.assertNotIn("godwit-", self.ctr("leases", "ls").stdout)
