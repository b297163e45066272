"""Times commands in a host; runs there, by the host's own Python, so that entering the host is not part of a time.

Given one JSON object as its argument: `{"commands": {NAME: ARGV}, "rounds": N}` runs the commands in turn, N times
round, and prints `{NAME: [seconds, …]}`; with `"at_once": N` each runs N times at the same time, and the time is until
the last has ended. `{n}` in an argument becomes a number that is new each time. It refuses to time a command that
fails. Only modules of the smallest Python are used.
"""

import json
import subprocess
import sys
import time

DEADLINE_SECONDS = 300.0


def main() -> None:
    """Does what it is told and prints the times."""
    told = json.loads(sys.argv[1])
    at_once = told.get("at_once", 1)
    seconds = {name: [] for name in told["commands"]}
    number = 0
    for round_number in range(told.get("rounds", 1)):
        in_turn = list(told["commands"].items())
        # What a command leaves behind to be cleared away falls to whoever comes next: not always to the same one.
        for name, argv in in_turn if round_number % 2 == 0 else reversed(in_turn):
            commands = []
            for _ in range(at_once):
                number += 1
                commands.append([argument.replace("{n}", str(number)) for argument in argv])
            seconds[name].append(time_of(commands))
    print(json.dumps(seconds))


def time_of(commands: list[list[str]]) -> float:
    """How long the commands take, started one after the other without waiting."""
    began = time.monotonic()
    running = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for command in commands
    ]
    for process in running:
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
        if process.returncode != 0:
            sys.exit(f"{' '.join(process.args)} failed ({process.returncode}): {said.decode(errors='replace').strip()}")
    return time.monotonic() - began


main()
