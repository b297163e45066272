"""What each trial is going to do: a mode, a phase, a fault and an instant, all of them decided by the seed.

A mode has the phases that an undisturbed move in it goes through here, so the same seed makes the same plans on the same
kind of machine. A fault is not planned where there can be nothing of what it strikes.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .strike import PAGER_KILLED, Fault

PHASES = ("hello", "plan", "prepare", "freeze", "restore", "commit", "drain", "release")
# From the restore on there is a pager, until the memory is there.
PAGER_PHASES = ("restore", "commit", "drain")


@dataclass(frozen=True)
class Plan:
    """What a trial is going to do; the same numbers make the same plan."""

    number: int
    mode: str
    phase: str
    fault: Fault
    delay_share: float
    lift_share: float
    choice_share: float
    """Which of the offered ways out a human takes, should one be needed."""


def plans(
    seed: int, runs: int, usual: Mapping[str, Mapping[str, float]], faults: Sequence[Fault], phases: Sequence[str]
) -> list[Plan]:
    """Every pair of phase and fault in each mode once before any comes twice, in an order that the seed decides."""
    triples = [
        (mode, phase, fault)
        for mode, seconds in usual.items()
        for phase in phases
        for fault in faults
        if phase in seconds and can_strike(fault, phase, seconds)
    ]
    made = []
    for number in range(runs if triples else 0):
        chance = random.Random(f"{seed}:{number}")
        if number % len(triples) == 0:
            random.Random(f"{seed}:order:{number}").shuffle(triples)
        mode, phase, fault = triples[number % len(triples)]
        made.append(Plan(number, mode, phase, fault, chance.random(), chance.random(), chance.random()))
    return made


def can_strike(fault: Fault, phase: str, usual: Mapping[str, float]) -> bool:
    """Whether there may be something to strike, in a mode whose phases are these."""
    return fault.what != PAGER_KILLED or (phase in PAGER_PHASES and "drain" in usual)
