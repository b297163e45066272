"""The two shims side by side: memory, times, a burst of starts, events.

Whatever is compared is done alternately in one run, so that a machine that is busy for a while is so for both.
"""

import itertools
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.commands import LabError
from lab.hosts import Host
from tests.ttrpc import Connection, any_of, encode

from .report import Row
from .shims import Footprint, footprint, shim_of

RUNTIMES = {"ours": "io.containerd.godwit.v2", "stock": "io.containerd.runc.v2"}
ROOTFS = "/var/lib/bench/rootfs"
BUSYBOX = "/usr/bin/busybox"
FOREVER = (BUSYBOX, "sh", "-c", f"while :; do {BUSYBOX} sleep 1000; done")
# Where containerd keeps the bundles of its namespace `default`.
BUNDLES = "/run/containerd/io.containerd.runtime.v2.task/default"

# What our shim may take of what the stock one takes.
PROPORTIONAL_TARGET, RESIDENT_TARGET, TIME_TARGET = 0.20, 0.25, 1.0
# After this both runtimes have ended their idle threads and given back what they give back.
SETTLE_SECONDS = 12.0
# What `ctr` and its container need while a hundred of them start at once.
MIB_FOR_ONE_START = 80
EXEC_DEADLINE_SECONDS = 300.0
# A shim answers in milliseconds; longer means that it hangs.
ANSWER_DEADLINE_SECONDS = 60.0
# An event comes within milliseconds; this long means that it is lost.
EVENT_DEADLINE_SECONDS = 30.0
WARM_UP_SECONDS = 0.05


@dataclass(frozen=True)
class Amounts:
    """How often what is done."""

    idle_rounds: int = 2
    n_execs: int = 100
    n_together: int = 10
    run_rounds: int = 15
    exec_rounds: int = 100
    burst: int = 100
    burst_rounds: int = 2
    n_events: int = 2000
    event_rounds: int = 3


QUICK = Amounts(1, 20, 3, 3, 3, 10, 1, 200, 1)


def prepare(host: Host) -> None:
    """Puts a root file system for `ctr` into the host."""
    made = "c=$(docker create busybox:latest)"
    host.run("sh", "-c", f"mkdir -p {ROOTFS} && {made} && docker export $c | tar -C {ROOTFS} -x && docker rm $c")


def memory(host: Host, amounts: Amounts) -> list[Row]:
    """What one shim takes, alone of its kind and with others."""

    def each(do: Callable[[str, str], Footprint]) -> dict[str, Footprint]:
        return {name: do(name, runtime) for name, runtime in RUNTIMES.items()}

    samples: dict[str, dict[str, list[Footprint]]] = {}

    def keep(when: str, found: dict[str, Footprint]) -> None:
        for name, one in found.items():
            samples.setdefault(when, {}).setdefault(name, []).append(one)

    for _ in range(amounts.idle_rounds):
        each(lambda name, runtime: _start(host, f"{name}0", runtime))
        time.sleep(SETTLE_SECONDS)
        keep("idle, 1 container", each(lambda name, _: _footprint(host, f"{name}0")))
        for name in RUNTIMES:
            script = f"for i in $(seq {amounts.n_execs}); do docker exec {name}0 {BUSYBOX} true || exit; done"
            host.run("sh", "-c", script, deadline=EXEC_DEADLINE_SECONDS)
        time.sleep(SETTLE_SECONDS)
        keep(f"after {amounts.n_execs} execs", each(lambda name, _: _footprint(host, f"{name}0")))
        host.run("docker", "rm", "--force", *(f"{name}0" for name in RUNTIMES))
    for number in range(amounts.n_together):
        each(lambda name, runtime: _start(host, f"{name}{number}", runtime))
    time.sleep(SETTLE_SECONDS)
    for number in range(amounts.n_together):
        keep(f"idle, {amounts.n_together} containers", each(lambda name, _: _footprint(host, f"{name}{number}")))
    host.run("docker", "rm", "--force", *(f"{name}{n}" for name in RUNTIMES for n in range(amounts.n_together)))
    rows = []
    for what, unit_of, target in (
        ("proportional memory", lambda one: one.proportional_kib, PROPORTIONAL_TARGET),
        ("resident memory", lambda one: one.resident_kib, RESIDENT_TARGET),
        ("private memory", lambda one: one.private_kib, None),
    ):
        for when, both in samples.items():
            ours, stock = ([unit_of(one) for one in both[name]] for name in RUNTIMES)
            rows.append(Row(f"{what}, {when}", "KiB", ours, stock, target))
    return rows


