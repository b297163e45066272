"""What is checked of the package in a root where nothing runs: each check is a function that is named by what it says.

They run in the order of the lists at the end, and a later one builds on what an earlier one has installed.
"""

import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .booted import Booted
from .root import Root

PACKAGE = "/tmp/godwit.deb"
UNIT = "/usr/lib/systemd/system/godwit-agent.service"
AGENT_TOML = "/etc/godwit/agent.toml"
CONFIGURED = 'name = "ha"\nlisten = "192.0.2.11:7433"\n[peers.hb]\naddress = "192.0.2.12:7433"\n'
DAEMON_JSON = '{"debug": true}\n'
# What `systemd-analyze security` may find open to it, of 100: Docker's own unit has 94.
EXPOSURE = 80
# Kept by dpkg and apt themselves, and what programs of the checks keep.
BOOKKEEPING = ("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/apt", "/var/log/dpkg.log", "/tmp/", "/root/",
               "/etc/group-", "/etc/gshadow-")  # fmt: skip
# Bash's own completion of a line whose last word is being typed; prints what it offers.
BASH = """
. /usr/share/bash-completion/bash_completion
if declare -F _comp_load >/dev/null; then _comp_load godwit; else __load_completion godwit; fi
COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_TYPE=9
_clap_complete_godwit godwit "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%%s\\n' "${COMPREPLY[@]}"
"""
# zsh's completion belongs to its line editor; here the function that prints what it was given takes the editor's place.
ZSH = """
autoload -Uz compinit && compinit -D
[[ ${_comps[godwit]} = _godwit ]] || exit 1
_describe() { shift 2; print -l -- ${(P)1} }
words=(%s); CURRENT=${#words}
_godwit
"""


def it_installs_without_network(root: Root) -> None:
    """All that it depends on is in the base, so a dependency that is misnamed fails here."""
    root.run("apt-get", "install", "--yes", PACKAGE)
    status = root.run("dpkg-query", "--show", "--showformat", "${Status}", "godwit").stdout
    assert status == "install ok installed", status
    assert root.run("getent", "group", "godwit").stdout


def its_programs_run(root: Root) -> None:
    """The C library of this suite has what they ask for; the lens can be loaded into another program."""
    assert root.run("godwit", "--version").stdout.startswith("godwit "), "no version"
    assert "godwit" in root.run("containerd-shim-godwit-v2", "-v").stdout
    said = root.sh("LD_PRELOAD=/usr/lib/godwit/libgodwit_lens.so true").stderr
    assert said == "", said


def its_unit_is_sound_and_sandboxed(root: Root) -> None:
    """No key that this systemd does not know, and a program that is there."""
    done = root.run("systemd-analyze", "verify", UNIT)
    assert "godwit" not in done.stdout + done.stderr, done.stdout + done.stderr
    root.run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", UNIT)


def its_manual_pages_render(root: Root) -> None:
    """Every command has one, and troff has nothing to say against any."""
    pages = root.sh("ls /usr/share/man/man1/godwit*").stdout.split()
    for command in commands(root):
        assert f"/usr/share/man/man1/godwit-{command}.1.gz" in pages, f"no page of {command}"
    for page in pages:
        done = root.run("man", "--warnings", "--local-file", page)
        assert done.stderr == "", f"{page}: {done.stderr}"
        assert "EXIT CODES" in done.stdout or page.count("-") > 1, page
    assert "godwit migrate redis hb" in root.run("man", "godwit-migrate").stdout


