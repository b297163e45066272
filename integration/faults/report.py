"""What became of all trials: a line for each pair of phase and fault, and JSON with everything that was seen."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .plan import PHASES
from .trial import Outcome

COUNTS = f"{'runs':>5}{'hit':>5}{'moved':>7}{'stayed':>8}{'by hand':>9}{'died':>6}{'anew':>6}{'WRONG':>7}{'gap s':>7}"


def table(outcomes: Sequence[Outcome]) -> str:
    """`hit`: there was something to strike. `by hand`: a human had to decide, and did. `died`: it ended, as is told of this
    fault. `anew`: the client had to connect again. `gap s`: the longest silence it heard. `WRONG`: a promise
    was not kept."""
    rows: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        plan = outcome.plan
        rows.setdefault((plan.mode, plan.phase, plan.fault.name), []).append(outcome)
    lines, mode = [f"{'struck at':10}{'what':28}{COUNTS}  source had reached"], ""
    for (of_mode, phase, fault), some in sorted(rows.items(), key=lambda row: _order(row[1][0])):
        if of_mode != mode:
            mode = of_mode
            lines.append(f"mode {mode}:")
        ended = Counter(outcome.ended for outcome in some)
        reached = ", ".join(f"{name} {n}" for name, n in Counter(outcome.reached for outcome in some).most_common())
        judged = Counter(outcome.verdict for outcome in some)
        n_anew = sum(outcome.connection == "broken" for outcome in some)
        n_hit = sum(outcome.struck for outcome in some)
        lines.append(
            f"{phase:10}{fault:28}{len(some):>5}{n_hit:>5}{ended['moved']:>7}{ended['stayed']:>8}"
            f"{judged['by hand'] or '':>9}{judged['died'] or '':>6}{n_anew or '':>6}{judged['wrong'] or '':>7}"
            f"{max(outcome.longest_gap_ms for outcome in some) / 1000:>7.1f}  {reached}"
        )
    for said, numbers in lists(outcomes).items():
        if numbers:
            lines.append(f"{said}: {', '.join(map(str, numbers))}")
    return "\n".join(lines)


def lists(outcomes: Sequence[Outcome]) -> dict[str, list[int]]:
    """The numbers of all trials but those that were right without a word to be said of them."""
    return {
        "recovered by hand": [outcome.plan.number for outcome in outcomes if outcome.verdict == "by hand"],
        "died as is told": [outcome.plan.number for outcome in outcomes if outcome.verdict == "died"],
        "wrong": [outcome.plan.number for outcome in outcomes if outcome.verdict == "wrong"],
    }


def summary(outcomes: Sequence[Outcome]) -> str:
    """All trials in a line."""
    counted = {said: len(numbers) for said, numbers in lists(outcomes).items()}
    n_right = len(outcomes) - counted["wrong"]
    others = ", ".join(f"{n} {said}" for said, n in counted.items())
    return f"{n_right} of {len(outcomes)} right; {others}"


def line(outcome: Outcome) -> str:
    """One trial in a line."""
    plan = outcome.plan
    what = f"{plan.number:>4} {plan.mode:4} {plan.phase:8} {plan.fault.name:26}"
    how = [outcome.ended or "nowhere"]
    if not outcome.struck:
        how.append("nothing struck")
    if outcome.has_died:
        how.append("died")
    if outcome.by_hand:
        how.append(f"recovered by hand: --{outcome.by_hand}")
    if outcome.violations:
        how.append("WRONG")
    return f"{what} reached {outcome.reached:8} {', '.join(how)}"


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
    found = {
        "seed": seed,
        "trials": len(outcomes),
        "right": sum(outcome.verdict != "wrong" for outcome in outcomes),
        **{said.replace(" ", "_"): numbers for said, numbers in lists(outcomes).items()},
        "outcomes": [{**asdict(outcome), "verdict": outcome.verdict} for outcome in outcomes],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def _order(outcome: Outcome) -> tuple:
    plan = outcome.plan
    return (plan.mode, PHASES.index(plan.phase), plan.fault.name)
