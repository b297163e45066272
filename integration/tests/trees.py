"""Trees of files with one of each thing that a file system can hold, and all that can be seen of a tree, to compare two.

Both work on paths of the machine, such as a container's root in `/proc`. Nothing is said of times of last access, which a
look changes, and nothing of the root itself.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

# Names that a tree has and no text.
NOT_UTF8 = b"not-utf8-\xff\n"
# With nanoseconds, in the past and in the future.
LONG_AGO_NS, LATER_NS = 1_100_000_000_123_456_789, 3_000_000_000_987_654_321


def write_one_of_each(directory: Path) -> None:
    """Fills a directory, which is made if it is missing."""
    directory.mkdir(exist_ok=True)
    plain, private, below = directory / "plain", directory / "private", directory / "below"
    plain.write_text("text")
    os.link(plain, directory / "linked")
    below.mkdir(mode=0o1777)
    below.chmod(0o1777)
    os.link(plain, below / "linked-too")
    os.symlink("/nowhere/at all", directory / "symlink")
    os.symlink(b"\xfe/../x", bytes(directory) + b"/odd-symlink")
    os.chown(directory / "symlink", 11, 12, follow_symlinks=False)
    os.mkfifo(directory / "fifo", 0o600)
    os.mknod(directory / "null", stat.S_IFCHR | 0o622, os.makedev(1, 3))
    os.mknod(directory / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 123_456))
    private.write_bytes(os.urandom(700_000))
    os.chown(private, 100_123, 165_535)
    os.setxattr(private, "user.note", b"\0\xff")
    os.setxattr(private, "security.capability", bytes([1, 0, 0, 2, 0, 4, *[0] * 14]))
    private.chmod(0o6710)
    Path(os.fsdecode(bytes(directory) + b"/" + NOT_UTF8)).write_text("odd")
    (directory / ("l" * 255)).write_text("long")
    (directory / "empty").touch()
    with open(directory / "sparse", "wb") as sparse:
        sparse.truncate(50 << 20)
        sparse.seek(10 << 20)
        sparse.write(b"island")
    os.setxattr(below, "user.directory", b"noted")
    for path in (plain, directory / "symlink", directory / "fifo"):
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False)
    for path in (below, directory):
        os.utime(path, ns=(LATER_NS, LATER_NS))


def describe(root: Path, *, changing: Iterable[bytes] = (), without: Callable[[bytes], bool] = lambda path: False) -> dict:
    """All below a root on the root's own file system, by relative paths, and under `links` which of them are one file.

    Of paths that contain one of `changing` neither contents nor times are told; those for which `without` says so are left
    out.
    """
    top = bytes(root) + b"/."
    device, found, inodes = os.lstat(top).st_dev, {}, {}

    def is_ours(path: bytes) -> bool:
        return os.lstat(path).st_dev == device and not without(path[len(top):])

    for at, directories, files in os.walk(top):
        directories[:] = [entry for entry in directories if is_ours(os.path.join(at, entry))]
        for path in (os.path.join(at, entry) for entry in [*directories, *files]):
            if not is_ours(path):
                continue
            status, name = os.lstat(path), path[len(top):]
            is_changing = any(part in name for part in changing)
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                inodes.setdefault(status.st_ino, []).append(name)
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            found[name] = {
                "mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid), "device": status.st_rdev,
                "attributes": attributes, "mtime": 0 if is_changing else status.st_mtime_ns,
                "content": None if is_changing else _content(path, status),
            }  # fmt: skip
    found[b"links"] = sorted(sorted(paths) for paths in inodes.values())
    return found


def _content(path: bytes, status: os.stat_result) -> object:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        is_sparse = status.st_blocks * 512 + (1 << 20) < status.st_size
        with open(path, "rb") as file:
            return (hashlib.file_digest(file, "sha256").hexdigest(), is_sparse)
    return None
