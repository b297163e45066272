"""What is checked of the package on two hosts that systemd has booted: the README's own lines, and a move if CRIU can.

The agents run by the package's unit, so a sandbox that an agent cannot live with fails here.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.commands import wait_until
from lab.images import import_image

from . import documents
from .booted import Booted, join
from .checks import AGENT_TOML, switched_on
from .root import Root

ADDRESSES = {"ha": "192.0.2.11", "hb": "192.0.2.12"}
PREFIX_LENGTH = 24
AGENT_DEADLINE_SECONDS = 30.0
# Capabilities by their bits, of which the agent has the first and not the others: SYS_ADMIN; SYS_MODULE, SYS_BOOT, SYS_TIME.
KEPT, TAKEN = 21, (16, 22, 25)
EXIT_REFUSED = 4
README = documents.blocks(documents.README, "Use it on your own hosts")
COUNTER = "n=0; while :; do n=$((n+1)); echo $n >/next; busybox mv /next /count; busybox sleep 0.05; done"


@contextmanager
def hosts(suite: str, package: Path) -> Iterator[tuple[Booted, Booted]]:
    """Two hosts on one wire that know of each other only what the README's reader tells them."""
    roots = {name: Root(suite) for name in ADDRESSES}
    booted: list[Booted] = []
    try:
        for name, root in roots.items():
            root.put(package, f"/root/{package.name}")
            root.write("/etc/apt/apt.conf.d/90yes", 'APT::Get::Assume-Yes "true";\n')  # nobody is there to be asked
            booted.append(Booted(root, name))
        for host in booted:
            host.wait()
        join(*booted, PREFIX_LENGTH, ADDRESSES)
        for host in booted:
            import_image(host, "busybox")
            import_image(host, "redis")
        yield booted[0], booted[1]
    finally:
        for host in booted:
            host.end()
        for root in roots.values():
            root.remove()


def what_must_be_there_is_there(ha: Booted, hb: Booted) -> None:
    """The lines by which the document has a reader find out."""
    (block,) = documents.blocks(documents.INSTALL, "1. What must be there")
    said = ha.sh(block)
    for wanted in ("Looks good.", "runc version", "nftables v", "overlay2"):
        assert wanted in said, said


def the_readmes_lines_bring_up_the_agents(ha: Booted, hb: Booted) -> None:
    """One after another, each on the hosts that it names; so a start that fails, or an agent that is not there yet, fails."""
    package, authority, configuration, agent, doctor, network = documents.steps(README[0])
    for host in (ha, hb):
        host.sh(package)
        assert host.run("systemctl", "is-enabled", "godwit-agent", check=False).stdout.strip() == "disabled"
    ha.sh(authority)
    for host in (ha, hb):
        for file in ("ca.pem", "host.pem", "host.key"):
            host.write(f"/etc/godwit/tls/{file}", ha.run("cat", f"/root/{host.name}/{file}").stdout)
        host.sh("chmod 600 /etc/godwit/tls/*")
        host.write("/etc/godwit/shim.toml", switched_on(host, "shim.toml"))  # a shim refuses what it does not know
    for step in (configuration, agent, network):
        ha.sh(step)
        hb.sh(documents.exchanged(step))
    for host, told in ((ha, doctor), (hb, documents.exchanged(doctor))):
        done = host.run("sh", "-euc", told, check=False)
        assert done.returncode == (0 if can_move(host) else 1), done.stdout + done.stderr


def the_readmes_container_moves(ha: Booted, hb: Booted) -> None:
    """Where CRIU is too old the plan refuses it, and the container runs on."""
    done = ha.run("sh", "-euc", README[1], check=False)
    assert done.returncode == (0 if can_move(ha) else EXIT_REFUSED), done.stdout + done.stderr
    host = hb if can_move(ha) else ha
    assert host.run("docker", "exec", "redis", "redis-cli", "ping").stdout == "PONG\n"
    host.run("docker", "rm", "--force", "redis")


def a_start_that_cannot_succeed_says_so(ha: Booted, hb: Booted) -> None:
    """`systemctl` returns when the agent is there, and with an error when it cannot be."""
    ha.sh(f"cp {AGENT_TOML} /root/agent.toml; echo 'colour = \"red\"' >>{AGENT_TOML}")
    done = ha.run("systemctl", "restart", "godwit-agent", check=False)
    assert done.returncode != 0, "it has started"
    ha.sh(f"cp /root/agent.toml {AGENT_TOML}; systemctl restart godwit-agent; godwit migrations")


