"""Starts the control plane at the wire and a nova-compute in each host.

They are programs of the machine in the lab's network namespaces, by which `lab down` finds and ends them, whatever becomes of
who started them.
"""

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import links
from lab.commands import LabError, run, wait_until
from lab.hosts import DAEMONS, Host
from lab.layout import DISK_DIR, HOST_ADDRESSES, REPOSITORY, WIRE, WIRE_ADDRESS

from . import backing, configuration, neutron
from .configuration import API_PORT, GLANCE_PORT, NEUTRON_PORT, PLACEMENT_PORT, Places
from .venv import Venv

# Each command is a few seconds of imports on an idle machine.
SCHEMA_DEADLINE_SECONDS = 300.0
READY_DEADLINE_SECONDS = 180.0
# A killed process ends when the kernel gets to it.
KILL_DEADLINE_SECONDS = 20.0
HERE = Path(__file__).parent
BRIDGE = neutron.BRIDGE


class Cloud:
    """All services of one lab."""

    def __init__(self, venv: Venv) -> None:
        self.places = Places(DISK_DIR / "nova")
        self._venv = venv
        self._hosts = [Host(name) for name in HOST_ADDRESSES]
        self._processes: dict[str, subprocess.Popen] = {}

    # -- all of it -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns when both computes are known to the scheduler."""
        for host in self._hosts:
            make_bridge(host)
        configuration.write(self.places, self._venv, self._hosts)
        self._start("rabbitmq", backing.rabbitmq(self._hosts[0]))
        self._start("mariadb", backing.mariadb(self._hosts[0]))
        self._wait_for_log("mariadb", "ready for connections")
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._make_schema, (self._nova_schema(), *OTHER_SCHEMAS)))
        self._wait_for_log("rabbitmq", "started TCP listener on")
        self._start_python("conductor", "nova-conductor")
        # A compute that comes first waits ten seconds before it asks again.
        self._wait_for_log("conductor", "Starting conductor node")
        for host in self._hosts:
            self.start_compute(host)
        self._start_python("scheduler", "nova-scheduler")
        self._serve("neutron", [str(HERE / "neutron.py"), WIRE_ADDRESS, str(NEUTRON_PORT), str(self.places.bindings)])
        for name, module, port in (
            ("api", "nova.wsgi.osapi_compute", API_PORT),
            ("placement", "placement.wsgi.api", PLACEMENT_PORT),
            ("glance", "glance.wsgi.api", GLANCE_PORT),
        ):
            self._serve(name, [str(HERE / "serve.py"), module, WIRE_ADDRESS, str(port)])

    def map_hosts(self) -> None:
        """Lets the scheduler find the computes, once they have told of themselves."""
        self._manage("nova-manage", "cell_v2", "discover_hosts")

    # -- the computes --------------------------------------------------------------------------------------------------

    def start_compute(self, host: Host) -> None:
        """Starts a nova-compute in a host's network."""
        files = [f"--config-file={self.places.etc / name}" for name in ("nova.conf", f"{host.name}.conf")]
        self._start(f"compute-{host.name}", self._in(host.name, self._venv.command("nova-compute", *files)))

    def kill_compute(self, host: Host) -> None:
        """Kills it as a crash would."""
        process = self._processes.pop(f"compute-{host.name}")
        process.kill()
        process.wait(KILL_DEADLINE_SECONDS)

    def compute_log(self, host: Host) -> Path:
        """What it has said."""
        return self.places.log / f"compute-{host.name}.log"

    # -- its parts -----------------------------------------------------------------------------------------------------

    def environment(self) -> list[str]:
        """What the services' programs find in their environment."""
        etc = self.places.etc
        return [
            f"PATH={self._venv.path}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
            f"PYTHONPATH={self.places.python}", "PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=ignore",
            f"OS_NOVA_CONFIG_DIR={etc}", f"OS_PLACEMENT_CONFIG_DIR={etc}", f"OS_GLANCE_CONFIG_DIR={etc}",
        ]  # fmt: skip

    def _at_the_wire(self, program: str, *argv: str) -> list[str]:
        """The command that runs a program of the environment where the services are."""
        return self._in(WIRE, self._venv.command(program, *argv))

    def _in(self, place: str, argv: Sequence[str]) -> list[str]:
        # exec'ed all the way, so that the process which is started is the service itself
        return ["nsenter", f"--net={links.namespace_path(place)}", "--", "env", "-i", *self.environment(), *argv]

    def _start_python(self, name: str, program: str) -> None:
        config = f"--config-file={self.places.etc / 'nova.conf'}"
        self._start(name, self._at_the_wire(program, config))

    def _serve(self, name: str, argv: list[str]) -> None:
        self._start(name, self._at_the_wire("python", *argv))

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.places.log / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )

    def _nova_schema(self) -> list[list[str]]:
        manage = "nova-manage"
        return [
            [manage, "api_db", "sync"],
            [manage, "cell_v2", "map_cell0", "--database_connection", backing.database("nova_cell0")],
            [manage, "db", "sync"],
            [manage, "cell_v2", "create_cell", "--name", "lab"],
        ]

    def _make_schema(self, commands: Sequence[Sequence[str]]) -> None:
        for command in commands:
            self._manage(*command)

    def _manage(self, program: str, *argv: str) -> None:
        config = f"--config-file={self.places.etc / CONFIGURATION_OF[program]}"
        run(
            self._at_the_wire(program, config, *argv),
            deadline=SCHEMA_DEADLINE_SECONDS, shown_as=" ".join((program, *argv)),
        )  # fmt: skip

    def _wait_for_log(self, name: str, words: str) -> None:
        path = self.places.log / f"{name}.log"

        def said() -> bool:
            if self._processes[name].poll() is not None:
                raise LabError(f"{name} has ended: {tail(path)}")
            return words in path.read_text(errors="replace")

        wait_until(f"{name} to say {words!r}", said, READY_DEADLINE_SECONDS)

    def keep_logs(self) -> Path:
        """Saves all logs from the end of the lab; returns where they are."""
        kept = REPOSITORY / "target" / "nova"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.places.log, kept)
        for host in self._hosts:
            for daemon in DAEMONS:
                if host.log_path(daemon).exists():
                    shutil.copy(host.log_path(daemon), kept / f"{daemon}-{host.name}.log")
        return kept


CONFIGURATION_OF = {
    "nova-manage": "nova.conf",
    "placement-manage": "placement.conf",
    "glance-manage": "glance-api.conf",
}
OTHER_SCHEMAS = ([["placement-manage", "db", "sync"]], [["glance-manage", "db_sync"]])


def tail(path: Path, n_lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-n_lines:])


def make_bridge(host: Host) -> None:
    """The bridge that Neutron's bindings name: in each host, with a link to the segment that all are on."""
    wire, netns, uplink = str(links.namespace_path(WIRE).name), links.namespace_path(host.name).name, f"{host.name}-br"
    run(["ip", "link", "add", "uplink", "netns", netns, "type", "veth", "peer", "name", uplink, "netns", wire])
    run(["ip", "-n", wire, "link", "set", uplink, "master", links.BRIDGE, "up"])
    run(["ip", "-n", netns, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"])
    run(["ip", "-n", netns, "link", "set", "uplink", "master", BRIDGE, "up"])
    run(["ip", "-n", netns, "link", "set", BRIDGE, "up"])
    # Else the kernel answers there for the host's own address as well, and the agents' traffic takes this way.
    ignore = f"echo 1 >/proc/sys/net/ipv4/conf/{BRIDGE}/arp_ignore"
    run(["nsenter", f"--net={links.namespace_path(host.name)}", "--", "sh", "-c", ignore])
