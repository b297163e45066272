"""Options of a checkpoint and a restore: each of the places that set them wins over the next, and the image remembers."""

import json
import shutil
import time
import tomllib

from tests.checkpoints import SERVER, CheckpointTest

PREFIX = "io.godwit.checkpoint."
HOST_FILE = "/etc/godwit/shim.toml"


class OptionsTest(CheckpointTest):
    """Containers with annotations, on a host with a file."""

    def serve_with(self, *annotations: str) -> str:
        """The server with annotations of checkpoints."""
        return self.serve(*(part for one in annotations for part in ("--annotation", one)))

    def set_host_file(self, text: str) -> None:
        tomllib.loads(text)
        self.ha.write(HOST_FILE, text)
        self.addCleanup(lambda: self.ha.path(HOST_FILE).unlink(missing_ok=True))

    def criu_config(self, name: str) -> list[str]:
        """What CRIU was told at the last dump or restore of a running container."""
        container_id = self.inspect(name, "{{.Id}}")
        for task in self.tasks():
            record = json.loads(self.ha.path(f"/run/godwit/tasks/{task}/shim.json").read_text())
            if record["id"] == container_id:
                files = self.ha.path(f"/run/godwit/tasks/{task}").glob("criu*.conf")
                return [line for file in files for line in file.read_text().splitlines()]
        self.fail("it has no control directory")

    def manifest(self, name: str, checkpoint: str = "c1") -> dict:
        """The manifest of a checkpoint that Docker keeps."""
        return json.loads((self.checkpoints(name) / checkpoint / "godwit.json").read_text())

    def checkpoints(self, name: str):
        return self.ha.path(f"/var/lib/docker/containers/{self.inspect(name, '{{.Id}}')}/checkpoints")


class Precedence(OptionsTest):
    """Request over annotation over host's file over default."""

    def request(self, name: str, *options: str, image: str = "/run/image") -> dict:
        """containerd's own request, made for Docker's container; the manifest of its image."""
        self.ha.run("sh", "-c", f"rm -rf {image}; mkdir -m 700 {image}")
        self.addCleanup(self.ha.run, "rm", "-rf", image)
        container_id = self.inspect(name, "{{.Id}}")
        self.ha.run("ctr", "--namespace", "moby", "task", "checkpoint", "--image-path", image, *options, container_id)
        return json.loads(self.ha.path(f"{image}/godwit.json").read_text())

    def test_the_request_wins_over_the_annotation(self) -> None:
        name = self.serve_with(f"{PREFIX}leave-running=false")
        link = self.link("ha", self.address(name))
        link.ask()
        self.request(name)  # says: leave it running
        self.assert_runs_on(name, link)
        other = self.serve_with(f"{PREFIX}leave-running=true")
        self.link("ha", self.address(other)).ask()
        self.request(other, "--exit")
        self.soon("its end", lambda: self.status(other) == "exited")

    def test_the_annotation_wins_over_the_hosts_file_and_that_over_the_default(self) -> None:
        self.set_host_file('[checkpoint]\nleave-running = true\nnetwork-lock = "iptables"\ntimeout = 33\nghost-limit = 5000\n')
        name = self.serve_with(f"{PREFIX}timeout=44", f"{PREFIX}skip-in-flight=true", f"{PREFIX}link-remap=false")
        link = self.link("ha", self.address(name))
        link.ask()
        self.checkpoint(name)
        said = self.criu_config(name)
        for line in ("network-lock iptables", "timeout 44", "ghost-limit 5000", "skip-in-flight", "tcp-established"):
            self.assertIn(line, said)
        self.assertNotIn("link-remap", said)
        self.assert_runs_on(name, link)

    def test_every_network_lock_keeps_connections(self) -> None:
        for lock in ("nftables", "iptables", "skip"):
            with self.subTest(lock):
                name = self.serve_with(f"{PREFIX}network-lock={lock}")
                link = self.link("ha", self.address(name))
                self.assertEqual(1, link.ask())
                self.request(name)  # it runs on, and what CRIU was told stays to be read
                self.assertIn(f"network-lock {lock}", self.criu_config(name))
                time.sleep(1)  # containerd names a checkpoint by the second
                self.checkpoint(name)
                self.restore(name)
                self.assertEqual(2, link.ask())
                self.assert_no_trace(name)
                self.docker("rm", "--force", name)

    def test_too_small_a_ghost_limit_fails_and_names_the_option(self) -> None:
        hold = SERVER.replace("held = []", 'import os; kept = open("/x", "wb"); kept.write(b"x" * 99999); kept.flush(); '
                              'os.unlink("/x"); held = []')  # fmt: skip
        name = self.serve("--annotation", f"{PREFIX}ghost-limit=4096", command=("python3", "-c", hold))
        link = self.link("ha", self.address(name))
        link.ask()
        self.assertIn(f"raise {PREFIX}ghost-limit", self.failed_checkpoint(name))
        self.assert_runs_on(name, link)


