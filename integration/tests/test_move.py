"""Moves that succeed: what goes along, and what is left behind."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from lab.hosts import Host, client_command
from tests.moving import ADDRESS, MAC_ADDRESS, Move, MoveTest
from tests.support import SOON_SECONDS

LABELS = ("--label", "tier=cache", "--label", "empty=", "--env", "COLOR=grün", "--hostname", "store", "--annotation",
          "io.example.note=kept", "--restart", "unless-stopped", "--stop-timeout", "3")  # fmt: skip
# A process that holds one connection to whoever asks and answers each line; a client of it says whether it still does.
ECHO = """
import socket
server = socket.create_server(("", 80))
print("up", flush=True)
count = 0
while True:
    connection, _ = server.accept()
    count += 1
    with connection:
        while True:
            try:
                line = connection.recv(100)
                if not line:
                    break
                connection.sendall(b"%d " % count + line)
            except OSError as error:
                print("lost:", error, flush=True)
                break
"""


class Everything(MoveTest):
    """A Redis with a history moves to and fro, under load on one connection."""

    def test_an_image_that_the_destination_knows_by_another_name_is_given_the_containers(self) -> None:
        self.needs_moves()
        busy = ("sh", "-c", "while :; do sleep 1; done")
        self.moved(self.image("busybox"), *busy)
        self.docker("tag", "busybox", "theirs:1")
        for host in (self.ha, self.hb):
            self.addCleanup(self.docker, "image", "rm", "theirs:1", host=host, check=False)
        name, move = self.moved("theirs:1", *busy)
        self.assertEqual(0, move.events[-1]["report"]["bytes"]["layers"], "it is there")
        image = self.docker("image", "inspect", "--format", "{{.Id}}", "theirs:1").stdout.strip()
        self.assertEqual(f"theirs:1 {image}", self.inspect(name, "{{.Config.Image}} {{.Image}}", self.hb))

    def moved(self, *command: str) -> tuple[str, Move]:
        """Starts a container on ha and moves it."""
        name = self.start(*command)
        self.addCleanup(self.docker, "rm", "--force", name, host=self.hb, check=False)
        return name, self.move(name)

    def test_a_move_carries_all_of_a_container_and_so_do_the_next_two(self) -> None:
        self.needs_moves()
        # One that a container uses loses its name only, and its layers would not have to go.
        self.soon("the destination to be empty", lambda: self.containers(self.hb) == {})
        self.soon("the image to go", lambda: self.is_without_image("redis:8", self.hb))
        name = self.start_redis(*LABELS)
        image = self.inspect(name, "{{.Image}}")
        self.redis(name, "DEBUG", "LOG", "said-on-ha")
        self.write_history(self.root_of(name, self.ha))
        client = self.start_load()
        source, target = self.ha, self.hb
        for number in range(3):
            identity, files, log = self.identity(name, source), self.files(name, source), self.log(name, source)
            move = self.move(name, source, target)
            self.goes_on(client)
            with self.subTest(move=number):
                self.assertEqual(identity, self.identity(name, target))
                self.assertEqual(files, self.files(name, target))
                log_there = self.log(name, target)
                self.assertTrue(log_there.startswith(log), f"{log_there!r} does not begin with {log!r}")
                self.assertEqual(image, self.docker("images", "--no-trunc", "--quiet", "redis:8", host=target).stdout.strip())
                self.assertEqual(number == 0, move.events[-1]["report"]["bytes"]["layers"] > 0, "layers go only once")
                self.holds_nothing(source)
                self.holds_nothing(target)
            self.redis(name, "DEBUG", "LOG", f"said-after-{number}", host=target)
            self.soon("the log to go on", lambda: f"said-after-{number}" in self.logs(name, target))
            source, target = target, source
        self.assertIn("said-on-ha", self.logs(name, self.hb))
        account = self.kept_all(client)

        # its file on disk, which was being written through three moves, has all that was acknowledged
        self.hb.run("kill", "-9", self.inspect(name, "{{.State.Pid}}", self.hb))
        self.soon("Docker to start it again", lambda: self.redis(name, "PING", host=self.hb, check=False) == "PONG")
        self.assertEqual("1", self.inspect(name, "{{.RestartCount}}", self.hb))
        self.assertGreaterEqual(int(self.redis(name, "DBSIZE", host=self.hb)), account["acknowledged"])

    def is_without_image(self, image: str, host: Host) -> bool:
        """Removes from a host what the other one calls so, by all names, and says whether it is gone."""
        known = self.docker("image", "inspect", "--format", "{{.Id}}", image).stdout.strip()
        self.docker("image", "rm", "--force", known, host=host, check=False)
        return self.docker("image", "inspect", known, host=host, check=False).returncode != 0

    def log(self, name: str, host: Host) -> str:
        """A container's log with the time of each line."""
        return self.docker("logs", "--timestamps", name, host=host).stdout

    def root_of(self, name: str, host: Host) -> Path:
        """A container's root as its processes see it, by the machine's path."""
        return host.path(f"/proc/{self.inspect(name, '{{.State.Pid}}', host)}/root")

    def identity(self, name: str, host: Host) -> dict:
        """All that is said of a container and must not depend on the host."""
        (told,) = json.loads(self.docker("inspect", name, host=host).stdout)
        self.assertIn(f"{ADDRESS}/24", host.run("nsenter", "-t", str(told["State"]["Pid"]), "-n", "ip", "-4", "addr").stdout)
        endpoint = told["NetworkSettings"]["Networks"]["lan"]
        self.assertEqual((ADDRESS, MAC_ADDRESS), (endpoint["IPAddress"], endpoint["MacAddress"]))
        self.assertEqual("unless-stopped", told["HostConfig"]["RestartPolicy"]["Name"])
        return {key: told[key] for key in ("Name", "Image", "Config", "HostConfig", "Path", "Args")}

    @staticmethod
    def write_history(root: Path) -> None:
        """Makes one of each thing that a writable layer can hold."""
        (root / "etc/group").unlink()
        (root / "root").rmdir()  # of the image: the new one hides it
        (root / "root").mkdir(mode=0o710)
        (root / "root/inside").write_text("new")
        (root / "data/plain").write_text("text")
        os.link(root / "data/plain", root / "data/linked")
        os.symlink("/nowhere/at all", root / "data/symlink")
        os.mkfifo(root / "data/fifo", 0o600)
        (root / "data/private").write_bytes(os.urandom(100_000))
        (root / "data/private").chmod(0o4710)
        os.chown(root / "data/private", 1234, 5678)
        os.setxattr(root / "data/private", "user.note", b"\0\xff")
        Path(os.fsdecode(bytes(root / "data") + b"/not-utf8-\xff\n")).write_text("odd")
        with open(root / "data/sparse", "wb") as sparse:
            sparse.truncate(50 << 20)
            sparse.seek(10 << 20)
            sparse.write(b"island")
        os.utime(root / "data/plain", (1_000_000_000, 1_100_000_000))
        (root / "etc/passwd").write_text((root / "etc/passwd").read_text() + "extra:x:9:9::/:/bin/sh\n")
        (root / "usr/bin/redis-cli").chmod(0o750)

    def files(self, name: str, host: Host) -> dict[bytes, tuple]:
        """Everything in a container's root, mounts excluded; of files that are being written, not the contents."""
        root = bytes(self.root_of(name, host))
        device, found, inodes = os.lstat(root + b"/.").st_dev, {}, {}

        def look(path: bytes) -> None:
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFREG and b"/appendonlydir/" not in path:
                content = (hashlib.file_digest(open(path, "rb"), "sha256").hexdigest(), status.st_mtime_ns, status.st_blocks < 1000)
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            names = os.listxattr(path, follow_symlinks=False)
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in names}
            if status.st_nlink > 1 and kind == stat.S_IFREG:
                inodes.setdefault(status.st_ino, []).append(path[len(root):])
            found[path[len(root):]] = (oct(status.st_mode), status.st_uid, status.st_gid, content, xattrs)

        for at, directories, files in os.walk(root + b"/."):
            directories[:] = [entry for entry in directories if os.lstat(os.path.join(at, entry)).st_dev == device]
            for entry in [*directories, *files]:
                path = os.path.join(at, entry)
                # what Docker itself puts into each container
                if os.lstat(path).st_dev == device and not path.endswith((b"/.dockerenv", b"/dev")):
                    look(path)
        found[b"links"] = sorted(sorted(paths) for paths in inodes.values())
        self.assertIn(b"/./data/not-utf8-\xff\n", found)
        self.assertIn([b"/./data/linked", b"/./data/plain"], found[b"links"])
        return found


