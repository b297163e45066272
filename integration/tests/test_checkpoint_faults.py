"""Checkpoints and restores that fail: the container is not harmed, the error says why, and nothing is left."""

import contextlib
import json
import subprocess
import tempfile
import threading
from pathlib import Path

from tests.capabilities import why_no_sockets
from tests.checkpoints import SERVER, CheckpointTest, Link

# The shell starts the first process and ends as the server; it reads the ids of those to end from a file.
BESIDE = ("sh", "-c", '"$1" & echo $! >/tmp/beside; exec python3 -c "$0"', SERVER)
RING = r"""
#include <linux/io_uring.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    struct io_uring_params params = {0};
    if (syscall(__NR_io_uring_setup, 4, &params) < 0) { perror("io_uring_setup"); return 1; }
    for (;;) pause();
}
"""
# Gives a descriptor of a file of the host to whoever connects.
GIVER = r"""
import os, socket
os.makedirs("/run/giver", exist_ok=True)
listener = socket.socket(socket.AF_UNIX); listener.bind("/run/giver/giver.sock"); listener.listen()
print("up", flush=True)
one = listener.accept()[0]
with open("/run/outside", "w") as file:
    socket.send_fds(one, [b"x"], [file.fileno()])
one.recv(1)
"""


class FailedDumps(CheckpointTest):
    """A container holds what CRIU cannot take."""

    def log_of(self, error: str) -> str:
        """The log which an error names, as it lies on the host."""
        self.assertIn("/var/log/godwit/", error)
        path = "/var/log/godwit/" + error.partition("/var/log/godwit/")[2].split()[0].rstrip(":,;.")
        return self.ha.path(path).read_text(errors="replace")

    def assert_checkpoints(self, name: str, link: Link) -> None:
        """With the cause out of the way a checkpoint works, and the connection lives on."""
        before = link.ask()
        self.checkpoint(name)
        self.restore(name)
        self.assertEqual(before + 1, link.ask())
        self.assert_no_trace(name)

    def test_io_uring(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "ring.c")
            source.write_text(RING)
            subprocess.run(["gcc", "-static", "-o", Path(directory, "ring"), source], check=True)
            self.ha.install(Path(directory, "ring"), "/opt/ring", 0o755)
        name = self.serve("--volume", "/opt/ring:/ring:ro", "--security-opt", "seccomp=unconfined",
                          command=(*BESIDE, "/ring"))  # fmt: skip
        link = self.talk(name)
        self.assertEqual(1, link.ask())
        error = self.failed_checkpoint(name)
        self.assertIn("io_uring", error)
        self.assertIn("switch it off", error)
        self.assertIn("send_fds failed (-22)", self.log_of(error))
        self.assert_runs_on(name, link)
        self.docker("exec", name, "sh", "-c", "read pid </tmp/beside; kill $pid")
        self.assert_checkpoints(name, link)

    def test_a_network_socket_where_criu_can_dump_none(self) -> None:
        if not why_no_sockets(self.ha):
            self.skipTest("this host's CRIU can dump network sockets")
        name = self.serve("--env", "SERVER_FILE=")
        link = self.link("ha", self.address(name), dumped=False)
        self.assertEqual(1, link.ask())
        error = self.failed_checkpoint(name)
        self.assertIn("cannot dump network sockets", error)
        self.assertIn("install CRIU 4.2 or later", error)
        self.assert_runs_on(name, link)

    def test_a_file_from_outside_the_containers_mounts(self) -> None:
        self.addCleanup(self.ha.run, "rm", "-rf", "/run/giver", "/run/outside")
        giver = subprocess.Popen(self.ha.command(["python3", "-c", GIVER]), stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end, giver)
        self.assertEqual("up\n", giver.stdout.readline())
        name = self.serve("--volume", "/run/giver:/shared")
        link = self.talk(name)
        link.ask("/hold")
        error = self.failed_checkpoint(name)
        self.assertIn("outside the container's mounts", error)
        self.assertIn("Error", self.log_of(error))
        self.assert_runs_on(name, link)
        link.ask("/drop")
        self.assert_checkpoints(name, link)

    @staticmethod
    def end(process: subprocess.Popen) -> None:
        process.kill()
        process.communicate()

    def test_a_process_of_exec(self) -> None:
        name = self.serve()
        link = self.talk(name)
        self.docker("exec", "--detach", name, "sh", "-c",
                    "echo $$ >/tmp/session; exec python3 -c 'import time; time.sleep(1000)'")  # fmt: skip
        is_there = ("exec", name, "sh", "-c", "test -s /tmp/session")
        self.soon("the session", lambda: self.docker(*is_there, check=False).returncode == 0)
        error = self.failed_checkpoint(name)
        self.assertIn("exec", error)
        self.assertIn("end", error)
        self.assert_runs_on(name, link)
        self.docker("exec", name, "sh", "-c", "read pid </tmp/session; kill -9 $pid")
        self.soon("a checkpoint", lambda: self.docker("checkpoint", "create", name, "c1", check=False).returncode == 0)
        self.restore(name)
        self.assert_no_trace(name)

    def test_no_room_for_the_image(self) -> None:
        name = self.serve()
        link = self.talk(name)
        self.ha.run("mount", "-t", "tmpfs", "-o", "size=256k", "small", "/tmp")  # where containerd has images written
        with contextlib.ExitStack() as small:
            small.callback(self.ha.run, "umount", "/tmp")
            error = self.failed_checkpoint(name)
            self.assertIn("No space left on device", error)
            self.assert_runs_on(name, link)
        self.assert_checkpoints(name, link)

    def test_requests_are_answered_while_dumps_fail(self) -> None:
        name = self.serve("--annotation", "org.criu.config=/run/no-such-file")
        link = self.talk(name)
        n_first, errors, stop = link.ask(), [], threading.Event()

        def ask() -> None:
            try:
                while not stop.is_set():
                    link.ask()
            except OSError as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(3):
                self.assertIn("/run/no-such-file", self.failed_checkpoint(name))
        finally:
            stop.set()
            asking.join()
        self.assertEqual([], errors)
        self.assertGreater(link.ask(), n_first + 10)
        self.assert_runs_on(name, link)