class Remembered(OptionsTest):
    """What was chosen at the dump holds at the restore, unless a restore is told otherwise."""

    def test_the_image_wins_over_the_hosts_file_of_the_restore(self) -> None:
        self.set_host_file('[checkpoint]\ntcp = "close"\ncgroups-mode = "soft"\nfile-locks = false\n')
        name = self.serve_with(f"{PREFIX}file-locks=true")
        link = self.link("ha", self.address(name))
        self.assertEqual(1, link.ask())
        self.checkpoint(name)
        remembered = self.manifest(name)["options"]
        self.assertEqual(("close", "soft", True), tuple(remembered[key] for key in ("tcp", "cgroups-mode", "file-locks")))
        self.set_host_file('[checkpoint]\ntcp = "established"\n')
        self.restore(name)
        self.assertIn("tcp-close", self.criu_config(name))
        self.assertEqual(2, self.link("ha", self.address(name)).ask())

    def test_a_restore_can_be_told_otherwise(self) -> None:
        name = self.serve()
        link = self.link("ha", self.address(name))
        self.assertEqual(1, link.ask())
        self.checkpoint(name)
        self.assertEqual("established", self.manifest(name)["options"]["tcp"])
        other = self.serve()  # takes the address: with its connections the container cannot come back
        self.assertIn("the address is not on this host", self.restore(name, check=False).stderr)
        self.set_host_file('[restore]\ntcp = "close"\n')
        self.restore(name)
        self.assertEqual(2, self.link("ha", self.address(name)).ask())
        self.docker("rm", "--force", other)

    def test_what_is_decided_at_the_dump_cannot_be_told_to_a_restore(self) -> None:
        name = self.new_name()
        done = self.docker("run", "--runtime", self.runtime, "--name", name, "--annotation", "io.godwit.restore.leave-running=true",
                           "busybox", "true", check=False)  # fmt: skip
        self.assertEqual(125, done.returncode)
        self.assertIn("io.godwit.restore.leave-running=true: it is decided at the dump", done.stderr)


class Damage(OptionsTest):
    """A file of an image that has its size and not its content."""

    def flip(self, name: str, file: str) -> None:
        path = self.checkpoints(name) / "c1" / file
        shutil.copy(path, path.with_suffix(".whole"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def mend(self, name: str, file: str) -> None:
        path = self.checkpoints(name) / "c1" / file
        path.with_suffix(".whole").replace(path)

    def test_a_flipped_bit_is_found_in_metadata_and_if_wanted_in_pages(self) -> None:
        name = self.serve_with(f"{PREFIX}digests=all")
        self.link("ha", self.address(name)).ask()
        self.checkpoint(name)
        for file in ("core-1.img", "pages-1.img"):
            self.flip(name, file)
            error = self.restore(name, check=False).stderr
            self.assertIn(f"the checkpoint image is damaged: {file} is not what was written", error)
            self.mend(name, file)
        self.restore(name)
        self.assertEqual(2, self.link("ha", self.address(name)).ask())
