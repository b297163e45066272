"""A restore in place beside `docker start --checkpoint`, of the same image under the same shim.

What differs is how the image gets to CRIU: it is read where it lies, or packed into containerd's content store and unpacked again.
"""

import time

from lab.commands import LabError
from lab.hosts import Host

from .report import Row

NAME = "restored"
N_KEYS = 256
FILL = f"for n = 1, {N_KEYS} do redis.call('SET', 'key:' .. n, string.rep(string.format('%08d', n), 131072)) end"
ROUNDS, QUICK_ROUNDS = 5, 1
# A gigabyte through Docker takes some ten seconds; a host that is busy may take much longer.
DEADLINE_SECONDS = 300.0
# containerd collects what is left of a checkpoint within seconds.
LEFTOVERS_SECONDS = 60.0
COMMANDS = {
    "ours": ("godwit", "restore", NAME, "c1"),
    "docker": ("docker", "start", "--checkpoint", "c1", NAME),
}


def restore(host: Host, quick: bool) -> list[Row]:
    """How long each takes, in turn, for a Redis of 256 MB."""
    host.run("docker", "run", "--detach", "--network", "none", "--name", NAME, "--runtime", "io.containerd.godwit.v2",
             "redis:8", "redis-server", "--save", "")  # fmt: skip
    _answer(host, "PING")
    _answer(host, "EVAL", FILL, "0")
    host.run("docker", "checkpoint", "create", NAME, "c1", deadline=DEADLINE_SECONDS)
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for name, command in COMMANDS.items():
            seconds[name].append(_timed(host, command))
            if (found := _answer(host, "DBSIZE")) != str(N_KEYS):
                raise LabError(f"a restored Redis has {found} keys of {N_KEYS}")
            host.run("docker", "kill", NAME)
            host.run("docker", "wait", NAME)
    host.run("docker", "rm", "--force", NAME)
    return [Row(f"restore of {N_KEYS} MB, beside docker start --checkpoint", "s", seconds["ours"], seconds["docker"])]


def _timed(host: Host, command: tuple[str, ...]) -> float:
    ends_at = time.monotonic() + LEFTOVERS_SECONDS
    while True:
        began = time.monotonic()
        done = host.run(*command, check=False, deadline=DEADLINE_SECONDS)
        if done.returncode == 0:
            return time.monotonic() - began
        if "already exists" not in done.stderr or began > ends_at:
            raise LabError(f"{' '.join(command)}: {done.stderr}")
        time.sleep(1.0)


def _answer(host: Host, *words: str) -> str:
    ends_at = time.monotonic() + LEFTOVERS_SECONDS
    while True:
        done = host.run("docker", "exec", NAME, "redis-cli", *words, check=False, deadline=DEADLINE_SECONDS)
        if done.returncode == 0 and "refused" not in done.stderr + done.stdout:
            return done.stdout.strip()
        if time.monotonic() > ends_at:
            raise LabError(f"Redis does not answer: {done.stderr}")
        time.sleep(0.1)
