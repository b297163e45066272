"""The moves that are compared: which Redis, over which link, and what a client outside sees of each.

Downtime is the longest gap between two acknowledged answers of Redis to a client that writes a thousand times a second on one
TCP connection. Whatever is compared is done in turn in one run, so that a machine that is busy for a while is so for all.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lab import links, memory
from lab.hosts import Host
from lab.load import LoadClient

from . import tls
from .movers import Godwit, Podman, movers
from .report import Row

CLIENT_RATE = 1000
# Before a move, until client and server have found their pace; and after it, so that a pause that comes late is seen.
SETTLE_SECONDS, AFTER_SECONDS = 1.0, 2.0
TRANSPORT_TARGET = 0.70
GROWTH_TARGET = 1.5
# Less is over before a stream has found its pace.
TRANSPORT_BYTES = 100 << 20


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    key: str
    name: str
    n_mib: int
    target: float
    megabits: int | None = None
    writes: int | None = None

    @property
    def link(self) -> str:
        """The link in words."""
        return "open link" if self.megabits is None else f"{self.megabits / 1000:g} Gbit/s"


CASES = (
    Case("16m", "16 MB, open link", 16, 0.30),
    Case("256m", "256 MB, open link", 256, 0.12),
    Case("1g", "1 GB, open link", 1024, 0.04),
    Case("1g-gigabit", "1 GB, 1 Gbit/s", 1024, 0.03, megabits=1000),
    Case("1g-writes", "1 GB, 20,000 writes/s, 1 Gbit/s", 1024, 0.05, megabits=1000, writes=20_000),
)


@dataclass
class Sample:
    """One move of one of them."""

    mover: str
    source: str
    downtime_ms: int
    acknowledged: int
    lost: int
    connection: str
    report: dict
    writes_per_second: float | None = None
    tls_bytes_per_second: float | None = None


@dataclass
class Result:
    """All moves of a case."""

    case: Case
    samples: list[Sample] = field(default_factory=list)

    def downtimes(self, mover: str) -> list[float]:
        """Of one of them, in ms."""
        return [sample.downtime_ms for sample in self.samples if sample.mover == mover]

    def ours(self) -> list[float]:
        """Godwit's."""
        return self.downtimes("godwit")

    def peer(self) -> list[float]:
        """Podman's, with the compression that serves it better here."""
        others = {sample.mover for sample in self.samples} - {"godwit"}
        return min((self.downtimes(other) for other in sorted(others)), key=statistics.median)


def measure(case: Case, hosts: Sequence[Host], runs: int, mode: str | None, say: Callable[[str], None]) -> Result:
    """Makes all moves of a case."""
    result = Result(case)
    compared = movers(mode)
    try:
        for mover in compared:
            mover.start(hosts[0])
            memory.fill(mover.address, case.n_mib)
        if case.megabits is not None:
            for host in hosts:
                links.shape(host.name, case.megabits)
        for number in range(runs):
            source, target = hosts if number % 2 == 0 else hosts[::-1]
            for mover in compared:
                sample = _move(case, mover, source, target)
                say(f"{case.key} {number + 1}/{runs} {mover.name}: {sample.downtime_ms} ms, connection {sample.connection}")
                result.samples.append(sample)
    finally:
        for host in hosts:
            links.unshape(host.name)
        for mover in compared:
            mover.remove(hosts)
    return result


def _move(case: Case, mover: Godwit | Podman, source: Host, target: Host) -> Sample:
    with LoadClient(mover.address, rate=CLIENT_RATE) as client:
        if case.writes is None:
            downtime_ms, report = _timed(client, mover, source, target)
            achieved = None
        else:
            with memory.RandomWrites(mover.address, case.n_mib, case.writes) as writes:
                downtime_ms, report = _timed(client, mover, source, target)
            achieved = writes.rate
        account = client.finish(forget=True)
    mover.tidy(source)
    sample = Sample(mover.name, source.name, downtime_ms, account["acknowledged"], account["lost"], account["connection"],
                    report, writes_per_second=achieved)  # fmt: skip
    if isinstance(mover, Godwit) and transported(report)[0] >= TRANSPORT_BYTES:
        sample.tls_bytes_per_second = tls.bytes_per_second(source, target, transported(report)[0])
    return sample


def _timed(client: LoadClient, mover: Godwit | Podman, source: Host, target: Host) -> tuple[int, dict]:
    time.sleep(SETTLE_SECONDS)
    client.mark()
    report = mover.move(source, target)
    time.sleep(AFTER_SECONDS)
    return client.mark()["longest_gap_ms"], report


def transported(report: dict) -> tuple[int, float]:
    """How many bytes of memory a move of ours sent, and in how many seconds."""
    memory = report.get("memory")
    if memory is not None:
        return memory["wire"], memory["micros"] / 1e6
    taken = {step["name"]: step["micros"] / 1e6 for step in report["steps"] if step["by"] == "source"}
    return report["bytes"]["image"], taken["send-image"]


def rows(results: Sequence[Result]) -> list[Row]:
    """What the table shows of the cases that were measured."""
    found = [Row(f"downtime: {result.case.name}", "ms", result.ours(), result.peer(), result.case.target) for result in results]
    by_key = {result.case.key: result for result in results}
    if {"16m", "1g"} <= by_key.keys():
        small, large = by_key["16m"].ours(), by_key["1g"].ours()
        found.append(Row("our own: 1 GB beside 16 MB", "ms", large, small, GROWTH_TARGET))
    for result in results:
        streams = [sample for sample in result.samples if sample.tls_bytes_per_second]
        if streams:
            ours = [n_bytes / seconds / 1e6 for n_bytes, seconds in (transported(sample.report) for sample in streams)]
            plain = [sample.tls_bytes_per_second / 1e6 for sample in streams]
            name = f"memory beside plain TLS: {result.case.key}"
            found.append(Row(name, "MB/s", ours, plain, TRANSPORT_TARGET, more_is_better=True))
    return found
