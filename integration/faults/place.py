"""Where the container is, and that there is one copy of it and no more: by the engines' word, and by the processes there are.

It judges what is there and mends nothing. What a container may die of is said here, as docs/protocol.md has it.
"""

import contextlib
import json
import time
from collections.abc import Callable

from lab import cgroups
from lab.commands import LabError, wait_until
from lab.hosts import Host
from lab.moves import containers, holdings

from .strike import PAGER_KILLED, Fault, copies
from .subject import CONTAINER, PROGRAM, RESTART_POLICY, inspect

# The agents ask every two seconds, and give an engine a minute to come to its end.
SETTLE_SECONDS = 90.0
# Docker waits a moment before it starts again what has ended.
RESTART_SECONDS = 20.0
# After the commit each of these ends it as if it had been killed itself.
DEADLY = ((PAGER_KILLED, "destination"), ("CRIU killed", "destination"))
KILLED = "137"
# A CRIU that is killed amid its dump leaves its own code in tasks, which end by it.
CRASHING = (("CRIU killed", "source"),)
CRASHED = ("132", "133", "135", "139")
# What the command says by its exit status of where the container is.
SAID = {0: "moved", 1: "stayed", 3: "moved", 4: "stayed", 5: "stayed", 130: "stayed"}


def left_behind(source: Host, target: Host, unless: Callable[[], bool] = lambda: False) -> str:
    """Waits until nothing of a move is left on either host; returns what is left if that does not come about, or something
    else does."""

    def nothing() -> bool:
        return not holdings(source) and not holdings(target)

    with contextlib.suppress(LabError):
        wait_until("both hosts to hold nothing", lambda: nothing() or unless(), SETTLE_SECONDS)
    left = {host.name: holdings(host) for host in (source, target)}
    return ", ".join(f"on {name} {what}" for name, what in left.items() if what)


def is_broken(target: Host, migration: str) -> bool:
    """Whether a move's destination leaves it to a human. Not so if its agent does not answer."""
    listed = target.run("godwit", "migrations", "list", "--json", check=False).stdout
    views = json.loads(listed) if listed.strip() else []
    return any((view["migration"], view["state"]) == (migration, "broken") for view in views)


def where(source: Host, target: Host) -> tuple[str, list[str]]:
    """`moved` or `stayed`, or `lost` if there is not exactly one copy; and what is wrong."""
    listed = {host.name: containers(host) for host in (source, target)}
    running = [name for name, states in listed.items() if states.get(CONTAINER) == "running"]
    present = [name for name, states in listed.items() if CONTAINER in states]
    found = {name: len(pids) for name, pids in copies(PROGRAM).items()}
    if len(running) != 1:
        how = {name: Host(name).run("docker", "ps", "--all", "--format", "{{.Status}}").stdout.split("\n")[0] for name in present}
        return "lost", [f"not one running copy: containers {listed}, {how}, processes {found}"]
    wrong = []
    if present != running or found != {running[0]: 1}:
        wrong.append(f"more than one copy: containers {listed}, processes {found}")
    host = target if running == [target.name] else source
    policy = inspect(host, "{{.HostConfig.RestartPolicy.Name}}")
    if policy != RESTART_POLICY:
        wrong.append(f"its restart policy is {policy} now")
    return "moved" if host is target else "stayed", wrong


def standing_still(source: Host, target: Host) -> list[str]:
    """What is wrong with a container that was committed and does not run: a copy that runs all the same, or one that is gone."""
    wrong = []
    there, here = containers(target), containers(source)
    if CONTAINER not in here or CONTAINER not in there or there[CONTAINER] == "running":
        wrong.append(f"broken, and not one stopped copy on each host: {source.name} {here}, {target.name} {there}")
    found = copies(PROGRAM)
    if target.name in found:
        wrong.append(f"broken, and processes on {target.name} (the destination): {found[target.name]}")
    # In mode post they wait there to be read, until somebody says that nobody will.
    if awake := [pid for pid in found.get(source.name, []) if not cgroups.is_frozen(pid)]:
        wrong.append(f"broken, and processes run on {source.name} (the source): {awake}")
    return wrong


def has_died(source: Host, target: Host, fault: Fault, since: float) -> tuple[bool, list[str]]:
    """Whether the container ended since then, other than by the commit at the source, and what is wrong with that."""
    here = [status for status in _deaths(source, since) if status in CRASHED]
    # What ends there before the commit has never run: Docker tells of it as well.
    there = _deaths(target, since) if CONTAINER in containers(target) else []
    if not here and not there:
        return False, []
    struck = (fault.what, fault.side)
    is_told = (struck in CRASHING and len(here) == 1 and not there) or (struck in DEADLY and there == [KILLED] and not here)
    if not is_told:
        return True, [f"it ended on {source.name} with {here}, on {target.name} with {there}"]
    host = source if here else target
    wait_until("what has ended to be started again", lambda: containers(host).get(CONTAINER) == "running", RESTART_SECONDS)
    return True, []


def _deaths(host: Host, since: float) -> list[str]:
    """The statuses with which it ended on a host, as Docker remembers."""
    return host.run(
        *("docker", "events", "--since", f"{since:.3f}", "--until", f"{time.time():.3f}"),
        *("--filter", "event=die", "--filter", f"container={CONTAINER}", "--format", "{{.Actor.Attributes.exitCode}}"),
    ).stdout.split()


def locks(host: Host) -> list[str]:
    """The tables that we or CRIU have left on the container's network; with one nothing can be asked of it."""
    pid = inspect(host, "{{.State.Pid}}")
    tables = host.run("nsenter", f"--net=/proc/{pid}/ns/net", "nft", "list", "tables").stdout.split("\n")
    return [table for table in tables if "CRIU" in table or "godwit" in table]
