"""Running commands and waiting for conditions, each with a deadline.

It refuses to wait without one, and an error always quotes what the command said.
"""

import subprocess
import time
from collections.abc import Callable, Sequence

# Commands which only talk to the kernel or to a daemon that is up: longer means that something hangs.
COMMAND_DEADLINE_SECONDS = 60.0
# A socket or a process's end announces itself to nobody whom we could ask; looking costs microseconds.
POLL_SECONDS = 0.02


class LabError(Exception):
    """Something the user can act on; printed without a traceback."""


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    check: bool = True,
    deadline: float = COMMAND_DEADLINE_SECONDS,
    shown_as: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and returns its output as text; an error calls it `shown_as`."""
    shown = shown_as or " ".join(argv)
    try:
        done = subprocess.run(list(argv), input=stdin or b"", capture_output=True, timeout=deadline)
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed; run integration/setup") from None
    except subprocess.TimeoutExpired as expired:
        said = (expired.stderr or b"").decode(errors="replace").strip()
        raise LabError(f"`{shown}` did not end within {deadline:.0f} s: {said}") from None
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
    if check and result.returncode != 0:
        said = (result.stderr or result.stdout).strip()
        raise LabError(f"`{shown}` failed ({result.returncode}): {said}")
    return result


def wait_until(what: str, condition: Callable[[], bool], deadline: float) -> None:
    """Waits until the condition holds, or fails saying what was waited for."""
    ends_at = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > ends_at:
            raise LabError(f"{what}: not within {deadline:.0f} s")
        time.sleep(POLL_SECONDS)
