"""The whole lab: up, down, and what stands at the moment.

`down` trusts no record. It looks for processes by cgroup and by network namespace, so that it works as well after a crash
half-way up; never by a process's name, which others may bear too.
"""

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import agents, base, cgroups, images, links
from .commands import LabError, run, wait_until
from .hosts import DAEMONS, Host
from .layout import DEFAULT_BASE, DISK_DIR, HOST_ADDRESSES, LAN_NETWORK, LAN_RANGES, NAME, STATE_DIR, SUBNET, WIRE_ADDRESS

# A process killed with SIGKILL ends when the kernel gets to it; one in the midst of writing to disk takes longest.
KILL_DEADLINE_SECONDS = 20.0


def up(
    flavours: dict[str, str], *, agent: bool = True, lan: bool = True, image_host: str | None = "ha",
    suite: str = DEFAULT_BASE, extra: Sequence[str] = (),
) -> None:  # fmt: skip
    """Brings the lab up on the base of a suite, with further packages if told; on failure what came up is taken down again."""
    if standing():
        raise LabError(f"lab {NAME} is up already, or was left half-way; run `make lab-down` first")
    root = base.base_with(suite, extra)
    hosts = [Host(name) for name in HOST_ADDRESSES]
    try:
        links.create_links()
        _on_each(hosts, lambda host: host.create(root, flavours.get(host.name, cgroups.default_flavour())))
        agents.install_binaries(hosts)
        _on_each(hosts, lambda host: _start_engine(host, lan=lan))
        if agent:
            agents.configure_agents(hosts)
            _on_each(hosts, lambda host: host.start_daemon("agent"))
        if image_host is not None:
            _on_each(list(images.USUAL), lambda name: images.import_image(Host(image_host), name))
    except BaseException:
        down()
        raise


def _start_engine(host: Host, *, lan: bool) -> None:
    host.start_daemon("containerd")
    host.start_daemon("dockerd")
    if lan:
        # Containers on it have an address of the common segment, which is as good on the other host.
        host.run("docker", "network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", SUBNET,
                 "--gateway", WIRE_ADDRESS, "--ip-range", LAN_RANGES[host.name], LAN_NETWORK)  # fmt: skip


def _on_each(items: list, action: Callable) -> None:
    with ThreadPoolExecutor(max_workers=len(items)) as pool:
        list(pool.map(action, items))


def down() -> None:
    """Removes everything of this lab, however much of it there is."""
    wait_until("killing the lab's processes", lambda: not _kill_processes(), KILL_DEADLINE_SECONDS)
    links.remove_links()
    cgroups.remove_trees()
    for mount in _mounts():
        run(["umount", "--lazy", str(mount)])
    for directory in (DISK_DIR, STATE_DIR):
        if directory.exists():
            shutil.rmtree(directory)
        _remove_if_empty(directory.parent)


def standing() -> list[str]:
    """What there is of this lab in the machine, however it came there; nothing after `down`."""
    return [
        *(f"process {pid}" for pid in sorted(_processes())),
        *(f"network namespace {name}" for name in links.namespaces()),
        *(f"cgroup {tree}" for tree in cgroups.trees()),
        *(f"mount {mount}" for mount in _mounts()),
        *(f"directory {directory}" for directory in (DISK_DIR, STATE_DIR) if directory.exists()),
    ]


def status() -> str:
    """A few lines for a person."""
    lines = []
    for name in HOST_ADDRESSES:
        host = Host(name)
        state = host.state()
        if state is None:
            lines.append(f"{name}  down")
            continue
        daemons = "  ".join(f"{daemon}={'up' if host.daemon_pid(daemon) else 'down'}" for daemon in DAEMONS)
        lines.append(f"{name}  {host.address}  cgroups={state['cgroups']}  pid={state['init']}  {daemons}")
    return "\n".join(lines)


def _processes() -> set[int]:
    by_cgroup = [cgroups.processes_inside(tree) for tree in cgroups.trees()]
    by_network = [links.processes_inside(namespace) for namespace in links.namespaces()]
    return set().union(*by_cgroup, *by_network) - {os.getpid()}


def _kill_processes() -> set[int]:
    """Kills what there is; returns what it found."""
    found = _processes()
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    cgroups.thaw()
    return found


def _mounts() -> list[Path]:
    """Mounts in the machine's own tree below our directories, deepest first. The hosts' own are none of these."""
    mounted = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    ours = [path for path in mounted if path.startswith((f"{DISK_DIR}/", f"{STATE_DIR}/"))]
    return [Path(path) for path in sorted(ours, key=len, reverse=True)]


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return  # another lab stands, or there is none
