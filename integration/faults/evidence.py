"""What is kept of a trial that went wrong: what the daemons said since it began, the hosts' processes, and CRIU's logs.

It is gathered before anything is taken down, since most of it goes with the lab.
"""

from lab.hosts import DAEMONS, Host

LOG_LINES, LINE_LENGTH = 80, 500
CRIU_LINES = 25
# The control directories of containers keep CRIU's logs of what is under way or has failed.
CRIU_LOGS = "tail -vn {} /run/godwit/tasks/*/work-*/*.log"
# Where each waits in the kernel is most of what a hang shows.
PROCESSES = "ps -eo pid,ppid,stat,etimes,wchan:24,args | grep -v 'ps -eo'"


class Beginning:
    """How far each log was when a trial began."""

    def __init__(self, hosts: tuple[Host, ...]) -> None:
        self._hosts = hosts
        self._sizes = {(host.name, daemon): host.log_size(daemon) for host in hosts for daemon in DAEMONS}

    def logs(self) -> dict[str, str]:
        """What the daemons have said since then."""
        return {
            f"{daemon} on {host.name}": _short(host.log_tail(daemon, LOG_LINES, since=self._sizes[host.name, daemon]))
            for host in self._hosts
            for daemon in DAEMONS
        }

    def traces(self) -> dict[str, str]:
        """What there is now."""
        found = {}
        for host in self._hosts:
            for what, script in (("processes", PROCESSES), ("CRIU", CRIU_LOGS.format(CRIU_LINES))):
                found[f"{what} on {host.name}"] = _short(host.run("sh", "-c", script, check=False).stdout)
        return found


def _short(log: str) -> str:
    """A log without what is said again and again, as by an agent that asks every two seconds."""
    lines = [line[:LINE_LENGTH] for line in log.splitlines()]
    return "\n".join(line for before, line in zip(["", *lines], lines) if line != before)
