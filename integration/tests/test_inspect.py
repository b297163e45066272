"""What `godwit inspect` tells of a running container, held against its /proc, and of an image made of it, held against both."""

import io
import json
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import PurePath

from tests.checkpoints import CheckpointTest
from tests.test_migrations import SVG, ApiTest

MEMORY_BYTES = 24 << 20
# What a program has besides in the same mapping, and what it has not touched of its own.
ABOUT_BYTES = 1 << 20
# A parent that holds memory of which half is zeros, a child that has a file open, and a zombie.
FAMILY = f"""
import os, socket, time
filled = bytearray({MEMORY_BYTES})
for place in range(0, {MEMORY_BYTES}, 4096):
    filled[place] = 1 if place < {MEMORY_BYTES} // 2 else 0
server = socket.socket(socket.AF_UNIX)
server.bind("/tmp/server.sock")
server.listen()
if os.fork() == 0:
    held = open("/data/held", "w")
    held.write("x" * 17)
    held.flush()
    while True:
        time.sleep(1)
if os.fork() == 0:
    os._exit(3)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


class Inspect(CheckpointTest, ApiTest):
    def setUp(self) -> None:
        super().setUp()
        self.needs_moves()  # an older CRIU is a problem that every inspection tells

    def told(self, *argv: str, code: int = 0) -> dict:
        """What the command says as JSON."""
        done = self.ha.run("godwit", "inspect", *argv, "--json", check=False)
        self.assertEqual(code, done.returncode, done.stdout + done.stderr)
        return json.loads(done.stdout)

    def family(self) -> str:
        """A container with several processes, up."""
        name = self.start("python:3", "python3", "-c", FAMILY, options=("--network", "none", "--volume", "/data"))
        self.soon("its processes", lambda: "ready" in self.logs(name))
        return name

    def mappings(self, pid: int) -> list[tuple[str, int, str]]:
        """Start, size and access of each mapping, by the kernel's word."""
        lines = self.ha.run("cat", f"/proc/{pid}/maps").stdout.splitlines()
        found = [re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line) for line in lines]
        return [(one[1].lstrip("0"), int(one[2], 16) - int(one[1], 16), one[3]) for one in found]

    def image_of(self, name: str) -> str:
        """The directory of the checkpoint c1."""
        return f"/var/lib/docker/containers/{self.inspect(name, '{{.Id}}')}/checkpoints/c1"

    def test_a_redis_is_told_as_the_kernel_has_it_and_its_image_as_it_was(self) -> None:
        self.needs_sockets()
        name = self.start("redis:8", "redis-server", "--save", "")
        self.soon("redis", lambda: "PONG" in self.docker("exec", name, "redis-cli", "PING", check=False).stdout)
        self.docker("exec", name, "redis-cli", "SET", "filler", "x" * 100_000)
        body = {"container": name}
        answer = self.ask(self.ha, "/v1/inspect", "/v1/inspect", "post", body)
        before = self.told(name)
        self.assertEqual(answer["subject"], before["subject"])
        self.assertEqual(("container", name, "docker", "redis:8", "running"),
                         tuple(before["subject"][key] for key in ("kind", "name", "engine", "image", "state")))  # fmt: skip
        self.assertTrue(before["restorable"])
        (process,) = before["processes"]
        pid = int(self.inspect(name, "{{.State.Pid}}"))
        self.assertEqual((1, pid, 0, "redis-server", "alive"),
                         tuple(process[key] for key in ("pid", "host_pid", "parent", "name", "state")))  # fmt: skip
        self.assertRegex(process["command"], r"^redis-server \*:6379")
        self.assertEqual(len(self.ha.run("ls", f"/proc/{pid}/task").stdout.split()), process["threads"])
        self.assertEqual(self.mappings(pid), [(one["start"], one["size_bytes"], one["access"]) for one in process["memory"]])
        pss = int(re.search(r"^Pss: +(\d+)", self.ha.run("cat", f"/proc/{pid}/smaps_rollup").stdout, re.MULTILINE)[1])
        self.assertAlmostEqual(pss, before["sizes"]["memory_bytes"] >> 10, delta=pss / 10)
        descriptors = {int(number) for number in self.ha.run("ls", f"/proc/{pid}/fd").stdout.split()}
        self.assertEqual(descriptors, {one["descriptor"] for one in process["files"] + process["sockets"]})
        listening = [one for one in process["sockets"] if (one["protocol"], one["state"]) == ("tcp", "listen")]
        self.assertEqual({"0.0.0.0:6379", "[::]:6379"}, {one["local"] for one in listening})
        self.assertLessEqual({"/", "/proc", "/etc/hosts"}, {one["path"] for one in before["mounts"]})

        self.checkpoint(name)
        image = self.told(self.image_of(name))
        self.assertEqual(("directory", self.inspect(name, "{{.Id}}")), (image["subject"]["kind"], image["subject"]["id"]))
        self.assertTrue(image["origin"]["sealed"])
        (dumped,) = image["processes"]
        for key in ("pid", "parent", "name", "state", "threads", "sockets"):
            self.assertEqual(process[key], dumped[key], key)
        own = {"anonymous", "shared", "file"}
        for kind in own:
            places = [{(one["start"], one["size_bytes"], one["access"], one["name"]) for one in each["memory"] if one["kind"] == kind}
                      for each in (process, dumped)]  # fmt: skip
            self.assertEqual(*places)
        kinds = [{one["descriptor"]: one["kind"] for one in each["files"] if one["descriptor"] > 2} for each in (process, dumped)]
        self.assertEqual(*kinds)
        self.assertEqual({one["path"] for one in before["mounts"]}, {one["path"] for one in image["mounts"]})
        anonymous = [each["sizes"]["memory"]["anonymous"] for each in (before, image)]
        self.assertAlmostEqual(*anonymous, delta=anonymous[0] / 2)
        size = int(self.ha.run("du", "-sb", "--apparent-size", self.image_of(name)).stdout.split()[0])
        self.assertAlmostEqual(size, image["sizes"]["pages_bytes"] + image["sizes"]["metadata_bytes"], delta=8192)

        done = self.ha.run("godwit", "inspect", name, check=False)
        self.assertEqual((1, ""), (done.returncode, done.stdout))

    def test_a_family_is_told_as_a_tree_with_its_zeros_in_the_image(self) -> None:
        name = self.family()
        before = self.told(name)
        tree = [(one["pid"], one["parent"], one["state"]) for one in before["processes"]]
        self.assertEqual([1, 1], [parent for _, parent, _ in tree[1:]])
        self.assertEqual(["alive", "alive", "zombie"], sorted(state for _, _, state in tree))
        held = [one for each in before["processes"] for one in each["files"] if one["name"] == "/data/held"]
        self.assertEqual([17], [one["position"] for one in held])
        sockets = [one for one in before["processes"][0]["sockets"] if one["protocol"] == "unix"]
        self.assertEqual([("listen", "/tmp/server.sock")], [(one["state"], one["local"]) for one in sockets])
        self.assertIsNone(before["sizes"]["zero_bytes"])
        text = self.ha.run("godwit", "inspect", name).stdout
        self.assertRegex(text, r"└─ \d+ python3 -c")
        self.assertNotIn("\x1b", text)

        self.checkpoint(name)
        image = self.told(self.image_of(name))
        self.assertEqual(tree, [(one["pid"], one["parent"], one["state"]) for one in image["processes"]])
        self.assertEqual(held, [one for each in image["processes"] for one in each["files"] if one["name"] == "/data/held"])
        (large,) = [one for one in image["processes"][0]["memory"] if one["memory_bytes"] > MEMORY_BYTES // 2]
        self.assertAlmostEqual(MEMORY_BYTES, large["memory_bytes"], delta=ABOUT_BYTES)
        self.assertAlmostEqual(MEMORY_BYTES // 2, large["zero_bytes"], delta=ABOUT_BYTES)

        drawn, page = "/tmp/inspected.svg", "/tmp/inspected.html"
        self.ha.run("godwit", "inspect", self.image_of(name), "--svg", drawn, "--html", page)
        picture = ElementTree.fromstring(self.ha.path(drawn).read_text())
        classes = {one.get("class") for one in picture.iter(f"{SVG}rect")}
        self.assertLessEqual({"process", "anonymous area", "zeros area", "file area"}, classes)
        self.assertIn("<table>", self.ha.path(page).read_text())

    def test_an_archive_is_told_as_its_image_is(self) -> None:
        name = self.family()
        self.checkpoint(name)
        image = self.told(self.image_of(name))
        for packed in ("", "gz"):
            with self.subTest(packed=packed):
                file = f"/var/tmp/{name}.tar{packed}"
                self.addCleanup(self.ha.run, "rm", "-f", file)
                config = {"id": "abc", "rootfsImageName": "docker.io/library/python:3"}
                with tarfile.open(self.ha.path(file), f"w:{packed}") as archive:
                    archive.add(self.ha.path(self.image_of(name)), "checkpoint")
                    member = tarfile.TarInfo("config.dump")
                    member.size = len(text := json.dumps(config).encode())
                    archive.addfile(member, io.BytesIO(text))
                told = self.told(file)
                subject = {"kind": "archive", "name": file, "id": "abc", "image": config["rootfsImageName"], "engine": None,
                           "state": None, "signed_by": None}
                self.assertEqual(subject, told["subject"])
                self.assertEqual({"config.dump": len(text)}, told["sizes"].pop("parts"))
                for key in ("origin", "processes", "mounts"):
                    self.assertEqual(image[key], told[key], key)
        self.ha.run("truncate", "--size=-100000", file)
        done = self.ha.run("godwit", "inspect", file, check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn("is no archive that can be read", done.stderr)

    def test_an_export_is_told_as_the_container_was(self) -> None:
        name = self.family()
        before = self.told(name)
        file = f"/var/tmp/{name}.export"
        self.addCleanup(self.ha.run, "rm", "-f", file)
        self.ha.run("godwit", "export", name, "-o", file, "--leave-running")
        told = self.told(file)
        self.assertEqual((before["subject"]["id"], "python:3"), (told["subject"]["id"], told["subject"]["image"]))
        self.assertEqual(self.ha.run("uname", "-r").stdout.strip(), told["origin"]["kernel"])
        trees = [[(one["pid"], one["parent"], one["state"]) for one in each["processes"]] for each in (before, told)]
        self.assertEqual(*trees)
        zeros = sum(one["zero_bytes"] for one in told["processes"][0]["memory"])
        self.assertAlmostEqual(MEMORY_BYTES // 2, zeros, delta=ABOUT_BYTES)
        self.assertLessEqual({"config.dump", "spec.dump", "rootfs-diff.tar"}, set(told["sizes"]["parts"]))

    def test_what_would_hinder_a_restore_is_told(self) -> None:
        name = self.family()
        self.checkpoint(name)
        image = PurePath(self.image_of(name))
        copy = f"/tmp/{name}-copy"
        self.ha.run("cp", "-a", str(image), copy)
        self.ha.run("truncate", "--size=-1", f"{copy}/pages-1.img")
        found = self.told(copy, code=4)
        self.assertEqual(["checkpoint"], [one["code"] for one in found["findings"] if one["level"] == "problem"])
        self.ha.run("cp", f"{image}/pages-1.img", copy)
        self.ha.run("sh", "-c", f"printf x | dd of={copy}/files.img bs=1 seek=20 conv=notrunc status=none")
        done = self.ha.run("godwit", "inspect", copy, check=False)
        self.assertIn(done.returncode, (1, 4))
        self.assertIn("files.img", done.stdout + done.stderr)
        self.ha.run("rm", f"{copy}/inventory.img")
        done = self.ha.run("godwit", "inspect", copy, check=False)
        self.assertEqual((1, f"godwit: {copy} holds no checkpoint image: it has no inventory.img\n"), (done.returncode, done.stderr))

    def test_a_container_of_the_stock_shim_is_told_and_cannot_be_restored(self) -> None:
        name = self.new_name()
        self.docker("run", "--detach", "--runtime", "io.containerd.runc.v2", "--name", name, "busybox", "sleep", "1000")
        told = self.told(name, code=4)
        self.assertEqual(["sleep"], [one["name"] for one in told["processes"]])
        self.assertEqual(["runtime"], [one["code"] for one in told["findings"] if one["level"] == "problem"])
