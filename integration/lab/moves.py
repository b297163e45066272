"""A move as a user makes it, and what a host holds of moves; for the tests, the bench and the chaos alike.

It refuses to wait without a deadline for a move's end. What it says of a host leaves out the engine's containers, of which
`containers` tells: a host `holds nothing` when only they are left on it.
"""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from .commands import LabError
from .hosts import Host

# The agents' own deadlines are shorter; this one ends a test whose agent hangs.
MOVE_DEADLINE_SECONDS = 90.0
# Programs that a move runs and that must be gone at its end; the holder's name is all that tells it from its shim.
PASSING = re.compile(r"(^|/)(criu|hold|gate|thaw|pager)( |$)|runc.* (checkpoint|restore) ")


class Operation:
    """A running command of `godwit`'s; with `--json` its events are read as they come, each with its time in `seen_at`."""

    def __init__(self, host: Host, *argv: str) -> None:
        self.argv = ["godwit", *argv]
        self._host = host
        self._began = time.monotonic()
        # A pid of the host's own is needed to interrupt it.
        script = 'echo $$; exec "$@"'
        self._process = subprocess.Popen(host.command(["sh", "-c", script, "sh", *self.argv]), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        self._pid = int(self._process.stdout.readline())
        self.events: list[dict] = []
        self.seen_at: list[float] = []
        self.stdout = self.stderr = ""
        self.seconds = 0.0
        self._changed = threading.Condition()
        self._n_readers = 2
        for read in (self._read_events, self._read_errors):
            threading.Thread(target=read, daemon=True).start()

    def until(self, phase: str, state: str = "begin") -> None:
        """Waits for the event of this phase."""
        self._wait_for(phase, lambda event: (event.get("phase"), event.get("state")) == (phase, state))

    def until_sent(self, n_bytes: int) -> None:
        """Waits until so many bytes have been sent."""
        self._wait_for(f"{n_bytes} bytes were sent", lambda event: event.get("transferred", 0) >= n_bytes)

    def phase_at(self, instant: float) -> str:
        """The phase that its source had reached at an instant, as far as it was told."""
        begun = [event["phase"] for event, seen_at in zip(self.events, self.seen_at)
                 if event.get("state") == "begin" and seen_at <= instant]  # fmt: skip
        return begun[-1] if begun else "none"

    def _wait_for(self, what: str, wanted: Callable[[dict], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: any(map(wanted, self.events)) or self._n_readers == 0, MOVE_DEADLINE_SECONDS)
        if not any(map(wanted, self.events)):
            raise LabError(f"it ended before {what}, or hangs: {self.events[-1:]} {self.stderr}")

    def _read_events(self) -> None:
        for line in self._process.stdout:
            with self._changed:
                self.stdout += line
                if "--json" in self.argv:
                    self.events.append(json.loads(line))
                    self.seen_at.append(time.monotonic())
                self._changed.notify_all()
        self._reader_ends()

    def _read_errors(self) -> None:
        self.stderr = self._process.stderr.read()
        self._reader_ends()

    def _reader_ends(self) -> None:
        with self._changed:
            self._n_readers -= 1
            self._changed.notify_all()

    def interrupt(self) -> None:
        """What ^C does."""
        self._host.run("kill", f"-{signal.SIGINT.value}", str(self._pid))

    def end(self, deadline: float = MOVE_DEADLINE_SECONDS) -> Self:
        """Waits for the end and keeps what was said."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._n_readers == 0, deadline)
        if not ended:
            self._process.kill()
            raise LabError(f"it did not end: {self.events}")
        self.code = self._process.wait()
        self.seconds = time.monotonic() - self._began
        return self

    @property
    def said(self) -> str:
        """All of it, for a person."""
        return f"exit code {self.code}, {self.stderr} {self.events[-1:] if self.events else self.stdout}"

    @property
    def message(self) -> str:
        """The error in a sentence."""
        return self.events[-1].get("message", "") if self.events else self.stderr


class Move(Operation):
    """A running `godwit migrate --json`."""

    def __init__(
        self, source: Host, container: str, target: str, *, json_lines: bool = True, options: Sequence[str] = ()
    ) -> None:
        super().__init__(source, "migrate", *options, container, target, *(["--json"] if json_lines else []))


def containers(host: Host) -> dict[str, str]:
    """The state of each of Docker's containers on a host, by its name."""
    listed = host.run("docker", "ps", "--all", "--format", "{{.Names}} {{.State}}").stdout
    return dict(line.split() for line in listed.splitlines())


def holdings(host: Host) -> dict[str, list[str]]:
    """Everything of moves that is on a host, without the containers; only what there is some of."""
    processes = host.run("ps", "-eo", "args=", check=False).stdout.splitlines()
    mounts = host.run("cat", "/proc/1/mountinfo").stdout.splitlines()
    found = {
        "images": names(host, "/run/godwit/migrations"),
        "tickets": names(host, "/run/godwit/tickets/moby"),
        "journals": names(host, "/var/lib/godwit/migrations"),
        "processes": [line for line in processes if PASSING.search(line)],
        "mounts": [line for line in mounts if "/godwit/" in line.split()[4]],
        "firewall": [line for line in host.run("nft", "list", "tables").stdout.splitlines() if "godwit" in line],
    }
    # A container of another runtime has no task of ours.
    tasks = names(host, "/run/godwit/tasks")
    n_running = sum(state in ("running", "paused") for state in containers(host).values())
    return {what: some for what, some in {**found, "tasks": tasks if len(tasks) > n_running else []}.items() if some}


def names(host: Host, directory: str) -> list[str]:
    """What is in a directory of a host, if that exists."""
    path = host.path(directory)
    return sorted(entry.name for entry in path.iterdir()) if path.exists() else []
