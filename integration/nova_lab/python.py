"""The interpreters under which Nova and the driver are tested: the machine's own, and the newest one that Debian has.

The newer one is a base's. Its programs run in a mount namespace of their own where that base's /usr lies over the machine's,
and all else, the checkout and the hosts' sockets too, is as everywhere.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.base import GUESTS, ensure_base

# It prints a line.
VERSION_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True)
class Python:
    """One of them."""

    path: str
    # What a command begins with whose program is run by it; it execs what follows.
    within: tuple[str, ...] = ()

    def command(self, *argv: str) -> list[str]:
        """The command that runs a program, its own or one of an environment made by it."""
        return [*self.within, *argv]

    def version(self) -> str:
        """To the last digit."""
        argv = self.command(self.path, "-c", "import platform; print(platform.python_version())")
        return subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=VERSION_DEADLINE_SECONDS
        ).stdout.strip()  # fmt: skip


def machine() -> Python:
    """What runs this."""
    return Python(sys.executable)


def newest() -> Python:
    """That of the newer suite's base."""
    return _of(ensure_base("forky", GUESTS))


def _of(base: Path) -> Python:
    over = 'mount -o bind,ro "$0/usr" /usr && exec "$@"'
    return Python("/usr/bin/python3", ("unshare", "--mount", "--propagation", "private", "sh", "-c", over, str(base)))
