"""Volumes in moves: what is copied, shared and skipped, what is refused, and what a move that fails leaves.

What a volume holds is compared by the machine's own look at it, and not from inside of a container.
"""

import json
import time

from lab.hosts import Host
from tests import trees
from tests.moving import REDIS, MoveTest

FOREVER = ("busybox", "sh", "-c", "while :; do sleep 0.2; done")
REFUSED, ABORTED = 4, 130
# What takes two seconds over the slow link, so that a fault can strike while it is copied.
CONTENT_BYTES, SLOW_MEGABITS, SOME_OF_IT = 24 << 20, 80, 4 << 20


class VolumeTest(MoveTest):
    """A test of containers with volumes."""

    def start_with(self, *options: str) -> str:
        """A container that does nothing; it and its anonymous volumes go with the test, on both hosts."""
        name = self.start(*FOREVER, options=("--network", "none", *options))
        self.addCleanup(lambda: self.docker("rm", "--force", "--volumes", name, host=self.hb, check=False))
        return name

    def mounts(self, name: str, host: Host) -> dict[str, dict]:
        """A container's mounts by their places."""
        return {mount["Destination"]: mount for mount in json.loads(self.inspect(name, "{{json .Mounts}}", host))}

    def both_hold_nothing(self) -> None:
        """Neither host holds anything of a move."""
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)


class Moved(VolumeTest):
    def test_a_server_that_writes_to_its_volume_without_pause_loses_nothing(self) -> None:
        self.needs_moves()
        volume = self.new_volume("data", "--label", "tier=db")
        name = self.start_redis("--volume", f"{volume}:/data", "--restart", "always", command=REDIS)
        client = self.start_load()
        move = self.move(name)
        self.goes_on(client)
        (told,) = move.events[-1]["report"]["volumes"]
        self.assertEqual(("data", "/data", "copy", True), tuple(told[key] for key in ("name", "target", "policy", "stays_at_source")))
        self.assertGreater(told["bytes"], 0)
        account = self.kept_all(client)
        labels = self.docker("volume", "inspect", "--format", "{{json .Labels}}", volume, host=self.hb).stdout
        self.assertEqual({"tier": "db"}, json.loads(labels))
        self.assertIn(volume, self.volumes(self.ha))
        # What was acknowledged is in the file on the volume, and not only in the memory that went along.
        self.hb.run("kill", "-9", self.inspect(name, "{{.State.Pid}}", self.hb))
        self.soon("Docker to start it again", lambda: self.redis(name, "PING", host=self.hb, check=False) == "PONG")
        self.assertGreaterEqual(int(self.redis(name, "DBSIZE", host=self.hb)), account["acknowledged"])
        self.both_hold_nothing()

    def test_every_sort_of_file_and_every_way_to_mount_a_volume_moves(self) -> None:
        self.needs_moves()
        named, other = self.new_volume("data"), self.new_volume("other")
        name = self.start_with("--volume", f"{named}:/tmp", "--mount", f"type=volume,source={other},target=/other,volume-nocopy,ro",
                               "--volume", "/nameless", "--label", "kept=yes")  # fmt: skip
        before = self.mounts(name, self.ha)
        anonymous = before["/nameless"]["Name"]
        contents = {target: self.content_of(mount["Name"], self.ha) for target, mount in before.items()}
        for content in contents.values():
            trees.write_one_of_each(content / "own")
            trees.write_one_of_each(content)
        looks = {target: trees.describe(content) for target, content in contents.items()}
        self.assertIn(b"/" + trees.NOT_UTF8, looks["/tmp"])
        asked = {key: self.inspect(name, f"{{{{json .HostConfig.{key}}}}}") for key in ("Binds", "Mounts")}
        self.move(name)
        after = self.mounts(name, self.hb)
        self.assertEqual(asked, {key: self.inspect(name, f"{{{{json .HostConfig.{key}}}}}", self.hb) for key in asked})
        self.assertEqual({(target, mount["RW"]) for target, mount in before.items()},
                         {(target, mount["RW"]) for target, mount in after.items()})  # fmt: skip
        for target, look in looks.items():
            there = trees.describe(self.content_of(after[target]["Name"], self.hb))
            for path in look.keys() | there.keys():
                self.assertEqual(look.get(path), there.get(path), (target, path))
        self.assertEqual((named, other), (after["/tmp"]["Name"], after["/other"]["Name"]))
        # Named ones outlive their containers here as there; anonymous ones go as with `docker rm --volumes`.
        self.assertLessEqual({named, other}, self.volumes(self.ha))
        self.assertNotIn(anonymous, self.volumes(self.ha))
        self.docker("rm", "--force", "--volumes", name, host=self.hb)
        self.assertEqual({named, other}, self.volumes(self.hb) & {named, other, after["/nameless"]["Name"]})
        self.both_hold_nothing()

    def test_a_volume_that_is_shared_is_not_touched_and_one_that_is_skipped_is_made_empty(self) -> None:
        self.needs_moves()
        shared, skipped = self.taken_volume("shared"), self.new_volume("skipped")
        name = self.start_with("--volume", f"{shared}:/shared", "--volume", f"{skipped}:/skipped", "--volume", "/nameless")
        for volume in (shared, skipped, self.mounts(name, self.ha)["/nameless"]["Name"]):
            (self.content_of(volume, self.ha) / "ours").write_text("ours")
        self.move(name, options=("--volumes", "shared=shared", "--volumes", "skip", "--volumes", "/nameless=copy"))
        names = {target: mount["Name"] for target, mount in self.mounts(name, self.hb).items()}
        there = {target: sorted(entry.name for entry in self.content_of(volume, self.hb).iterdir()) for target, volume in names.items()}
        self.assertEqual({"/shared": ["theirs"], "/skipped": [], "/nameless": ["ours"]}, there)
        self.both_hold_nothing()


