"""What the end-to-end tests share: the hosts, containers that are removed at a test's end, terminals, waiting."""

import errno
import itertools
import os
import pty
import re
import select
import subprocess
import termios
import time
import unittest
from collections.abc import Callable

from lab import images
from lab.commands import wait_until
from lab.hosts import Host, client_command
from tests.capabilities import version, why_no_sockets

RUNTIME = os.environ.get("GODWIT_TEST_RUNTIME", "io.containerd.godwit.v2")
STOCK_RUNTIME = "io.containerd.runc.v2"
# A container starts within half a second; a machine with more to do than it can needs much more. What fails waits as long.
SOON_SECONDS = 30.0
# For a test of a minute or more: `make test-all` runs it, `make test` says that it did not.
needs_slow = unittest.skipUnless(os.environ.get("GODWIT_TEST_SLOW") == "1", "slow: run by make test-all")

_numbers = itertools.count(1)


class EngineTest(unittest.TestCase):
    """A test that talks to the engines of the lab."""

    runtime = RUNTIME

    def setUp(self) -> None:
        self.ha = Host("ha")
        self.hb = Host("hb")

    def docker(self, *argv: str, host: Host | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs Docker's command line on a host (ha unless told)."""
        return (host or self.ha).run("docker", *argv, check=check)

    def image(self, name: str, host: Host | None = None) -> str:
        """The tag of one of the lab's images, imported first where the host lacks it."""
        tag = images.IMAGES[name].tag
        if self.docker("image", "inspect", tag, host=host, check=False).returncode != 0:
            images.import_image(host or self.ha, name)
        return tag

    def new_name(self, host: Host | None = None) -> str:
        """A fresh container name; the container goes away with the test."""
        name = f"t{next(_numbers)}"
        self.addCleanup(lambda: self.docker("rm", "--force", "--volumes", name, host=host, check=False))
        return name

    def start(self, *argv: str, options: tuple[str, ...] = (), host: Host | None = None) -> str:
        """Starts a detached container of the runtime under test; `argv` is the image and its command."""
        name = self.new_name(host)
        self.docker("run", "--detach", "--runtime", self.runtime, "--name", name, *options, *argv, host=host)
        return name

    def inspect(self, name: str, what: str, host: Host | None = None) -> str:
        """One value of `docker inspect`."""
        return self.docker("inspect", "--format", what, name, host=host).stdout.strip()

    def logs(self, name: str, host: Host | None = None) -> str:
        """A container's log so far, both streams."""
        done = self.docker("logs", name, host=host)
        return done.stdout + done.stderr

    def needs_sockets(self) -> None:
        """Skips the test where CRIU cannot dump network sockets."""
        if why := why_no_sockets(self.ha):
            self.skipTest(why)

    def needs_checkpoint_options(self) -> None:
        """Skips the test where ctr does not pass on what it is told of a checkpoint."""
        if self.runtime != STOCK_RUNTIME and version(self.ha, "ctr") < (2, 0):
            self.skipTest("ctr before 2.0 sends checkpoint options to the stock runtime's name only")

    def soon(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits for something that must become true."""
        wait_until(what, condition, SOON_SECONDS)

    def at_clients(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the machine in the clients' network."""
        return subprocess.run(client_command(argv), capture_output=True, text=True, timeout=SOON_SECONDS)


class Terminal:
    """A command of a host that runs on a terminal, as it would in a person's shell; used as a context."""

    def __init__(self, host: Host, *argv: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self._process = subprocess.Popen(
            host.command(argv), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.output = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def send(self, text: str) -> None:
        """Types."""
        os.write(self._ours, text.encode())

    def expect(self, pattern: str) -> None:
        """Waits until the screen has shown something that matches."""
        ends_at = time.monotonic() + SOON_SECONDS
        while not re.search(pattern, self.output):
            if not self._read(ends_at - time.monotonic()):
                raise AssertionError(f"the terminal did not show {pattern!r} but {self.output!r}")

    def exit_code(self) -> int:
        """Reads to the end; the command's exit code."""
        ends_at = time.monotonic() + SOON_SECONDS
        while self._read(ends_at - time.monotonic()):
            pass
        return self._process.wait(timeout=SOON_SECONDS)

    def _read(self, seconds: float) -> bool:
        within, _, _ = select.select([self._ours], [], [], max(0.0, seconds))
        if not within:
            return False
        try:
            read = os.read(self._ours, 4096)
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal says when its last user has closed it
                raise
            return False
        self.output += read.decode(errors="replace")
        return bool(read)
