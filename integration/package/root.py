"""A fresh root to install the package into: an overlay over a base of the lab, without network and without daemons.

Each command runs in namespaces of its own in which the root is mounted anew, so that nothing is left mounted, whatever
becomes of the command. The root itself lives until `remove`.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.base import ensure_base

# What tries the package besides what the lab's hosts have anyway.
EXTRA = ("bash-completion", "fish", "man-db", "systemd", "zsh")
# dpkg runs triggers for manual pages: seconds, on a busy machine many.
DEADLINE_SECONDS = 180.0
# An overlay cannot lie on an overlay, and a machine's /tmp may be in memory.
PLACE = Path("/var/lib/godwit-lab")
MOUNT = """
set -e
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
mount -t tmpfs run "$2/root/run"
root=$2/root; shift 2
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive MANWIDTH=80 \
    chroot "$root" "$@"
"""


class Root:
    """A root file system on a suite's base."""

    def __init__(self, suite: str) -> None:
        self.base = ensure_base(suite, EXTRA)
        PLACE.mkdir(parents=True, exist_ok=True)
        self.disk = Path(tempfile.mkdtemp(prefix="package-", dir=PLACE))
        for directory in ("upper", "work", "root"):
            (self.disk / directory).mkdir()
        (self.disk / "upper").chmod(0o755)

    def remove(self) -> None:
        """Removes it with all that was installed."""
        shutil.rmtree(self.disk)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command in it; an error quotes all that it said."""
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--propagation", "private",
             "sh", "-c", MOUNT, "sh", str(self.base), str(self.disk), *argv],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_SECONDS,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"`{' '.join(argv)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def sh(self, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a shell script in it."""
        return self.run("sh", "-euc", script, check=check)

    def write(self, inside: str, text: str) -> None:
        """Writes a file in it, making its directory."""
        self.run("install", "-D", "-m", "644", "/dev/null", inside)
        (self.disk / "upper" / inside.lstrip("/")).write_text(text)

    def put(self, source: Path, inside: str) -> None:
        """Copies a file into it."""
        self.run("install", "-D", "-m", "644", "/dev/null", inside)
        shutil.copyfile(source, self.disk / "upper" / inside.lstrip("/"))

    def files(self) -> set[str]:
        """Everything there is, but what is mounted anew for each command."""
        return set(self.run("find", "/", "-xdev", "-mindepth", "1").stdout.splitlines())
