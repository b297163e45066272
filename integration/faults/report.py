"""What became of all trials: a line for each pair of phase and fault, and JSON with everything that was seen."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .trial import PHASES, Outcome

COUNTS = f"{'runs':>5}{'hit':>5}{'moved':>7}{'stayed':>8}{'broken':>8}{'WRONG':>7}{'gap s':>8}"


def table(outcomes: Sequence[Outcome]) -> str:
    """`hit`: there was something to strike. `broken`: the client had to connect again. `gap s`: the longest silence it
    heard. `WRONG`: a promise was not kept."""
    rows: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        plan = outcome.plan
        rows.setdefault((plan.mode or "", plan.phase, plan.fault.name), []).append(outcome)
    lines, mode = [f"{'struck at':10}{'what':28}{COUNTS}  source had reached"], ""
    for (of_mode, phase, fault), some in sorted(rows.items(), key=lambda row: _order(row[1][0])):
        if of_mode != mode:
            mode = of_mode
            lines.append(f"mode {mode}:")
        ended = Counter(outcome.ended for outcome in some)
        reached = ", ".join(f"{name} {n}" for name, n in Counter(outcome.reached for outcome in some).most_common())
        n_broken = sum(outcome.connection == "broken" for outcome in some)
        n_wrong = sum(bool(outcome.violations) for outcome in some)
        n_hit = sum(outcome.struck for outcome in some)
        lines.append(
            f"{phase:10}{fault:28}{len(some):>5}{n_hit:>5}{ended['moved']:>7}{ended['stayed']:>8}{n_broken:>8}"
            f"{n_wrong or '':>7}{max(outcome.longest_gap_ms for outcome in some) / 1000:>8.1f}  {reached}"
        )
    return "\n".join(lines)


def line(outcome: Outcome) -> str:
    """One trial in a line."""
    plan = outcome.plan
    what = f"{plan.number:>4} {plan.phase:8} {plan.fault.name:26}"
    how = (outcome.ended or "nowhere") + ("" if outcome.struck else ", nothing struck")
    return f"{what} reached {outcome.reached:8} {how}{', WRONG' if outcome.violations else ''}"


def describe(outcome: Outcome, seed: int) -> str:
    """One trial for a person, with the logs where something was wrong."""
    plan = outcome.plan
    words = [
        f"trial {plan.number} of seed {seed}: {plan.fault.name}, {outcome.delay_ms} ms into {plan.phase}"
        f" (reached: {outcome.reached}), {outcome.source} -> the other, lifted after {outcome.lifted_after_s} s",
        f"  exit status {outcome.exit_code}, {outcome.ended or 'not known where'}: {outcome.message}",
        *(f"  WRONG: {violation}" for violation in outcome.violations),
        *(f"  remark: {remark}" for remark in outcome.remarks),
    ]
    if outcome.violations:
        words += [f"--- {log} ---\n{lines}" for log, lines in outcome.logs.items() if lines]
    return "\n".join(words)


def write(path: Path, seed: int, outcomes: Sequence[Outcome]) -> None:
    """Writes all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"seed": seed, "wrong": sum(bool(outcome.violations) for outcome in outcomes)}
    path.write_text(json.dumps({**found, "trials": [asdict(outcome) for outcome in outcomes]}, indent=1) + "\n")


def _order(outcome: Outcome) -> tuple:
    plan = outcome.plan
    return (plan.mode or "", PHASES.index(plan.phase), plan.fault.name)