def commands(root: Root) -> list[str]:
    """The commands that `--help` lists."""
    lines = root.run("godwit", "--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    return [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] != "help"]


def shells_complete_commands_and_hosts(root: Root) -> None:
    """In bash, zsh and fish: a command, and a host that the agent's configuration names."""
    root.sh(f"cp {AGENT_TOML} /tmp/agent.toml")
    root.write(AGENT_TOML, CONFIGURED)
    for words, wanted in (("godwit mig", "migrate"), ("godwit doctor --peer h", "hb"), ("godwit migrate redis ''", "hb")):
        offers = {
            "bash": root.run("bash", "--norc", "-c", BASH % words),
            "zsh": root.run("zsh", "-fc", ZSH % words),
            "fish": root.run("fish", "-c", f'complete --do-complete "{words.replace(chr(39), "")}"'),
        }
        for shell, done in offers.items():
            # zsh and fish say what it is behind it
            offered = [line.replace(":", "\t").partition("\t")[0].strip() for line in done.stdout.splitlines()]
            assert wanted in offered, f"{shell}: {words}: {done.stdout}{done.stderr}"
    root.sh(f"mv /tmp/agent.toml {AGENT_TOML}")


def its_configuration_is_understood(root: Root) -> None:
    """As it comes the agent says what it lacks; with every setting in it switched on it is taken."""
    done = root.run("godwit", "agent", check=False)
    assert done.returncode == 1 and "missing field `name`" in done.stderr, done.stderr
    for file in ("agent.toml", "shim.toml"):
        text = switched_on(root, file)
        assert tomllib.loads(text), file
        root.write(f"/tmp/{file}", text)
    done = root.run("godwit", "agent", "--config", "/tmp/agent.toml", check=False)
    assert done.returncode == 1 and "/etc/godwit/tls/" in done.stderr, done.stderr


def switched_on(root: Root | Booted, file: str) -> str:
    """A configuration as it comes, with every setting in it: those are commented out without a space."""
    lines = root.run("cat", f"/etc/godwit/{file}").stdout.splitlines()
    return "".join(f"{line[1:] if line[1:2].strip() else line}\n" for line in lines)


def the_doctor_finds_what_was_installed(root: Root) -> None:
    """The lens beside the agent, and a certificate in the directory for it; it says that no agent runs."""
    root.sh("cd /tmp && godwit ca init --dir ca && godwit ca issue --dir ca --host ha --address 192.0.2.11 --out ha")
    root.sh("cd /tmp/ha && install -m 600 ca.pem host.pem host.key /etc/godwit/tls/ && rm -r /tmp/ca /tmp/ha")
    done = root.run("godwit", "doctor", "--json", check=False)
    found = {finding["code"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and found["agent"]["level"] == "problem", done.stdout
    for code in ("runc", "nft", "lens", "certificates"):
        assert found[code]["level"] == "ok", found[code]
    assert "\x1b" not in root.run("godwit", "doctor", check=False).stdout, "colours without a terminal"


def an_edited_configuration_outlives_an_upgrade(root: Root) -> None:
    """The same package again is to dpkg what a new release is."""
    root.write(AGENT_TOML, CONFIGURED)
    root.run("dpkg", "--install", "--force-confold", PACKAGE)
    assert root.run("cat", AGENT_TOML).stdout == CONFIGURED


def it_stays_while_a_move_is_not_over(root: Root) -> None:
    """With the journal would go the knowledge of which copy is the real one."""
    root.sh("mkdir -p /var/lib/godwit/migrations/6c2c0c4b8f3e0a51")
    done = root.run("apt-get", "remove", "--yes", "godwit", check=False)
    assert done.returncode != 0 and "a move is not over" in done.stderr + done.stdout, done.stderr
    root.sh("rmdir /var/lib/godwit/migrations/6c2c0c4b8f3e0a51 && godwit --version")


def a_removal_leaves_configuration_only(root: Root, before: set[str]) -> None:
    """What `godwit setup` changed is taken back, too."""
    root.run("godwit", "setup", "docker", "--drop-in", "--experimental")
    root.sh("mkdir -p /var/lib/godwit/reports /var/log/godwit && touch /var/lib/godwit/reports/x.json /var/log/godwit/x.log")
    root.run("apt-get", "remove", "--yes", "godwit")
    assert root.run("cat", "/etc/docker/daemon.json").stdout == DAEMON_JSON
    left = left_since(root, before)
    assert AGENT_TOML in left, "the configuration is gone"
    others = [path for path in left if not path.startswith("/etc/godwit")]
    assert not others, others


def a_purge_leaves_nothing(root: Root, before: set[str]) -> None:
    """Not even keys."""
    root.run("apt-get", "purge", "--yes", "godwit")
    assert not left_since(root, before), left_since(root, before)
    assert root.run("getent", "group", "godwit", check=False).returncode != 0


def left_since(root: Root, before: set[str]) -> list[str]:
    """What is there and was not before the package came."""
    return sorted(path for path in root.files() - before if not path.startswith(BOOKKEEPING))


@contextmanager
def fresh(suite: str, package: Path) -> Iterator[tuple[Root, set[str]]]:
    """A root with the package lying in it, not installed yet, and the files that are there before it is."""
    root = Root(suite)
    try:
        root.write("/etc/docker/daemon.json", DAEMON_JSON)
        root.put(package, PACKAGE)
        yield root, root.files()
    finally:
        root.remove()


IN_A_ROOT: tuple[Callable[[Root], None], ...] = (
    it_installs_without_network,
    its_programs_run,
    its_unit_is_sound_and_sandboxed,
    its_manual_pages_render,
    shells_complete_commands_and_hosts,
    its_configuration_is_understood,
    the_doctor_finds_what_was_installed,
    an_edited_configuration_outlives_an_upgrade,
    it_stays_while_a_move_is_not_over,
)
OF_REMOVAL: tuple[Callable[[Root, set[str]], None], ...] = (a_removal_leaves_configuration_only, a_purge_leaves_nothing)