def times(host: Host, amounts: Amounts) -> list[Row]:
    """Starts and execs as a user waits for them, with Docker and with containerd alone."""
    docker, ctr = ("docker", "run", "--network", "none"), ("ctr", "run", "--rootfs")
    commands = {
        "docker run --rm": (amounts.run_rounds, lambda _, runtime: [*docker, "--rm", "--runtime", runtime, "busybox"]),
        "ctr run --rm": (
            amounts.run_rounds,
            lambda name, runtime: [*ctr, "--rm", "--runtime", runtime, ROOTFS, f"{name}-{{n}}"],
        ),
        "docker exec": (amounts.exec_rounds, lambda name, _: ["docker", "exec", name]),
        "ctr task exec": (
            amounts.exec_rounds,
            lambda name, _: ["ctr", "task", "exec", "--exec-id", "e{n}", f"c-{name}"],
        ),
    }
    for name, runtime in RUNTIMES.items():
        _start(host, name, runtime)
        host.run(*ctr, "--detach", "--runtime", runtime, ROOTFS, f"c-{name}", *FOREVER)
    rows = []
    for what, (rounds, command) in commands.items():
        both = {name: [*command(name, runtime), BUSYBOX, "true"] for name, runtime in RUNTIMES.items()}
        seconds = timed(host, {"commands": both, "rounds": rounds})
        rows.append(Row(what, "ms", *([1000 * one for one in seconds[name]] for name in RUNTIMES), TIME_TARGET))
    host.run("docker", "rm", "--force", *RUNTIMES)
    remove_tasks(host, [f"c-{name}" for name in RUNTIMES])
    return rows


