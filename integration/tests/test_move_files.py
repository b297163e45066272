"""What a container has written moves whole, whatever sort of file it is."""

import shutil
from pathlib import Path

from lab.hosts import Host
from tests import trees
from tests.moving import MoveTest

FOREVER = ("sh", "-c", "while :; do sleep 0.2; done")
IMAGE = "files:1"
# What the image has below /image, for the container to hide.
FILL = "cd /image; mkdir -p gone opaque/sub file; echo 1 | tee gone/1 opaque/1 opaque/sub/1 whiteout mode; ln -s /etc link"


class WritableLayer(MoveTest):
    """Files on the container's own layer."""

    def test_one_of_each_sort_of_file_and_each_way_to_hide_one_of_the_image_move(self) -> None:
        self.needs_moves()
        name = self.start(self.image_with_files(), *FOREVER, options=("--network", "none"))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        root = self.root_of(name, self.ha)
        trees.write_one_of_each(root / "own")
        self.hide_files_of_the_image(root / "image")
        before = self.look(root)
        self.assertIn(b"/own/" + trees.NOT_UTF8, before)
        self.assertIn([b"/own/below/linked-too", b"/own/linked", b"/own/plain"], before[b"links"])
        self.assertTrue(before[b"/own/sparse"]["content"][1], "it is sparse here")
        self.move(name)
        after = self.look(self.root_of(name, self.hb))
        for path in before.keys() | after.keys():
            self.assertEqual(before.get(path), after.get(path), path)
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)

    def image_with_files(self) -> str:
        """An image that has something to hide, known on ha only."""
        maker = self.new_name()
        self.docker("run", "--name", maker, "busybox", "sh", "-ec", f"mkdir /image; {FILL}")
        self.docker("commit", maker, IMAGE)
        for host in (self.ha, self.hb):
            self.addCleanup(self.docker, "image", "rm", "--force", IMAGE, host=host, check=False)
        return IMAGE

    @staticmethod
    def hide_files_of_the_image(image: Path) -> None:
        """Leaves whiteouts, an opaque directory, one sort of file in place of another, and a change of no content."""
        (image / "whiteout").unlink()
        shutil.rmtree(image / "gone")
        shutil.rmtree(image / "opaque")
        (image / "opaque").mkdir(mode=0o2775)
        (image / "opaque/new").write_text("new")
        (image / "file").rmdir()
        (image / "file").write_text("in place of a directory")
        (image / "link").unlink()
        (image / "link").mkdir()
        (image / "mode").chmod(0o4600)

    def root_of(self, name: str, host: Host) -> Path:
        """A container's root as its processes see it, by the machine's path."""
        return host.path(f"/proc/{self.inspect(name, '{{.State.Pid}}', host)}/root")

    @staticmethod
    def look(root: Path) -> dict:
        """The container's files, but for the layer that Docker makes for each container: mount points and `/etc/mtab`; and
        for `/tmp` itself, where CRIU makes a mount point for a moment."""
        not_its_own = (b"/.dockerenv", b"/dev", b"/proc", b"/sys", b"/etc", b"/etc/mtab", b"/tmp")
        return trees.describe(root, without=lambda path: path in not_its_own)
