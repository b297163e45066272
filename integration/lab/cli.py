"""The command line of the lab. It parses and prints; what it does stands in the other modules."""

import argparse
import os
import signal
import sys

from . import agents, images, lifecycle
from .base import SUITES
from .commands import LabError
from .hosts import DAEMONS, Host, client_command
from .layout import CLIENT, DEFAULT_BASE, HOST_ADDRESSES, PLACES


def main() -> int:
    """Runs one subcommand; an error that the user can act on is one line."""
    arguments = _parser().parse_args()
    if os.geteuid() != 0:
        print("lab: needs root: it makes namespaces, mounts and cgroups", file=sys.stderr)
        return 1
    try:
        return arguments.action(arguments) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="Two Docker hosts and a place for clients on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    hosts = list(HOST_ADDRESSES)

    up = _command(commands, "up", _up, "bring the lab up")
    up.add_argument("--cgroup", action="append", default=[], metavar="HOST=v1|v2", help="cgroup flavour of a host")
    up.add_argument("--base", default=DEFAULT_BASE, choices=SUITES, help="the Debian suite both hosts stand on")
    up.add_argument("--no-agent", action="store_true", help="leave out the godwit agents")
    up.add_argument("--no-lan", action="store_true", help="leave out the macvlan network `lan`")
    up.add_argument("--no-images", action="store_true", help="leave out the container images")

    _command(commands, "down", lambda _: lifecycle.down(), "remove all of it, also after a crash half-way")
    _command(commands, "status", lambda _: print(lifecycle.status()), "say what is up")

    run = _command(commands, "exec", _exec, "run a command on a host, or at the clients' place")
    run.add_argument("place", choices=PLACES)
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")

    install = _command(commands, "install", _install, "put freshly built binaries into the hosts")
    install.add_argument("host", nargs="*", default=hosts)

    image = _command(commands, "image", _image, "import a container image on a host")
    image.add_argument("host", choices=hosts)
    image.add_argument("name", choices=list(images.IMAGES))

    logs = _command(commands, "logs", _logs, "print the ends of a host's logs")
    logs.add_argument("host", choices=hosts)
    logs.add_argument("daemon", nargs="?", choices=list(DAEMONS))
    logs.add_argument("-n", "--lines", type=int, default=100)

    restart = _command(commands, "restart", lambda told: Host(told.host).restart_daemon(told.daemon), "restart a daemon")
    kill = _command(commands, "kill", _kill, "kill a daemon with SIGKILL")
    for command in (restart, kill):
        command.add_argument("host", choices=hosts)
        command.add_argument("daemon", choices=list(DAEMONS))
    return parser


def _command(commands, name: str, action, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=description, description=description)
    command.set_defaults(action=action)
    return command


def _up(told: argparse.Namespace) -> None:
    flavours = {}
    for choice in told.cgroup:
        host, _, flavour = choice.partition("=")
        if host not in HOST_ADDRESSES or flavour not in ("v1", "v2"):
            raise LabError(f"--cgroup {choice}: expected HOST=v1 or HOST=v2, with a host of {', '.join(HOST_ADDRESSES)}")
        flavours[host] = flavour
    images_on = None if told.no_images else "ha"
    lifecycle.up(flavours, agent=not told.no_agent, lan=not told.no_lan, image_host=images_on, suite=told.base)
    print(lifecycle.status())


def _exec(told: argparse.Namespace) -> int:
    argv = told.argv[1:] if told.argv[:1] == ["--"] else told.argv
    if not argv:
        raise LabError("exec: no command; say `lab exec HOST -- COMMAND`")
    if told.place == CLIENT:
        command = client_command(argv)
    else:
        command = Host(told.place).command(argv)
    os.execvp(command[0], command)  # terminal, streams, signals and exit code are the command's own


def _install(told: argparse.Namespace) -> int:
    installed = agents.install_binaries([Host(name) for name in told.host])
    print(f"installed on {', '.join(told.host)}: {', '.join(installed) or 'nothing, as nothing is built'}")
    return 0 if installed else 1


def _image(told: argparse.Namespace) -> None:
    images.import_image(Host(told.host), told.name)


def _logs(told: argparse.Namespace) -> None:
    for daemon in [told.daemon] if told.daemon else DAEMONS:
        print(f"==> {daemon} on {told.host} <==\n{Host(told.host).log_tail(daemon, told.lines)}")


def _kill(told: argparse.Namespace) -> None:
    Host(told.host).signal_daemon(told.daemon, signal.SIGKILL)