class FailedRestores(CheckpointTest):
    """The image is bad, or the place is."""

    def checkpointed(self, *options: str) -> str:
        name = self.serve(*options)
        self.talk(name).ask()
        self.checkpoint(name)
        return name

    def assert_nothing_left(self, name: str) -> None:
        """No process, mount, cgroup or control directory of the container; it starts afresh."""
        container_id = self.inspect(name, "{{.Id}}")
        self.assertNotEqual("running", self.status(name))
        self.soon("the helpers to end", lambda: not self.helpers())
        self.soon("the shim to end", lambda: container_id not in self.ha.run("ps", "ax", "-o", "args").stdout)
        self.assertEqual([], self.tasks())
        self.assertNotIn(container_id, self.ha.run("cat", "/proc/self/mountinfo").stdout)
        self.assertEqual("", self.ha.run("sh", "-c", f"find /sys/fs/cgroup -name '*{container_id}*'").stdout)
        self.docker("start", name)
        self.assertEqual(1, self.talk(name).ask())

    def images(self, name: str) -> Path:
        return self.ha.path(f"/var/lib/docker/containers/{self.inspect(name, '{{.Id}}')}/checkpoints/c1")

    def test_a_truncated_image(self) -> None:
        name = self.checkpointed()
        image = self.images(name) / "pages-1.img"  # CRIU itself would read at its end for ever
        pages = image.read_bytes()
        image.write_bytes(pages[:-4096])
        error = self.restore(name, check=False).stderr
        self.assertIn(f"damaged: pages-1.img has {len(pages) - 4096} of {len(pages)} bytes", error)
        self.assert_nothing_left(name)

    def test_a_manifest_that_is_none(self) -> None:
        name = self.checkpointed()
        (self.images(name) / "godwit.json").write_text('{"version": 1')
        self.assertIn("godwit.json", self.restore(name, check=False).stderr)
        self.assert_nothing_left(name)

    def test_the_error_of_a_restore_names_crius_cause_and_log(self) -> None:
        name = self.checkpointed("--annotation", "io.godwit.checkpoint.digests=none")  # so that CRIU itself finds out
        core = self.images(name) / "core-1.img"
        core.write_bytes(b"x" * core.stat().st_size)
        error = self.restore(name, check=False).stderr
        self.assertIn("magic doesn't match", error)
        log = "/var/log/godwit/" + error.partition("/var/log/godwit/")[2].split()[0].rstrip(":,;.")
        self.assertIn("magic doesn't match", self.ha.path(log).read_text(errors="replace"))
        self.assert_nothing_left(name)

    def test_a_criu_that_goes_round_in_circles_is_ended(self) -> None:
        name = self.checkpointed()
        image = self.images(name) / "pages-1.img"
        pages = image.read_bytes()
        image.write_bytes(pages[: len(pages) // 2])
        manifest = self.images(name) / "godwit.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {}, "digests": {}}))
        error = self.restore(name, check=False).stderr
        self.assertIn("goes round in circles", error)
        self.assertIn("the image is damaged", error)
        log = "/var/log/godwit/" + error.partition("/var/log/godwit/")[2].split()[0].rstrip(":,;.")
        self.assertLess(self.ha.path(log).stat().st_size, 10 << 20)
        self.assert_nothing_left(name)

    def test_an_image_that_is_none(self) -> None:
        name = self.checkpointed()
        (self.images(name) / "inventory.img").unlink()
        self.assertIn("no checkpoint image", self.restore(name, check=False).stderr)
        self.assert_nothing_left(name)

    def test_an_address_that_is_another_now(self) -> None:
        self.needs_sockets()
        name = self.checkpointed()
        other = self.serve()  # takes the address which is free now
        error = self.restore(name, check=False).stderr
        self.assertIn("the address is not on this host", error)
        self.docker("rm", "--force", other)
        self.assert_nothing_left(name)
        self.docker("kill", name)
        self.restore(name)
        self.assertEqual(2, self.talk(name).ask())
