"""One trial: a move that a fault strikes in a phase, and what has to be true once the fault is lifted.

Wherever the container is by then, it must run there and nowhere else, nothing of the move may be left on either host, its
files must be there, the next move must succeed, and a client that wrote all the time must find every write that it was
promised. Where its memory may be lost (place.py says of what) a new client takes the old one's place; where a human must
decide, human.py does. A trial never mends what it finds wrong: whoever runs it has to begin with a new lab.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from lab.commands import LabError, wait_until
from lab.hosts import Host
from lab.load import LoadClient
from lab.moves import Move

from . import human, place, subject
from .evidence import Beginning
from .plan import Plan
from .strike import Strike
from .subject import ADDRESS, CONTAINER

# A link that was silent for five seconds is given up: it is healed before that as well as after.
LIFT_SECONDS = {"link cut": 9.0, "agent killed": 3.0}
# Longer than the holder waits before it lets a container run on (120 s).
END_SECONDS = 150.0
# The client's next packet may wait for as long as it was silent before.
GOES_ON_SECONDS = 30.0
ON_ITS_WAY = 20
# Without pause, but so that what it writes in two hundred trials does not outweigh what the container holds.
CLIENT_RATE = 2000


@dataclass
class Outcome:
    """What came of it."""

    plan: Plan
    source: str
    struck: bool = False
    reached: str = "none"
    delay_ms: int = 0
    lifted_after_s: float = 0.0
    exit_code: int | None = None
    message: str = ""
    ended: str = ""
    """`moved` or `stayed`: where the container was found; `lost` if it was not."""
    by_hand: str = ""
    """What a human has chosen, where one had to."""
    has_died: bool = False
    """It ended of what it may die of, and was started again."""
    connection: str = ""
    acknowledged: int = 0
    longest_gap_ms: int = 0
    violations: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`right`; `by hand` and `died` are right as well; or `wrong`."""
        return "wrong" if self.violations else "by hand" if self.by_hand else "died" if self.has_died else "right"


def usual_phases(source: Host, target: Host, mode: str) -> dict[str, float]:
    """How many seconds each phase of an undisturbed move takes."""
    move = _move(source, target, mode).end()
    if move.code != 0:
        raise LabError(f"an undisturbed move failed: {move.said}")
    phases = {event["phase"]: event["ms"] / 1000 for event in move.events if event.get("state") == "end"}
    # A move whose memory goes in the freeze passes through that phase and has nothing to do there.
    if move.events[-1]["report"]["mode"] == "stop":
        phases.pop("drain", None)
    return phases


def attempt(plan: Plan, source: Host, target: Host, usual: Mapping[str, float]) -> Outcome:
    """Makes one trial. What is wrong afterwards stands in the outcome's violations."""
    outcome = Outcome(plan, source.name)
    beginning = Beginning((source, target))
    strike = Strike(plan.fault, source if plan.fault.side == "source" else target)
    try:
        mark, began = subject.leave_mark(source), time.time()
        with LoadClient(ADDRESS, rate=CLIENT_RATE) as client:
            _goes_on(client)
            try:
                migration = _struck_move(plan, source, target, usual, strike, outcome)
            finally:
                strike.lift()
            _settle(source, target, migration, mark, outcome)
            outcome.has_died, wrong = place.has_died(source, target, plan.fault, began)
            outcome.violations += wrong
            _check_place(source, target, mark, outcome)
            if outcome.ended != "lost" and not outcome.by_hand and not outcome.has_died:
                _check_life(client, source, target, outcome)
        if outcome.ended != "lost" and (outcome.by_hand or outcome.has_died):
            subject.fill()
            with LoadClient(ADDRESS, rate=CLIENT_RATE) as client:
                _check_life(client, source, target, outcome)
            outcome.connection = "broken"
    except LabError as error:
        outcome.violations.append(str(error))
    if outcome.violations or outcome.remarks:
        outcome.logs = beginning.logs()
    if outcome.violations:
        outcome.logs |= beginning.traces()
    return outcome


