"""What a Redis that is moved holds: a client (memory_client.py) fills it and writes to it at random, for bench and chaos."""

import json
import select
import subprocess
import sys
from pathlib import Path

from .commands import LabError, run, wait_until
from .hosts import client_command
from .load import REDIS_PORT

CLIENT = str(Path(__file__).with_name("memory_client.py"))
# A gigabyte takes ten seconds on an idle machine.
FILL_DEADLINE_SECONDS = 300.0
READY_DEADLINE_SECONDS = 20.0
# The writer ends after the batch that it is at, which may wait for a whole move.
END_DEADLINE_SECONDS = 120.0


def wait_for_answer(address: str) -> None:
    """Returns when a connection is taken."""
    attempt = f"import socket; socket.create_connection(({address!r}, {REDIS_PORT}), 1)"
    probe = client_command([sys.executable, "-c", attempt])
    wait_until(f"Redis at {address} to answer", lambda: run(probe, check=False).returncode == 0, READY_DEADLINE_SECONDS)


def fill(address: str, n_mib: int) -> None:
    """Gives it so much to hold."""
    run(_client(address, "fill", n_mib), deadline=FILL_DEADLINE_SECONDS)


class RandomWrites:
    """Writes at random while the context lasts; afterwards `rate` tells how many there were in a second."""

    def __init__(self, address: str, n_mib: int, rate: int) -> None:
        self.rate = 0.0
        self._process = subprocess.Popen(
            _client(address, "write", n_mib, rate), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __enter__(self) -> "RandomWrites":
        within, _, _ = select.select([self._process.stdout], [], [], READY_DEADLINE_SECONDS)
        if not within or self._process.stdout.readline() != b"ready\n":
            raise self._ended()
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        try:
            said, _ = self._process.communicate(timeout=END_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            said = b""
        if not said:
            ended = self._ended()
            if error is None:
                raise ended
            return
        account = json.loads(said)
        self.rate = account["writes"] / max(account["seconds"], 0.001)

    def _ended(self) -> LabError:
        self._process.kill()
        _, said = self._process.communicate()
        return LabError(f"the client that writes at random ended: {said.decode(errors='replace').strip()}")


def _client(address: str, *words: object) -> list[str]:
    return client_command([sys.executable, "-B", CLIENT, address, str(REDIS_PORT), *map(str, words)])
