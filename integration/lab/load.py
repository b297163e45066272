"""Steers a load client (load_client.py) that runs at the clients' place, for the demo and the tests."""

import json
import select
import subprocess
import sys
from pathlib import Path

from .commands import LabError
from .hosts import client_command

REDIS_PORT = 6379
# The client answers `mark` after the write in flight, which may wait for a whole move and for a new connection after it.
ANSWER_DEADLINE_SECONDS = 120.0


class LoadClient:
    """A running load client; used as a context it is killed at the end whatever happens."""

    def __init__(self, address: str, port: int = REDIS_PORT, *, rate: int | None = None) -> None:
        program = str(Path(__file__).with_name("load_client.py"))
        bound = [] if rate is None else [str(rate)]
        self._process = subprocess.Popen(
            client_command([sys.executable, "-B", program, address, str(port), *bound]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "LoadClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def mark(self) -> dict:
        """Ends the present window; see load_client.py."""
        return self._ask("mark")

    def finish(self, *, forget: bool = False) -> dict:
        """Ends the load and returns its account, and has what it wrote removed if told; see load_client.py."""
        return self._ask("forget" if forget else "finish")

    def _ask(self, command: str) -> dict:
        try:
            self._process.stdin.write(f"{command}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        within, _, _ = select.select([self._process.stdout], [], [], ANSWER_DEADLINE_SECONDS)
        if not within:
            raise LabError(f"the load client did not answer within {ANSWER_DEADLINE_SECONDS:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> LabError:
        _, said = self._process.communicate()
        return LabError(f"the load client ended ({self._process.returncode}): {said.decode(errors='replace').strip()}")
