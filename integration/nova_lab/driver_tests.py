"""Runs what is in contrib/nova/tests: the driver's unit tests, and a Nova in one process whose computes use the lab's two hosts."""

import json
import os
import subprocess
from collections.abc import Sequence

from lab.commands import LabError
from lab.hosts import Host

from .venv import DRIVER, Venv

# The whole takes half a minute; a machine busy with a build needs more.
DEADLINE_SECONDS = 300.0


def unit(venv: Venv) -> None:
    """The driver by itself."""
    _run(venv, "discover", "-s", "tests", "-t", ".")


def two_hosts(venv: Venv, hosts: Sequence[Host], runtime: str) -> None:
    """Nova's own test bed with the driver in it; the hosts must have the image of Redis."""
    told = {
        host.name: {
            "docker_socket": str(host.path("/run/docker.sock")),
            "agent_socket": str(host.path("/run/godwit/agent.sock")),
            "storage_path": str(host.disk),
            "runtime": runtime,
        }
        for host in hosts
    }
    _run(venv, "tests.two_hosts", GODWIT_NOVA_HOSTS=json.dumps(told), OS_NOVA_DISABLE_EVENTLET_PATCHING="true")


def _run(venv: Venv, *which: str, **environment: str) -> None:
    # In a process of their own, as Nova wants to be imported once and in its own way.
    done = subprocess.run(
        venv.command("python", "-B", "-m", "unittest", *which), cwd=DRIVER, capture_output=True, text=True,
        env={**os.environ, **environment, "PYTHONWARNINGS": "ignore"}, timeout=DEADLINE_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise LabError(f"the driver's tests have failed: {done.stdout[-5000:]}{done.stderr[-20000:]}")
