"""What a plain TLS stream reaches from one host to the other: what the transport of a move is measured by.

One connection, with the hosts' own certificates, each end a program of the machine in a host's network; nothing is read from
anywhere and nothing is kept. Python's `ssl` is OpenSSL, which does nearly all of the work.
"""

import subprocess
import sys
from pathlib import Path

from lab import links
from lab.agents import TLS_DIR
from lab.commands import LabError
from lab.hosts import Host

DEADLINE_SECONDS = 120.0
PORT = 7100


def bytes_per_second(source: Host, target: Host, n_bytes: int) -> float:
    """Sends so many bytes and returns how many arrived in a second."""
    receiver = _start("receive", target, target, n_bytes)
    try:
        receiver.stdout.readline()  # it listens
        sender = _start("send", source, target, n_bytes)
        _, said = sender.communicate(timeout=DEADLINE_SECONDS)
        if sender.returncode != 0:
            raise LabError(f"the TLS stream's sender failed: {said.decode(errors='replace').strip()}")
        seconds, _ = receiver.communicate(timeout=DEADLINE_SECONDS)
        return n_bytes / float(seconds)
    except subprocess.TimeoutExpired:
        raise LabError(f"{n_bytes} bytes did not pass by TLS within {DEADLINE_SECONDS:.0f} s") from None
    finally:
        receiver.kill()
        receiver.wait()


def _start(what: str, place: Host, target: Host, n_bytes: int) -> subprocess.Popen:
    program = [sys.executable, "-B", str(Path(__file__).with_name("tls_stream.py")), what, str(place.path(TLS_DIR))]
    inside = ["nsenter", f"--net={links.namespace_path(place.name)}", "--"]
    return subprocess.Popen(
        [*inside, *program, target.address, str(PORT), str(n_bytes)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE if what == "send" else None,
    )  # fmt: skip
