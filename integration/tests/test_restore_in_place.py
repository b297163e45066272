"""`godwit restore`: a stopped container goes on from an image where it lies, by a plain start and a ticket."""

import json
import time

from tests.checkpoints import CheckpointTest, Link
from tests.test_migrations import ApiTest

NO_EXPERIMENTS = "/etc/docker/daemon.json"


class RestoreInPlace(CheckpointTest, ApiTest):
    def in_place(self, *argv: str, code: int = 0) -> str:
        """`godwit restore`; what it says."""
        done = self.ha.run("godwit", "restore", *argv, check=False)
        self.assertEqual(code, done.returncode, done.stdout + done.stderr)
        self.assertEqual("", self.ha.run("find", "/run/godwit", "-path", "*/tickets/*", "-type", "f").stdout, "a ticket is left")
        return done.stdout + done.stderr

    def image(self, name: str, checkpoint: str = "c1") -> str:
        """Where Docker keeps a checkpoint."""
        return f"/var/lib/docker/containers/{self.inspect(name, '{{.Id}}')}/checkpoints/{checkpoint}"

    def digest(self, directory: str) -> str:
        """Changes if anything of the files in a directory does."""
        return self.ha.run("sh", "-c", f"cd {directory} && find . -type f | sort | xargs sha256sum | sha256sum").stdout

    def assert_stopped(self, name: str) -> None:
        """It does not run, and nothing of a start is left."""
        self.assertIn(self.status(name), ("exited", "created"))
        self.soon("its helpers to end", lambda: not self.helpers())
        self.assertNotIn(self.inspect(name, "{{.Id}}"), self.ha.run("ctr", "--namespace", "moby", "tasks", "ls").stdout)

    def test_it_goes_on_with_its_connections_and_again_from_the_same_checkpoint(self) -> None:
        name = self.serve("--network", "lan", "--ip", "10.77.0.60")
        link = self.link("client", "10.77.0.60")
        self.assertEqual([1, 2], [link.ask(), link.ask()])
        self.checkpoint(name)
        ticks, before = len(self.ticks(name)), self.digest(self.image(name))
        said = self.in_place(name, "c1")
        self.assertRegex(said, rf"^{name} goes on from {self.image(name)} \([0-9.]+ MiB, [0-9.]+ s\)\n$")
        self.assertEqual(3, link.ask(), "on the very connection")
        self.soon("its log to go on", lambda: len(self.ticks(name)) > ticks)
        told = self.ticks(name)
        self.assertEqual(list(range(1, len(told) + 1)), told, "no line lost or doubled")
        self.assert_no_trace(name)
        self.assertEqual(before, self.digest(self.image(name)))

        self.docker("kill", name)
        self.in_place(name, "c1")
        with Link("client", "10.77.0.60") as again:
            self.assertEqual(3, again.ask(), "from where it was dumped, once more")
        self.docker("stop", name)
        self.assertEqual("3", self.inspect(name, "{{.State.ExitCode}}"), "by its own handler")
        self.docker("start", name)
        self.assertEqual(1, self.link("client", "10.77.0.60").ask(), "an ordinary start is a fresh one")

    def test_a_checkpoint_elsewhere_is_restored_as_well(self) -> None:
        name = self.serve()
        talk = self.talk(name)
        talk.ask()
        kept = f"/var/tmp/{name}-kept"
        self.ha.run("mkdir", "-p", kept)
        done = self.past_leftovers("checkpoint", "create", "--checkpoint-dir", kept, name, "c1")
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("custom checkpointdir is not supported", self.docker(
            "start", "--checkpoint", "c1", "--checkpoint-dir", kept, name, check=False).stderr)  # fmt: skip
        self.in_place(name, "c1", "--checkpoint-dir", kept)
        self.assertEqual(2, self.talk(name).ask())
        self.docker("kill", name)
        link = f"/tmp/{name}-link"
        self.ha.run("ln", "-s", f"{kept}/c1", link)
        told = json.loads(self.in_place(name, link, "--json"))
        self.assertEqual((name, f"{kept}/c1", []), (told["container"], told["image"], told["findings"]))
        self.assertEqual(2, self.talk(name).ask())

    def test_dockers_experimental_mode_is_not_needed(self) -> None:
        name = self.serve()
        self.talk(name).ask()
        self.checkpoint(name)
        before = self.ha.path(NO_EXPERIMENTS).read_text()
        self.addCleanup(self.ha.restart_daemon, "dockerd")
        self.addCleanup(self.ha.write, NO_EXPERIMENTS, before)
        self.ha.write(NO_EXPERIMENTS, json.dumps({**json.loads(before), "experimental": False}))
        self.ha.restart_daemon("dockerd")
        self.assertIn("experimental", self.docker("start", "--checkpoint", "c1", name, check=False).stderr)
        self.in_place(name, "c1")
        self.assertEqual(2, self.talk(name).ask())

    def test_a_restore_that_fails_leaves_it_stopped_and_the_checkpoint_as_it_was(self) -> None:
        held = "f = open('/held', 'w'); f.write('x' * 99); f.flush(); print('held', flush=True)"
        name = self.start("python:3", "python3", "-c", f"import time; {held}\nwhile True: time.sleep(1)")
        self.soon("its file", lambda: "held" in self.logs(name))
        self.checkpoint(name)
        image = self.image(name)
        before = self.digest(image)
        # By now it is another than was open at the dump.
        file = self.inspect(name, "{{.GraphDriver.Data.UpperDir}}") + "/held"
        self.ha.run("truncate", "--size=5", file)
        said = self.in_place(name, "c1", code=1)
        self.assertIn("is not restored and stays stopped; the checkpoint is as it was", said)
        self.assertRegex(said, "held has bad size 5")
        self.assert_stopped(name)
        self.assertEqual(before, self.digest(image))
        self.assertEqual("held\n", self.logs(name), "never afresh")
        self.ha.run("truncate", "--size=99", file)
        self.in_place(name, "c1")
        self.assertEqual("running", self.status(name))

    def test_what_is_no_such_checkpoint_is_refused_and_nothing_is_started(self) -> None:
        name = self.serve()
        self.talk(name).ask()
        running = self.in_place(name, "c1", code=4)
        self.assertIn(f"{name} is running, not stopped", running)
        self.checkpoint(name)
        ticks = self.ticks(name)
        image = self.image(name)
        empty = f"/var/tmp/{name}-empty"
        self.ha.run("mkdir", empty)
        for argv, why in {
            (name, "no-such"): "there is no checkpoint",
            (name, ".."): "is no name of a checkpoint",
            (name, "/tmp"): "/tmp can be written to by others than root",
            (name, empty): "has no godwit.json",
        }.items():
            self.assertIn(why, self.in_place(*argv, code=4))
        self.ha.run("chmod", "o+w", f"{image}/files.img")
        self.assertIn("files.img can be written to by others than root", self.in_place(name, "c1", code=4))
        self.ha.run("chmod", "o-w", f"{image}/files.img")
        self.ha.run("chown", "4242", image)
        self.assertIn("belongs to user 4242", self.in_place(name, "c1", code=4))
        self.ha.run("chown", "0", image)
        self.ha.run("truncate", "--size=-1", f"{image}/pages-1.img")
        self.assertIn("pages-1.img has", self.in_place(name, "c1", code=4))
        self.ha.run("truncate", "--size=+1", f"{image}/pages-1.img")
        self.ha.run("sh", "-c", f"printf x | dd of={image}/files.img bs=1 seek=20 conv=notrunc status=none")
        self.assertIn("files.img is not what was written at the dump", self.in_place(name, "c1", code=1))
        other = self.new_name()
        self.docker("create", "--name", other, "--runtime", self.runtime, "busybox", "sleep", "1000")
        self.assertIn("has another image than", self.in_place(other, image, code=4))
        stock = self.new_name()
        self.docker("create", "--name", stock, "--runtime", "io.containerd.runc.v2", "busybox", "true")
        self.assertIn("is made for the runtime io.containerd.runc.v2", self.in_place(stock, image, code=4))
        body = {"container": name, "checkpoint": "no-such"}
        self.assertIn("no checkpoint", self.ask(self.ha, "/v1/restore", "/v1/restore", "post", body, 422)["error"])
        for one in (name, other, stock):
            self.assert_stopped(one)
        self.assertEqual(ticks, self.ticks(name), "never afresh")

    def test_a_ticket_that_a_dead_agent_left_restores_nothing(self) -> None:
        name = self.serve()
        self.talk(name).ask()
        self.checkpoint(name)
        ticks = self.ticks(name)
        identity = self.inspect(name, "{{.Id}}")
        ticket = {"version": 1, "namespace": "moby", "id": identity, "migration": "0123456789abcdef", "image_dir": self.image(name)}
        path = f"/run/godwit/tickets/moby/{identity}"
        self.ha.run("mkdir", "-p", "-m", "700", "/run/godwit/tickets/moby")
        self.ha.write(path, json.dumps(ticket))
        self.ha.run("chmod", "600", path)
        self.ha.run("touch", "-d", "1 minute ago", path)
        failed = self.docker("start", name, check=False)
        self.assertIn("the agent has not been heard of", failed.stderr)
        self.assertEqual(ticks, self.ticks(name))
        self.ha.write(path, json.dumps(ticket))
        self.ha.run("touch", "-d", "1 minute ago", path)
        self.in_place(name, "c1")
        self.assertEqual(2, self.talk(name).ask(), "its own ticket takes the place of the old one")

    def test_a_container_of_containerd_goes_on_as_well(self) -> None:
        self.needs_checkpoint_options()
        self.import_for_ctr()
        name, place = self.new_name(), "/var/tmp/restored-by-ctr"
        self.addCleanup(lambda: self.ha.run("sh", "-c", f"ctr tasks rm --force {name}; ctr containers rm {name}; rm -r {place}", check=False))
        count = "n=0; while :; do n=$((n+1)); echo $n > /n; sleep 0.1; done"
        self.ha.run("ctr", "run", "--detach", "--null-io", "--runtime", self.runtime, "docker.io/library/busybox:latest", name,
                    "sh", "-c", count)  # fmt: skip

        def counted() -> int:
            said = self.ha.run("ctr", "tasks", "exec", "--exec-id", f"e{time.monotonic_ns()}", name, "cat", "/n", check=False).stdout
            return int(said or 0)

        self.soon("it to count", lambda: counted() > 5)
        self.ha.run("mkdir", "-p", place)
        self.ha.run("ctr", "tasks", "checkpoint", "--exit", "--image-path", f"{place}/one", name)
        self.assertIn("the task of", self.in_place(name, f"{place}/one", code=4))
        self.ha.run("ctr", "tasks", "rm", name, check=False)  # it says how the task has ended
        self.ha.run("sh", "-c", f"cp -a {place}/one {place}/bad && printf x | dd of={place}/bad/mm-1.img bs=1 seek=20 conv=notrunc")
        forged = self.ha.path(f"{place}/bad/godwit.json")
        forged.write_text(json.dumps({**json.loads(forged.read_text()), "digests": {}}))
        self.assertIn("is not restored and stays stopped", self.in_place(name, f"{place}/bad", code=1))
        self.assertNotIn(name, self.ha.run("ctr", "tasks", "ls").stdout)
        self.in_place(name, f"{place}/one")
        self.soon("it to go on", lambda: counted() > 6)
        self.assertNotEqual("", self.in_place(name, f"{place}/one", code=4), "it runs")
