"""A container goes into a file and comes out of it, on its own host or another, or stays where it is."""

import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile

from lab.hosts import Host
from lab.moves import holdings
from tests import trees
from tests.moving import ADDRESS, FORGETFUL_REDIS, MoveTest
from tests.test_move_containerd import COUNTER, RESTARTS, CtrMoveTest
from tests.test_move_files import FOREVER, WritableLayer

REFUSED = 4
ABORTED = 130


class ArchiveTest(MoveTest):
    """What these tests share: a place on each host's disk, and the two commands."""

    def setUp(self) -> None:
        super().setUp()
        for host in self.hosts:
            place = host.path("/var/tmp/archives")
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            self.addCleanup(shutil.rmtree, place, ignore_errors=True)
        self.needs_moves()

    def give_image(self, tag: str) -> None:
        """Has the image of ha on hb as well, the same by its digest; an archive has none."""
        wanted = self.docker("image", "inspect", "--format", "{{.Id}}", tag).stdout
        found = self.docker("image", "inspect", "--format", "{{.Id}}", tag, host=self.hb, check=False).stdout
        if wanted != found:
            file = "/var/tmp/archives/image.tar"
            self.docker("save", "--output", file, tag)
            self.carry(file)
            self.docker("load", "--input", file, host=self.hb)
            self.addCleanup(self.docker, "image", "rm", "--force", tag, host=self.hb, check=False)
            self.ha.path(file).unlink()

    def export(self, name: str, *options: str, host: Host | None = None, code: int = 0) -> str:
        """Exports to a file of the host, and returns its path there."""
        file = f"/var/tmp/archives/{name}.archive"
        done = (host or self.ha).run("godwit", "export", name, "-o", file, *options, check=False)
        self.assertEqual(code, done.returncode, done.stderr)
        return file if code == 0 else done.stderr

    def import_(self, file: str, *options: str, host: Host | None = None, code: int = 0) -> str:
        """Imports a file of the host; what was said."""
        done = (host or self.hb).run("godwit", "import", file, *options, check=False)
        self.assertEqual(code, done.returncode, done.stderr)
        return done.stderr

    def carry(self, file: str) -> str:
        """Has a file of ha on hb as well."""
        shutil.copyfile(self.ha.path(file), self.hb.path(file))
        return file

    def names(self, host: Host) -> list[str]:
        """What lies at the place for archives."""
        return sorted(os.listdir(host.path("/var/tmp/archives")))

    def podman(self, *argv: str, check: bool = True) -> str:
        """What podman says on ha. It warns of version 1 of cgroups at each command."""
        told = ("env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman", "--runtime", "runc", *argv)
        return self.ha.run(*told, check=check).stdout.strip()

    def start_at_podman(self, *options: str) -> str:
        """A Redis of podman's on ha, of the same image as Docker's."""
        if self.ha.run("sh", "-c", "command -v podman", check=False).returncode != 0:
            self.skipTest("there is no podman on this base")
        self.image("redis")
        self.docker("save", "--output", "/var/tmp/archives/image.tar", "redis:8")
        self.podman("load", "--input", "/var/tmp/archives/image.tar")
        name = self.new_name()
        self.addCleanup(lambda: self.podman("rm", "--force", "--time", "0", "--volumes", name, check=False))
        self.podman("run", "--detach", "--name", name, *options, "redis:8")
        self.soon("redis", lambda: "PONG" in self.podman("exec", name, "redis-cli", "PING", check=False))
        return name