def burst(host: Host, amounts: Amounts) -> tuple[list[Row], list[str]]:
    """Many containers started at once: until all of them run. Fewer, and a note, if the machine has no room."""
    n_at_once, notes = amounts.burst, []
    free_mib = _free_mib()
    if n_at_once * MIB_FOR_ONE_START > free_mib:
        n_at_once = max(1, free_mib // MIB_FOR_ONE_START)
        notes.append(f"{n_at_once} containers at once and not {amounts.burst}: only {free_mib} MiB are free")
    seconds: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    for number in range(amounts.burst_rounds):
        for name, runtime in RUNTIMES.items():
            prefix = f"burst{number}-{name}-"
            run = ["ctr", "run", "--detach", "--runtime", runtime, "--rootfs", ROOTFS, prefix + "{n}", *FOREVER]
            seconds[name] += timed(host, {"commands": {name: run}, "at_once": n_at_once})[name]
            started = [task for task in tasks(host) if task.startswith(prefix)]
            if len(started) != n_at_once:
                raise LabError(f"{len(started)} of {n_at_once} containers of {runtime} run after a burst")
            remove_tasks(host, started)
    row = Row(f"{n_at_once} containers started at once", "s", *(seconds[name] for name in RUNTIMES), TIME_TARGET)
    return [row], notes


def events(host: Host, amounts: Amounts) -> list[Row]:
    """How many events a second arrive at a subscriber: of execs that are only added, which costs nothing else."""
    rates: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    for number in range(amounts.event_rounds):
        for name, runtime in RUNTIMES.items():
            task = f"events{number}-{name}"
            host.run("ctr", "run", "--detach", "--runtime", runtime, "--rootfs", ROOTFS, task, *FOREVER)
            rates[name].append(_event_rate(host, task, amounts.n_events))
            remove_tasks(host, [task])
    return [Row("events", "1/s", *(rates[name] for name in RUNTIMES), TIME_TARGET, more_is_better=True)]


def timed(host: Host, told: dict) -> dict[str, list[float]]:
    """Runs inside.py in the host."""
    program = Path(__file__).with_name("inside.py").read_bytes()
    done = host.run("python3", "-", json.dumps(told), stdin=program, deadline=EXEC_DEADLINE_SECONDS * 2)
    return json.loads(done.stdout)


def tasks(host: Host) -> list[str]:
    """containerd's tasks, without Docker's."""
    return host.run("ctr", "task", "ls", "--quiet").stdout.split()


def remove_tasks(host: Host, names: list[str]) -> None:
    """Kills and removes containers of `ctr`."""
    # A task that was killed by force answers with its exit status, which is no failure here.
    host.run("ctr", "task", "rm", "--force", *names, check=False, deadline=EXEC_DEADLINE_SECONDS)
    host.run("ctr", "container", "rm", *names, deadline=EXEC_DEADLINE_SECONDS)


def _start(host: Host, name: str, runtime: str) -> None:
    detached = ("docker", "run", "--detach", "--network", "none")
    host.run(*detached, "--name", name, "--runtime", runtime, "busybox", *FOREVER)


def _footprint(host: Host, name: str) -> Footprint:
    full_id = host.run("docker", "inspect", "--format", "{{.Id}}", name).stdout.strip()
    return footprint(host, shim_of(host, full_id))


def _event_rate(host: Host, task: str, n_events: int) -> float:
    # containerd keeps what the shim has answered to `start`.
    shim = json.loads(host.path(f"{BUNDLES}/{task}/bootstrap.json").read_text())
    path = host.path(shim["address"].removeprefix("unix://"))
    service = f"containerd.task.v{shim['version']}.Task"
    process = any_of("types.containerd.io/opencontainers/runtime-spec/1/Process", b'{"args":["true"],"cwd":"/"}')
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()
    # Its own id comes first: whoever only ends the program that entered the host leaves it behind.
    subscribe = host.command(["sh", "-c", "echo $$; exec ctr events"])
    subscriber = subprocess.Popen(subscribe, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    pid = subscriber.stdout.readline().strip()
    reader = threading.Thread(target=lambda: [seen.put(line) for line in subscriber.stdout], daemon=True)
    reader.start()
    connection = Connection(str(path), ANSWER_DEADLINE_SECONDS)

    def add(exec_id: str) -> None:
        answer = connection.call(service, "Exec", encode({1: task, 2: exec_id, 7: process}))
        if answer.code != "OK":
            raise LabError(f"an exec was not added to {task}: {answer.code}: {answer.words}")

    try:
        _await_subscriber(add, seen)
        began = time.monotonic()
        for number in range(n_events):
            add(f"counted-{number}")
        n_seen = 0
        while n_seen < n_events:
            n_seen += f'{task}","exec_id":"counted-' in seen.get(timeout=EVENT_DEADLINE_SECONDS)
        return n_events / (time.monotonic() - began)
    except queue.Empty:
        raise LabError(f"not all of {n_events} events of {task} arrived") from None
    finally:
        connection.close()
        host.run("kill", "-9", pid, check=False)
        subscriber.wait(timeout=EVENT_DEADLINE_SECONDS)
        reader.join(timeout=EVENT_DEADLINE_SECONDS)
        subscriber.stdout.close()


def _await_subscriber(add: Callable[[str], None], seen: queue.SimpleQueue[str]) -> None:
    """Adds execs until the subscriber sees one: it does not say when it has begun to listen."""
    for number in itertools.count():
        add(f"warm-up-{number}")
        try:
            seen.get(timeout=WARM_UP_SECONDS)
            return
        except queue.Empty:
            if number * WARM_UP_SECONDS > EVENT_DEADLINE_SECONDS:
                raise


def _free_mib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:"))