def _move(source: Host, target: Host, mode: str) -> Move:
    return Move(source, CONTAINER, target.name, options=["--mode", mode])


def _struck_move(
    plan: Plan, source: Host, target: Host, usual: Mapping[str, float], strike: Strike, outcome: Outcome
) -> str:
    """Makes the move and strikes it; returns its name."""
    move = _move(source, target, plan.mode)
    move.until(plan.phase)
    delay = plan.delay_share * usual.get(plan.phase, 0.0)
    time.sleep(delay)
    outcome.delay_ms = round(delay * 1000)
    instant = time.monotonic()
    outcome.struck = strike.strike()
    outcome.reached = move.phase_at(instant)
    if plan.fault.what in LIFT_SECONDS:
        outcome.lifted_after_s = round(plan.lift_share * LIFT_SECONDS[plan.fault.what], 2)
        time.sleep(outcome.lifted_after_s)
        strike.lift()
    move.end(END_SECONDS)
    outcome.exit_code, outcome.message = move.code, move.message or move.stderr.strip()
    return move.events[0].get("migration", "") if move.events else ""


def _settle(source: Host, target: Host, migration: str, mark: str, outcome: Outcome) -> None:
    """Waits until nothing of the move is left on either host; where a human must decide, he does."""
    left = place.left_behind(source, target, unless=lambda: place.is_broken(target, migration))
    if left and place.is_broken(target, migration):
        outcome.by_hand, wrong = human.recover(source, target, migration, mark, outcome.plan.choice_share)
        outcome.violations += wrong
    elif left:
        outcome.violations.append(f"left behind: {left}")


def _check_place(source: Host, target: Host, mark: str, outcome: Outcome) -> None:
    """Exactly one copy, where the command or the human said, and with its files."""
    outcome.ended, wrong = place.where(source, target)
    outcome.violations += wrong
    if outcome.ended == "lost":
        return
    if not subject.bears(target if outcome.ended == "moved" else source, mark):
        outcome.violations.append("what was written to its files before the move is not there")
    if outcome.by_hand:
        if outcome.ended != human.WAYS_OUT[outcome.by_hand]:
            outcome.violations.append(f"`recover --{outcome.by_hand}` was chosen, and it has {outcome.ended}")
    elif (said := place.SAID.get(outcome.exit_code)) != outcome.ended:
        outcome.remarks.append(f"exit status {outcome.exit_code} means {said}, but it has {outcome.ended}")


def _check_life(client: LoadClient, source: Host, target: Host, outcome: Outcome) -> None:
    """It serves the client, moves once more, and has kept what it acknowledged."""
    here, other = (target, source) if outcome.ended == "moved" else (source, target)
    if locked := place.locks(here):
        outcome.violations.append(f"the container's network is still locked: {locked}")
        return
    outcome.longest_gap_ms = _goes_on(client)
    move = _move(here, other, outcome.plan.mode).end()
    if move.code != 0 or move.events[-1]["report"]["remarks"]:
        outcome.violations.append(f"the next move did not succeed: {move.said}")
    if not outcome.violations and (left := place.left_behind(here, other)):
        outcome.violations.append(f"left behind by the next move: {left}")
    account = client.finish(forget=True)
    outcome.connection, outcome.acknowledged = account["connection"], account["acknowledged"]
    if account["lost"]:
        outcome.violations.append(f"{account['lost']} of {account['acknowledged']} acknowledged writes are lost")
    if account["broken_by"]:
        outcome.remarks.append(f"the client's connection broke: {account['broken_by']}")


def _goes_on(client: LoadClient) -> int:
    """Returns when more writes are acknowledged; the longest gap since the last time, in ms."""
    first = client.mark()
    gaps = [first["longest_gap_ms"]]

    def more() -> bool:
        said = client.mark()
        gaps.append(said["longest_gap_ms"])
        return said["acknowledged"] > first["acknowledged"] + ON_ITS_WAY

    wait_until("writes to be acknowledged again", more, GOES_ON_SECONDS)
    return max(gaps)
