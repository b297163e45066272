"""What a human does about a move that its destination calls broken, as docs/operations.md tells him to.

He looks, takes one of the ways out that the agent offers, and has to find one copy, started afresh from the files of the
host that he chose. Up to then neither host may have let go of its files, and no copy may run.
"""

import json

from lab.hosts import Host

from . import place
from .subject import CONTAINER, bears

# What the agent of a destination has to offer, and where the container is afterwards.
WAYS_OUT = {"run-here": "moved", "give-up": "stayed"}


def recover(source: Host, target: Host, migration: str, mark: str, choice_share: float) -> tuple[str, list[str]]:
    """Brings a broken move to its end by hand; returns the choice, and what was wrong up to then."""
    wrong = place.standing_still(source, target)
    wrong += [f"its files are not on {host.name} any more" for host in (source, target) if not bears(host, mark)]
    told = target.run("godwit", "migrations", "recover", migration, "--json", check=False)
    offered = [remedy["choice"] for remedy in json.loads(told.stdout)["remedies"]] if told.returncode == 0 else []
    if offered != list(WAYS_OUT):
        return "", [*wrong, f"broken, and {target.name} offers {offered}: {told.stderr.strip()}"]
    # The one choice that could make a second copy.
    stolen = source.run("godwit", "migrations", "recover", migration, "--run-here", "--destination-is-lost", check=False)
    if stolen.returncode == 0:
        wrong.append(f"{source.name} takes {CONTAINER} back although {target.name} answers: {stolen.stdout.strip()}")
    choice = offered[int(choice_share * len(offered))]
    done = target.run("godwit", "migrations", "recover", migration, f"--{choice}", check=False)
    if done.returncode != 0:
        return choice, [*wrong, f"`recover --{choice}` on {target.name}: {done.stderr.strip()}"]
    if left := place.left_behind(source, target):
        wrong.append(f"left behind after `recover --{choice}` on {target.name}: {left}")
    return choice, wrong
