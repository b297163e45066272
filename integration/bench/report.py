"""What was measured, as a table for a person and as JSON for a program.

A row compares medians. Whether a target is reached is told and never decides: times on a busy machine prove nothing.
"""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Row:
    """One quantity of both sides."""

    name: str
    unit: str
    ours: list[float]
    peer: list[float]
    target: float | None = None
    """What ours may be of the peer's at most; with `more_is_better`, at least."""
    more_is_better: bool = False

    def ratio(self) -> float:
        """Ours by the peer's."""
        return statistics.median(self.ours) / statistics.median(self.peer)

    def reached(self) -> bool | None:
        """Whether the target is reached; nothing without one."""
        if self.target is None:
            return None
        return self.ratio() >= self.target if self.more_is_better else self.ratio() <= self.target


@dataclass
class Report:
    """Everything one run has found."""

    machine: dict[str, object]
    versions: dict[str, str]
    peer: str
    """What the table calls the other side."""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)
    """What else one program may want to read of it."""

    def table(self) -> str:
        """The table, a line for each row."""
        width = max((len(f"{row.name} ({row.unit})") for row in self.rows), default=0)
        lines = [f"{'':{width}}{'godwit':>10}{self.peer:>10}{'ratio':>8}{'target':>9}"]
        for row in self.rows:
            ours, peer = statistics.median(row.ours), statistics.median(row.peer)
            sign = ">=" if row.more_is_better else "<="
            target = "" if row.target is None else f"{sign} {row.target:.2f}"
            verdict = {None: "", True: "  reached", False: "  NOT REACHED"}[row.reached()]
            name = f"{row.name} ({row.unit})"
            lines.append(f"{name:{width}}{_short(ours):>10}{_short(peer):>10}{row.ratio():>8.2f}{target:>9}{verdict}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Writes all of it, with every single sample."""
        rows = [
            {
                **asdict(row),
                "median": {"ours": statistics.median(row.ours), "peer": statistics.median(row.peer)},
                "ratio": row.ratio(),
                "reached": row.reached(),
            }
            for row in self.rows
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(self), "rows": rows}, indent=1) + "\n")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
