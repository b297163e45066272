"""Godwit in the place of the stock shim: `godwit setup --drop-in`, and containerd started again as systemd would then.

A host of the lab has the daemons' units and no systemd, so what the setup adds to containerd's unit is done here.
"""

import re
from unittest import mock

from lab import hosts
from lab.hosts import DAEMONS, Daemon, Host


def install(host: Host, engine: str = "docker") -> None:
    """Sets up the drop-in and starts the daemons so that containerd finds it."""
    host.run("godwit", "setup", engine, "--drop-in")
    added = host.path("/etc/systemd/system/containerd.service.d/50-godwit.conf").read_text()
    environment = re.findall(r"^Environment=(.*)$", added, re.MULTILINE)
    plain = DAEMONS["containerd"]
    command = ("env", *environment, *plain.command)
    with mock.patch.dict(hosts.DAEMONS, containerd=Daemon(plain.name, command, plain.ready_socket)):
        restart(host)


def remove(host: Host, engine: str = "docker") -> None:
    """Undoes it; the daemons are as before."""
    host.run("godwit", "setup", engine, "--undo")
    restart(host)


def restart(host: Host) -> None:
    """containerd and dockerd, which would lose it; returns when dockerd answers. It takes connections before it heeds signals."""
    for name in ("containerd", "dockerd"):
        host.restart_daemon(name)
    host.run("docker", "version")