class Refused(VolumeTest):
    def refused(self, name: str, *said: str, options: tuple[str, ...] = ()) -> None:
        """A move is refused with these words, and nothing is touched."""
        unmoved, volumes = self.unmoved(name), self.volumes(self.hb)
        move = self.begin_move(name, options=options).end()
        self.assertEqual(REFUSED, move.code, move.said)
        for words in said:
            self.assertIn(words, move.message)
        unmoved()
        self.assertEqual(volumes, self.volumes(self.hb))

    def test_a_volume_whose_name_is_taken_there_with_both_remedies(self) -> None:
        volume = self.taken_volume("data")
        self.refused(self.start_with("--volume", f"{volume}:/d"), "hb: volume data exists on this host already, and it is not empty",
                     "docker volume rm data", "--volumes data=shared")  # fmt: skip
        self.assertEqual("precious", (self.content_of(volume, self.hb) / "theirs").read_text())

    def test_a_shared_volume_that_is_not_there(self) -> None:
        name = self.start_with("--volume", f"{self.new_volume('data')}:/d")
        self.refused(name, "hb: volume data, which is to be shared, does not exist", options=("--volumes", "shared"))

    def test_a_volume_that_is_a_mount_of_its_own_and_one_that_nobody_has(self) -> None:
        volume = self.new_volume("data", "--opt", "type=tmpfs", "--opt", "device=tmpfs")
        name = self.start_with("--volume", f"{volume}:/d")
        self.refused(name, "ha: volume data cannot be copied: it is a mount of its own (type=tmpfs, device=tmpfs)",
                     "has no volume dta; its volumes are data", options=("--volumes", "dta=skip"))  # fmt: skip

    def test_who_else_uses_a_volume_is_told_and_stops_nothing(self) -> None:
        self.needs_moves()
        volume = self.new_volume("data")
        name, other = (self.start_with("--volume", f"{volume}:/d") for _ in range(2))
        done = self.ha.run("godwit", "plan", "--json", name, "hb", check=False)
        self.assertEqual(0, done.returncode, done.stdout)
        warnings = [finding["text"] for finding in json.loads(done.stdout)["findings"] if finding["level"] == "warning"]
        self.assertTrue(any(f"volume data is used by {other} as well" in text for text in warnings), warnings)

    def test_a_word_that_means_nothing_is_wrong_usage(self) -> None:
        done = self.ha.run("godwit", "migrate", "--volumes", "data=move", "any", "hb", check=False)
        self.assertEqual(2, done.returncode, done.stderr)
        self.assertIn("copy, shared, skip", done.stderr)


class Undone(VolumeTest):
    """A move is struck while its volume is copied: nothing of the volume is left on hb, and the container runs on ha."""

    def setUp(self) -> None:
        super().setUp()
        self.needs_moves()
        self.image("busybox", self.hb)  # what is slowed and counted is the volume
        self.volume = self.new_volume("data")
        self.name = self.start_with("--volume", f"{self.volume}:/d", "--volume", "/nameless")
        content = self.content_of(self.volume, self.ha)
        with open("/dev/urandom", "rb") as random:
            (content / "large").write_bytes(random.read(CONTENT_BYTES))
        self.before = self.volumes(self.hb)
        self.unmoved_check = self.unmoved(self.name)
        self.slow_link(SLOW_MEGABITS)
        self.running = self.begin_move(self.name)
        self.running.until("prepare")
        self.running.until_sent(SOME_OF_IT)
        self.assertIn(self.volume, self.volumes(self.hb), "it is being filled")

    def nothing_is_left_and_the_next_move_succeeds(self) -> None:
        """Checks both hosts, and moves."""
        self.unmoved_check(layers_may_stay=True)
        self.soon("the volumes to be gone", lambda: self.volumes(self.hb) == self.before)
        self.free_link()
        self.move(self.name)
        self.assertEqual(CONTENT_BYTES, (self.content_of(self.volume, self.hb) / "large").stat().st_size)
        self.both_hold_nothing()

    def test_the_user_interrupts(self) -> None:
        self.running.interrupt()
        self.assertEqual(ABORTED, self.running.end().code, self.running.said)
        self.nothing_is_left_and_the_next_move_succeeds()

    def test_the_destinations_agent_is_killed(self) -> None:
        self.kill_agent(self.hb)
        self.assertEqual(1, self.running.end().code, self.running.said)
        self.start_agent(self.hb)
        self.nothing_is_left_and_the_next_move_succeeds()

    def test_the_sources_agent_is_killed(self) -> None:
        self.kill_agent(self.ha)
        self.assertEqual(1, self.running.end().code, self.running.said)
        time.sleep(1)  # the destination is alone with it
        self.start_agent(self.ha)
        self.nothing_is_left_and_the_next_move_succeeds()