class Archives(ArchiveTest):
    """Docker's containers."""

    def test_a_redis_comes_out_of_its_archive_on_the_other_host_with_its_data_and_its_address(self) -> None:
        self.give_image("redis:8")
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.redis(name, "SET", "bird", "godwit")
        file = self.export(name)
        self.assertEqual("exited", self.containers(self.ha)[name])
        self.assertEqual([f"{name}.archive"], self.names(self.ha))
        self.assertEqual(0o600, self.ha.path(file).stat().st_mode & 0o777)
        self.holds_nothing(self.ha)
        self.import_(self.carry(file))
        self.assertEqual("running", self.containers(self.hb)[name])
        self.assertEqual("godwit", self.redis(name, "GET", "bird", host=self.hb))
        self.assertEqual(ADDRESS, self.inspect(name, "{{.NetworkSettings.Networks.lan.IPAddress}}", self.hb))
        self.holds_nothing(self.hb)

    def test_one_that_runs_on_is_as_before_and_comes_out_of_its_archive_beside_itself(self) -> None:
        for compression in ("zstd", "gzip", "none"):
            with self.subTest(compression):
                name = self.start("redis:8", options=("--network", "bridge", "--restart", "always"))
                self.soon("redis", lambda name=name: "PONG" in self.redis(name, "PING", check=False))
                self.redis(name, "SET", "bird", "godwit")
                pid = self.inspect(name, "{{.State.Pid}}")
                file = self.export(name, "--leave-running", "--compress", compression)
                self.assertEqual(pid, self.inspect(name, "{{.State.Pid}}"))
                self.assertEqual("always", self.inspect(name, "{{.HostConfig.RestartPolicy.Name}}"))
                self.redis(name, "SET", "bird", "curlew")
                again = self.new_name()
                self.import_(file, "--name", again, "--publish", "6390:6379", host=self.ha)
                self.assertEqual("godwit", self.redis(again, "GET", "bird"))
                self.assertEqual("curlew", self.redis(name, "GET", "bird"))
                self.assertIn("6390", self.inspect(again, "{{json .NetworkSettings.Ports}}"))
                self.docker("rm", "--force", again)
                self.holds_nothing(self.ha)

    def test_a_connection_goes_on_when_its_address_is_here_again(self) -> None:
        self.give_image("redis:8")
        name = self.start_redis(command=FORGETFUL_REDIS)
        client = self.start_load()
        file = self.export(name)
        said = self.import_(self.carry(file))
        self.assertIn("TCP connections: 1 kept, 0 closed", said)
        self.goes_on(client)
        self.kept_all(client)

    def test_connections_are_closed_if_that_is_asked_for(self) -> None:
        self.give_image("redis:8")
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.start_load()
        file = self.export(name)
        said = self.import_(self.carry(file), "--tcp", "close")
        self.assertIn("0 kept, 1 closed", said)

    def test_volumes_come_along_unless_they_are_skipped(self) -> None:
        self.give_image("busybox")
        self.new_volume("birds")
        name = self.start("busybox", *FOREVER, options=("--network", "none", "--volume", "birds:/birds"))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        trees.write_one_of_each(self.content_of("birds", self.ha) / "own")
        for node in ("null", "loop"):
            (self.content_of("birds", self.ha) / "own" / node).unlink()
        before = trees.describe(self.content_of("birds", self.ha))
        file = self.carry(self.export(name))
        self.import_(file)
        after = trees.describe(self.content_of("birds", self.hb))
        for path in before.keys() | after.keys():
            self.assertEqual(before.get(path), after.get(path), path)

    def test_a_full_disk_costs_nothing_but_the_archive(self) -> None:
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(32 << 20)
        check = self.unmoved(name)
        small = "/var/tmp/archives/small"
        self.ha.run("mkdir", small)
        self.ha.run("mount", "-t", "tmpfs", "-o", "size=8m", "none", small)
        self.addCleanup(lambda: self.ha.run("umount", small, check=False))
        done = self.ha.run("godwit", "export", name, "-o", f"{small}/redis", check=False)
        self.assertEqual(1, done.returncode, done.stderr)
        self.assertIn("No space left", done.stderr)
        self.assertEqual("", self.ha.run("ls", "-A", small).stdout)
        check()

    def test_an_export_that_is_interrupted_or_killed_leaves_the_container_running(self) -> None:
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(64 << 20)
        for number, code in ((signal.SIGINT, ABORTED), (signal.SIGKILL, -signal.SIGKILL)):
            with self.subTest(number.name):
                check = self.unmoved(name)
                self.interrupt_export(name, number)
                check()
                for left in self.names(self.ha):
                    self.assertTrue(left.startswith("."), "an archive was left")
                    self.assertEqual(signal.SIGKILL, number, "a part was left")
                    self.ha.path("/var/tmp/archives").joinpath(left).unlink()

    def interrupt_export(self, name: str, number: signal.Signals) -> None:
        """Begins an export, and signals it while the container stands still for a client that does not read on."""
        fifo = "/var/tmp/archives/.fifo"
        self.ha.run("mkfifo", fifo)
        script = f'echo $$; exec godwit export {name} -o - > {fifo}'
        reader = subprocess.Popen(self.ha.command(["sh", "-c", f"exec 3< {fifo}; head -c 1000 <&3 >/dev/null; echo read; sleep 60"]),
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
        export = subprocess.Popen(self.ha.command(["sh", "-c", script]), stdout=subprocess.PIPE, text=True)
        try:
            pid = int(export.stdout.readline())
            self.assertEqual("read\n", reader.stdout.readline())
            self.ha.run("kill", f"-{number.value}", str(pid))
            export.wait(timeout=30)
        finally:
            reader.kill()
            reader.wait()
            export.kill()
            export.wait()
            self.ha.path(fifo).unlink()

    def test_an_agent_that_is_killed_in_an_export_lets_the_container_run_on(self) -> None:
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(64 << 20)
        check = self.unmoved(name)
        fifo = "/var/tmp/archives/.fifo"
        self.ha.run("mkfifo", fifo)
        reader = subprocess.Popen(self.ha.command(["sh", "-c", f"exec 3< {fifo}; head -c 1000 <&3 >/dev/null; echo read; sleep 60"]),
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
        export = subprocess.Popen(self.ha.command(["sh", "-c", f"exec godwit export {name} -o - > {fifo}"]))
        try:
            self.assertEqual("read\n", reader.stdout.readline())
            self.kill_agent(self.ha)
            self.start_agent(self.ha)
            reader.kill()
            self.assertNotEqual(0, export.wait(timeout=30))
        finally:
            reader.kill()
            export.kill()
            export.wait()
        check()

    def test_it_goes_through_a_pipe(self) -> None:
        self.give_image("redis:8")
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.redis(name, "SET", "bird", "godwit")
        export = subprocess.Popen(self.ha.command(["godwit", "export", name, "-o", "-"]), stdout=subprocess.PIPE)
        done = subprocess.run(self.hb.command(["godwit", "import", "-"]), stdin=export.stdout, capture_output=True, timeout=60)
        self.assertEqual((0, 0), (done.returncode, export.wait(timeout=60)), done.stderr)
        self.assertEqual("godwit", self.redis(name, "GET", "bird", host=self.hb))

    def test_what_is_refused_touches_nothing_and_says_why(self) -> None:
        stock = self.new_name()
        self.docker("run", "--detach", "--runtime", "io.containerd.runc.v2", "--name", stock, "busybox", *FOREVER)
        self.assertIn("not under Godwit", self.export(stock, code=REFUSED))
        removed = self.start("busybox", *FOREVER, options=("--rm", "--network", "none"))
        self.assertIn("started with --rm", self.export(removed, code=REFUSED))
        name = self.start("busybox", *FOREVER, options=("--network", "none"))
        file = self.export(name, "--leave-running")
        self.assertIn("is there already", self.export(name, code=1))
        self.assertIn(f"a container named {name} is there already", self.import_(file, host=self.ha, code=REFUSED))
        self.assertEqual("running", self.containers(self.ha)[name])
        self.holds_nothing(self.ha)

    def test_an_import_that_fails_in_the_restore_leaves_nothing(self) -> None:
        self.give_image("busybox")
        name = self.start("busybox", *FOREVER, options=("--network", "none"))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        file = self.carry(self.export(name))
        remove = self.criu_that('case "$*" in *swrk*) exit 1;; esac')
        before = self.containers(self.hb)
        self.import_(file, code=1)
        self.assertEqual(before, self.containers(self.hb))
        self.holds_nothing(self.hb)
        remove()
        self.import_(file)
        self.assertEqual("running", self.containers(self.hb)[name])


class Hostile(ArchiveTest):
    """Archives that somebody has tampered with."""

    def setUp(self) -> None:
        super().setUp()
        name = self.start("busybox", *FOREVER, options=("--network", "none"))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.file = self.carry(self.export(name, "--compress", "none"))
        self.whole = self.hb.path(self.file).read_bytes()

    def refuses(self, archive: bytes, reason: str) -> None:
        """hb takes nothing of it."""
        before = self.containers(self.hb)
        self.hb.path(self.file).write_bytes(archive)
        self.assertIn(reason, self.import_(self.file, code=REFUSED))
        self.assertEqual(before, self.containers(self.hb))
        self.assertFalse(holdings(self.hb))

    def of_others(self, *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
        """An archive with these members."""
        path = self.hb.path("/var/tmp/archives/other")
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for info, content in members:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path.read_bytes()

    def test_what_is_damaged_or_cut_short_is_refused(self) -> None:
        # the header, not the manifest's list
        at = self.whole.index(b"checkpoint/core-1.img\0") + 512 + 20
        self.refuses(self.whole[:at] + bytes([self.whole[at] ^ 1]) + self.whole[at + 1 :], "its sum is wrong")
        self.refuses(self.whole[: len(self.whole) // 2], "cut short")
        self.refuses(b"", "cut short")
        self.refuses(os.urandom(100_000), "refused")

    def test_names_that_lead_out_of_the_archive_are_refused(self) -> None:
        for path in ("../../etc/evil", "/etc/evil", "checkpoint/../../evil"):
            self.refuses(self.of_others((tarfile.TarInfo(path), b"evil")), "is no member of a container's archive")
        link = tarfile.TarInfo("checkpoint/core-1.img")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        self.refuses(self.of_others((link, b"")), "is no file")
        device = tarfile.TarInfo("rootfs-diff.tar")
        device.type, device.devmajor = tarfile.BLKTYPE, 8
        self.refuses(self.of_others((device, b"")), "is no file")

    def hand_over(self, descriptor: int) -> bytes:
        """What hb's agent answers to an archive that is brought as a descriptor; no import awaits one."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.hb.path("/run/godwit/agent.sock")))
            lines = ("PUT /v1/imports/0123456789abcdef/archive HTTP/1.1", "host: godwit", "content-length: 0", "connection: close")
            request = "".join(f"{line}\r\n" for line in (*lines, ""))
            socket.send_fds(connection, [request.encode()], [descriptor])
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
            return answer

    def test_what_is_handed_over_and_is_no_regular_file_is_refused_and_closed(self) -> None:
        reader, writer = os.pipe()
        answer = self.hand_over(reader)
        self.assertIn(b" 400 ", answer)
        self.assertIn(b"no regular file", answer)
        os.close(reader)
        with self.assertRaises(BrokenPipeError):  # the agent has it open no more
            os.write(writer, b"for nobody")
        os.close(writer)
        with open(self.hb.path(self.file), "rb") as archive:
            self.assertIn(b" 404 ", self.hand_over(archive.fileno()))

    def test_a_bomb_is_refused_before_there_is_no_room(self) -> None:
        size = 1 << 50
        header = tarfile.TarInfo("checkpoint/pages-1.img")
        header.size = size
        self.refuses(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 100_000, "does not fit")


# As docs/archive.md says it, but for the sums: not every host has b3sum.
CHECKED_BY_HAND = r"""
set -e
cd /var/tmp/archives
tar -xf "$1" godwit.digests godwit.signature
openssl verify -CAfile /etc/godwit/tls/ca.pem godwit.signature
openssl x509 -in godwit.signature -noout -ext subjectAltName -pubkey > key.pem
sed '1,/BEGIN GODWIT/d;/END GODWIT/d' godwit.signature | base64 -d > signature
{ echo 'godwit archive signature 1'; cat godwit.digests; } | openssl dgst -sha256 -verify key.pem -signature signature
grep DNS: key.pem
"""


class Signed(ArchiveTest):
    """Archives that a host has signed."""

    def setUp(self) -> None:
        super().setUp()
        self.give_image("busybox")
        self.name = self.start("busybox", *FOREVER, options=("--network", "none"))
        self.addCleanup(lambda: self.docker("rm", "--force", self.name, host=self.hb, check=False))

    def signed(self, *options: str) -> str:
        """An archive that ha has signed, on hb as well; the container runs on."""
        file = self.carry(self.export(self.name, "--leave-running", "--sign", *options))
        self.ha.path(file).unlink()
        return file

    def refuses(self, file: str, reason: str, *options: str) -> None:
        """hb takes nothing of it."""
        before = self.containers(self.hb)
        self.assertIn(reason, self.import_(file, *options, code=REFUSED))
        self.assertEqual(before, self.containers(self.hb))
        self.assertFalse(holdings(self.hb))

    def test_whose_archive_it_is_is_told_by_the_other_host_by_an_inspection_and_by_openssl(self) -> None:
        file = self.signed()
        self.assertIn("signed by ha, which an import checks", self.hb.run("godwit", "inspect", file).stdout)
        self.assertIn("signed by ha\n", self.import_(file, "--require-signature"))
        self.assertEqual("running", self.containers(self.hb)[self.name])
        if self.hb.run("sh", "-c", "command -v openssl", check=False).returncode == 0:
            told = self.hb.run("sh", "-c", CHECKED_BY_HAND, "sh", file).stdout
            for word in ("godwit.signature: OK", "DNS:ha", "Verified OK"):
                self.assertIn(word, told)

    def test_one_that_was_changed_after_it_was_signed_is_refused(self) -> None:
        path = self.hb.path(self.signed("--compress", "none"))
        one = path.read_bytes()
        other = self.hb.path(self.signed("--compress", "none")).read_bytes()
        parts = [archive.rpartition(b"godwit.signature") for archive in (one, other)]
        path.write_bytes(parts[0][0] + parts[0][1] + parts[1][2])
        file = f"/var/tmp/archives/{path.name}"
        self.refuses(file, "ha has not signed this; get it anew")
        self.hb.run("tar", "--delete", "-f", file, "godwit.signature")
        self.refuses(file, "it is not signed", "--require-signature")
        self.import_(file)
        self.assertEqual("running", self.containers(self.hb)[self.name])

    def test_a_host_of_another_authority_is_not_believed(self) -> None:
        file = self.signed()
        place = "/var/tmp/archives/tls"
        self.hb.run("godwit", "ca", "init", "--dir", f"{place}/ca")
        self.hb.run("godwit", "ca", "issue", "--dir", f"{place}/ca", "--host", "hb", "--out", f"{place}/hb")
        with self.agent_file(self.hb, "/etc/godwit/agent.toml", lambda text: text.replace("/etc/godwit/tls", f"{place}/hb")):
            self.refuses(file, "of another authority than this host's")

    def test_a_host_may_import_signed_archives_only(self) -> None:
        unsigned = self.carry(self.export(self.name, "--leave-running"))
        self.ha.path(unsigned).unlink()
        self.refuses(unsigned, "it is not signed, and --require-signature asks for it; export it with --sign", "--require-signature")
        required = "\n[archives]\nrequire_signature = true\n"
        with self.agent_file(self.hb, "/etc/godwit/agent.toml", lambda text: text + required):
            self.refuses(unsigned, "require_signature in this host's agent.toml asks for it")
            self.import_(self.signed())
            self.assertEqual("running", self.containers(self.hb)[self.name])


class Crossing(ArchiveTest):
    """What others read of ours."""

    def test_checkpointctl_reads_all_of_an_archive(self) -> None:
        if self.ha.run("sh", "-c", "command -v checkpointctl", check=False).returncode != 0:
            self.skipTest("there is no checkpointctl on this base")
        name = self.start("redis:8", options=("--network", "bridge"))
        self.soon("redis", lambda: "PONG" in self.redis(name, "PING", check=False))
        for compression in ("zstd", "gzip", "none"):
            file = self.export(name, "--leave-running", "--sign", "--compress", compression)
            shown = self.ha.run("checkpointctl", "show", file).stdout
            for word in (name, "docker.io/library/redis:8", "runc", "Podman"):
                self.assertIn(word, shown)
            inspected = self.ha.run("checkpointctl", "inspect", "--all", file).stdout
            for word in ("Pages written", "redis-server", "0.0.0.0:6379", "Destination: /proc"):
                self.assertIn(word, inspected)
            self.assertIn("redis-server", self.ha.run("checkpointctl", "memparse", file).stdout)
            self.ha.path(file).unlink()

    def test_an_archive_of_podmans_comes_to_run_under_docker(self) -> None:
        for compression in ("none", "zstd", "gzip"):
            with self.subTest(compression):
                self.addCleanup(lambda: self.podman("volume", "rm", "--force", "birds", check=False))
                self.addCleanup(lambda: self.docker("volume", "rm", "--force", "birds", check=False))
                name = self.start_at_podman("--volume", "birds:/birds", "--publish", "6391:6379")
                self.podman("exec", name, "redis-cli", "SET", "bird", "curlew")
                self.podman("exec", name, "sh", "-c", "echo file >/root/file; echo shm >/dev/shm/shm; echo volume >/birds/volume")
                file = f"/var/tmp/archives/{name}.podman"
                self.podman("container", "checkpoint", name, "--export", file, "--compress", compression)
                self.podman("rm", "--volumes", name)
                self.import_(file, host=self.ha)
                self.assertEqual("curlew", self.redis(name, "GET", "bird"))
                for path, content in (("/root/file", "file"), ("/dev/shm/shm", "shm"), ("/birds/volume", "volume")):
                    self.assertEqual(content, self.docker("exec", name, "sh", "-c", f"read a <{path}; echo $a").stdout.strip())
                self.assertEqual("PONG", self.ha.run("redis-cli", "-p", "6391", "PING").stdout.strip())
                self.holds_nothing(self.ha)
                self.docker("rm", "--force", name)
                self.docker("volume", "rm", "birds")


    def test_an_archive_of_ours_comes_to_run_under_podman(self) -> None:
        # an image of podman's under the same name
        self.podman("rm", "--force", "--time", "0", self.start_at_podman())
        name = self.start("redis:8", options=("--publish", "6392:6379"))
        self.addCleanup(lambda: self.podman("rm", "--force", "--time", "0", name, check=False))
        self.soon("redis", lambda: "PONG" in self.redis(name, "PING", check=False))
        self.redis(name, "SET", "bird", "godwit")
        self.docker("exec", name, "sh", "-c", "echo file >/root/file")
        self.ha.run("mkdir", "-p", "/etc/criu")
        self.ha.write("/etc/criu/runc.conf", "manage-cgroups=ignore\nskip-file-rwx-check\n")
        self.addCleanup(self.ha.run, "rm", "/etc/criu/runc.conf")
        file = self.export(name, "--sign")
        self.docker("rm", name)
        self.podman("container", "restore", "--import", file)
        self.assertEqual("godwit", self.podman("exec", name, "redis-cli", "GET", "bird"))
        self.assertEqual("file", self.podman("exec", name, "sh", "-c", "read a </root/file; echo $a"))
        self.assertEqual("PONG", self.ha.run("redis-cli", "-p", "6392", "PING").stdout.strip())


class OfContainerd(ArchiveTest, CtrMoveTest):
    """containerd's own containers."""

    def test_a_container_comes_out_of_its_archive_on_the_other_host_and_counts_on(self) -> None:
        name = self.run_ctr(*COUNTER)
        before = self.count(name, self.ha)
        file = self.export(name)
        self.assertEqual("none", self.states(self.ha)[name])
        self.holds_nothing(self.ha)
        self.load("docker.io/library/busybox:latest", host=self.ha)
        self.ha.run("ctr", "images", "export", "/var/tmp/archives/image.tar", "docker.io/library/busybox:latest")
        self.ctr("images", "import", self.carry("/var/tmp/archives/image.tar"), host=self.hb)
        self.import_(self.carry(file))
        self.goes_on_counting(name, before, self.hb)
        self.soon("nothing to be left", lambda: not set(holdings(self.hb)) - {"tasks"})

    def test_one_that_is_stopped_is_not_started_afresh_by_the_restart_monitor(self) -> None:
        name = self.run_ctr(*COUNTER, options=("--label", RESTARTS))
        self.export(name, "--leave-running")
        self.assertEqual("running", self.labels(name, self.ha)["containerd.io/restart.status"])
        self.ha.path(f"/var/tmp/archives/{name}.archive").unlink()
        self.export(name)
        self.assertEqual("stopped", self.labels(name, self.ha)["containerd.io/restart.status"])


class Files(ArchiveTest):
    """The writable layer, where others lose something."""

    image_with_files = WritableLayer.image_with_files
    hide_files_of_the_image = staticmethod(WritableLayer.hide_files_of_the_image)
    root_of = WritableLayer.root_of
    look = staticmethod(WritableLayer.look)

    def test_one_of_each_sort_of_file_and_each_way_to_hide_one_of_the_image_come_out_of_an_archive(self) -> None:
        name = self.start(self.image_with_files(), *FOREVER, options=("--network", "none"))
        root = self.root_of(name, self.ha)
        trees.write_one_of_each(root / "own")
        self.hide_files_of_the_image(root / "image")
        before = self.look(root)
        file = self.export(name)
        again = self.new_name()
        self.import_(file, "--name", again, host=self.ha)
        after = self.look(self.root_of(again, self.ha))
        for path in before.keys() | after.keys():
            self.assertEqual(before.get(path), after.get(path), path)
        self.holds_nothing(self.ha)