def the_agent_is_in_its_sandbox(ha: Booted, hb: Booted) -> None:
    """systemd leaves out without a word what it cannot do; so the agent's own process is looked at."""
    for host in (ha, hb):
        pid = host.run("systemctl", "show", "--property", "MainPID", "--value", "godwit-agent").stdout.strip()
        status = dict(line.split(":\t", 1) for line in host.run("cat", f"/proc/{pid}/status").stdout.splitlines() if ":\t" in line)
        bounding = int(status["CapBnd"], 16)
        assert bounding >> KEPT & 1 and not any(bounding >> bit & 1 for bit in TAKEN), status["CapBnd"]
        assert status["NoNewPrivs"].strip() == "1", status
        mounts = [line.split()[4:6] for line in host.run("cat", f"/proc/{pid}/mountinfo").stdout.splitlines()]
        assert any(place == "/usr" and "ro" in options.split(",") for place, options in mounts), mounts


def the_doctor_finds_nothing_that_the_sandbox_broke(ha: Booted, hb: Booted) -> None:
    """What a suite's own programs are too old for is not the package's fault; all else must be well, between both hosts."""
    done = ha.run("godwit", "doctor", "--peer", "hb", "--json", check=False)
    problems = {f["code"]: f["text"] for f in json.loads(done.stdout)["findings"] if f["level"] == "problem"}
    assert not set(problems) - {"criu"}, problems


def a_container_moves_there_and_back(ha: Booted, hb: Booted) -> None:
    """By Docker's socket, `criu check`, ptrace, files and volumes: all that the sandbox might have taken."""
    if not can_move(ha):
        print("        (not moved: this suite's CRIU is older than 4.2)", flush=True)
        return
    ha.run("docker", "run", "--detach", "--name", "counter", "--runtime", "io.containerd.godwit.v2", "--network", "none",
           "--volume", "data:/data", "busybox", "/bin/sh", "-c", COUNTER)  # fmt: skip
    wait_until("the counter to count", lambda: count(ha) > 0, AGENT_DEADLINE_SECONDS)
    ha.run("docker", "exec", "counter", "/bin/sh", "-c", "echo kept >/data/file; busybox chown 7:7 /data/file; busybox chmod 4755 /data/file")
    counted = count(ha)
    ha.run("godwit", "migrate", "counter", "hb")
    assert hb.run("docker", "exec", "counter", "busybox", "stat", "-c", "%a %u %g", "/data/file").stdout == "4755 7 7\n"
    wait_until("the counter to go on", lambda: count(hb) > counted, AGENT_DEADLINE_SECONDS)
    assert ha.run("docker", "ps", "--all", "--quiet").stdout == ""
    hb.run("godwit", "migrate", "counter", "ha", "--volumes", "skip", "--mode", "stop")
    wait_until("the counter to go on", lambda: count(ha) > counted, AGENT_DEADLINE_SECONDS)
    offered = ha.run("bash", "-c", "GODWIT_COMPLETE=bash _CLAP_COMPLETE_INDEX=2 godwit -- godwit migrate ''").stdout
    assert "counter" in offered, offered
    ha.run("docker", "rm", "--force", "counter")


def can_move(host: Booted) -> bool:
    """Whether the doctor has nothing against CRIU."""
    done = host.run("godwit", "doctor", "--json", check=False)
    return not any(f["code"] == "criu" and f["level"] == "problem" for f in json.loads(done.stdout)["findings"])


def count(host: Booted) -> int:
    """How far the counter has come."""
    return int(host.run("docker", "exec", "counter", "busybox", "cat", "/count", check=False).stdout.strip() or 0)


def the_documents_lines_remove_it(ha: Booted, hb: Booted) -> None:
    """The agent with it; `systemctl` knows nothing of it any more."""
    (removal,) = documents.blocks(documents.INSTALL, "Removing it")
    for host in (ha, hb):
        host.run("sh", "-uc", removal)  # no `-e`: what looks for containers of ours finds none
        assert host.run("systemctl", "is-active", "godwit-agent", check=False).stdout.strip() == "inactive"
        host.sh("test ! -e /run/godwit/agent.sock && test ! -e /var/lib/godwit && test ! -e /usr/bin/godwit")


CHECKS: tuple[Callable[[Booted, Booted], None], ...] = (
    what_must_be_there_is_there,
    the_readmes_lines_bring_up_the_agents,
    the_agent_is_in_its_sandbox,
    the_doctor_finds_nothing_that_the_sandbox_broke,
    the_readmes_container_moves,
    a_container_moves_there_and_back,
    a_start_that_cannot_succeed_says_so,
    the_documents_lines_remove_it,
)
