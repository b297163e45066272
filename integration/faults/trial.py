"""One trial: a move that a fault strikes in a phase, and what has to be true once the fault is lifted.

Wherever the container is by then, it must run there and nowhere else, nothing of the move may be left on either host, the
next move must succeed, and a client that wrote all the time must find every write that it was promised. A trial never
mends what it finds broken: whoever runs it has to begin with a new lab.
"""

import random
import time
from dataclasses import dataclass, field

from lab.commands import LabError, wait_until
from lab.hosts import DAEMONS, Host
from lab.load import LoadClient
from lab.moves import Move, containers, holdings

from .strike import Fault, Strike, copies

CONTAINER = "chaos"
ADDRESS = "10.77.0.60"
MAC_ADDRESS = "02:42:0a:4d:00:3c"
PROGRAM = "redis-server"
PHASES = ("hello", "plan", "prepare", "freeze", "restore", "commit", "release")
# A link that was silent for five seconds is given up: it is healed before that as well as after.
LIFT_SECONDS = {"link cut": 9.0, "agent killed": 3.0}
# The agents ask every two seconds, and give an engine a minute to come to its end.
SETTLE_SECONDS = 90.0
# Longer than the holder waits before it lets a container run on (120 s).
END_SECONDS = 150.0
# The client's next packet may wait for as long as it was silent before.
GOES_ON_SECONDS = 30.0
ON_ITS_WAY = 20
# Without pause, but so that what it writes in two hundred trials does not outweigh what the container holds.
CLIENT_RATE = 2000
LOG_LINES, LINE_LENGTH = 80, 500


@dataclass(frozen=True)
class Plan:
    """What a trial is going to do; the same numbers make the same plan."""

    number: int
    mode: str | None
    phase: str
    fault: Fault
    delay_share: float
    lift_share: float


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
    connection: str = ""
    acknowledged: int = 0
    longest_gap_ms: int = 0
    violations: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)


def plans(seed: int, runs: int, modes: list[str | None], faults: tuple[Fault, ...], phases: tuple[str, ...]) -> list[Plan]:
    """Every pair of phase and fault in each mode once before any comes twice, in an order that the seed decides."""
    pairs = [(mode, phase, fault) for mode in modes for phase in phases for fault in faults]
    made = []
    for number in range(runs):
        chance = random.Random(f"{seed}:{number}")
        if number % len(pairs) == 0:
            random.Random(f"{seed}:order:{number}").shuffle(pairs)
        mode, phase, fault = pairs[number % len(pairs)]
        made.append(Plan(number, mode, phase, fault, chance.random(), chance.random()))
    return made


def usual_phases(source: Host, target: Host, mode: str | None) -> dict[str, float]:
    """How many seconds each phase of an undisturbed move takes."""
    move = _move(source, target, mode).end()
    if move.code != 0:
        raise LabError(f"an undisturbed move failed: {move.said}")
    return {event["phase"]: event["ms"] / 1000 for event in move.events if event.get("state") == "end"}


def attempt(plan: Plan, source: Host, target: Host, usual: dict[str, float]) -> Outcome:
    """Makes one trial. What is wrong afterwards stands in the outcome's violations."""
    outcome = Outcome(plan, source.name)
    sizes = {(host.name, daemon): host.log_size(daemon) for host in (source, target) for daemon in DAEMONS}
    strike = Strike(plan.fault, source if plan.fault.side == "source" else target)
    try:
        with LoadClient(ADDRESS, rate=CLIENT_RATE) as client:
            _goes_on(client)
            try:
                _struck_move(plan, source, target, usual, strike, outcome)
            finally:
                strike.lift()
            _settle(source, target, outcome)
            _check_place(source, target, outcome)
            if outcome.ended != "lost" and _network_is_free(target if outcome.ended == "moved" else source, outcome):
                outcome.longest_gap_ms = _goes_on(client)
                _check_next_move(*((target, source) if outcome.ended == "moved" else (source, target)), plan.mode, outcome)
                account = client.finish(forget=True)
                outcome.connection, outcome.acknowledged = account["connection"], account["acknowledged"]
                if account["lost"]:
                    outcome.violations.append(f"{account['lost']} of {account['acknowledged']} acknowledged writes are lost")
                if account["broken_by"]:
                    outcome.remarks.append(f"the client's connection broke: {account['broken_by']}")
    except LabError as error:
        outcome.violations.append(str(error))
    if outcome.violations or outcome.remarks:
        outcome.logs = {
            f"{daemon} on {host.name}": _short(host.log_tail(daemon, LOG_LINES, since=sizes[host.name, daemon]))
            for host in (source, target) for daemon in DAEMONS
        }  # fmt: skip
    return outcome


def _short(log: str) -> str:
    """A log without what is said again and again, as by an agent that asks every two seconds."""
    lines = [line[:LINE_LENGTH] for line in log.splitlines()]
    return "\n".join(line for before, line in zip(["", *lines], lines) if line != before)


def _move(source: Host, target: Host, mode: str | None) -> Move:
    return Move(source, CONTAINER, target.name, options=[] if mode is None else ["--mode", mode])


def _struck_move(
    plan: Plan, source: Host, target: Host, usual: dict[str, float], strike: Strike, outcome: Outcome
) -> None:
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


def _settle(source: Host, target: Host, outcome: Outcome) -> None:
    """Waits until nothing of the move is left on either host."""
    try:
        wait_until("both hosts to hold nothing", lambda: not holdings(source) and not holdings(target), SETTLE_SECONDS)
    except LabError:
        left = {host.name: holdings(host) for host in (source, target)}
        outcome.violations.append(f"left behind: { {name: what for name, what in left.items() if what} }")


def _check_place(source: Host, target: Host, outcome: Outcome) -> None:
    """Exactly one copy, by the engines' word and by the processes there are; and as the command said."""
    listed = {host.name: containers(host) for host in (source, target)}
    running = [name for name, states in listed.items() if states.get(CONTAINER) == "running"]
    present = [name for name, states in listed.items() if CONTAINER in states]
    found = {name: len(pids) for name, pids in copies(PROGRAM).items()}
    outcome.ended = "lost" if len(running) != 1 else "moved" if running == [target.name] else "stayed"
    if len(running) != 1 or present != running or found != {running[0]: 1}:
        outcome.violations.append(f"not one running copy: containers {listed}, processes {found}")
    said = {0: "moved", 1: "stayed", 3: "moved", 4: "stayed", 5: "stayed", 130: "stayed"}.get(outcome.exit_code)
    if said != outcome.ended:
        outcome.remarks.append(f"exit status {outcome.exit_code} means {said}, but it has {outcome.ended}")


def _network_is_free(host: Host, outcome: Outcome) -> bool:
    """Whether neither we nor CRIU have left a lock on the container's network; with one nothing can be asked of it."""
    pid = host.run("docker", "inspect", "--format", "{{.State.Pid}}", CONTAINER).stdout.strip()
    tables = host.run("nsenter", f"--net=/proc/{pid}/ns/net", "nft", "list", "tables").stdout.split("\n")
    if locks := [table for table in tables if "CRIU" in table or "godwit" in table]:
        outcome.violations.append(f"the container's network is still locked: {locks}")
    return not locks


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


def _check_next_move(source: Host, target: Host, mode: str | None, outcome: Outcome) -> None:
    move = _move(source, target, mode).end()
    if move.code != 0 or move.events[-1]["report"]["remarks"]:
        outcome.violations.append(f"the next move did not succeed: {move.said}")
    if not outcome.violations:
        _settle(source, target, outcome)