class OtherNetworks(MoveTest):
    """Containers whose address cannot go along."""

    def start_echo(self, *options: str) -> str:
        """A server on Docker's own bridge, behind a published port."""
        name = self.start("python:3", "python3", "-c", ECHO, options=("--publish", "8090:80", *options))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.soon("the server", lambda: "up" in self.logs(name))
        return name

    def client_of(self, host: Host) -> subprocess.Popen:
        """Connects and asks once; then it waits for a line, and asks again."""
        script = f"""
import socket, sys
with socket.create_connection(("{host.address}", 8090), timeout=5) as server:
    server.sendall(b"a\\n")
    print(server.recv(100), flush=True)
    sys.stdin.readline()
"""
        process = subprocess.Popen(client_command([sys.executable, "-c", script]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        self.assertIn(b"a", process.stdout.readline())
        return process

    def test_a_container_on_the_default_bridge_moves_without_connections_and_gets_a_new_address(self) -> None:
        self.needs_moves()
        name = self.start_echo()
        process = self.client_of(self.ha)
        process.communicate(b"\n")
        in_its_network = ("nsenter", "-t", self.inspect(name, "{{.State.Pid}}"), "-n")
        self.soon("its end", lambda: "ESTAB" not in self.ha.run(*in_its_network, "ss", "-tn").stdout)
        self.move(name)
        self.client_of(self.hb)
        self.assertTrue(self.inspect(name, "{{.NetworkSettings.Networks.bridge.IPAddress}}", self.hb).startswith("172.17."))
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)
