"""Both virtual machines with containerd, Docker and an agent each, and what a test does with them.

All that is made lies in one directory and ends with the context. Nothing of the other lab is used or touched.
"""

import io
import json
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.agents import LENS, configuration
from lab.commands import LabError, run
from lab.layout import HOST_ADDRESSES, binaries_dir

from .image import ensure_image, initramfs, make_disk, strip_into
from .machine import Machine

HERE = Path(__file__).parent
IMAGE = "dirty:latest"
# A daemon's start is a second's work, here some ten.
READY_DEADLINE_SECONDS = 120.0
MOVE_DEADLINE_SECONDS = 180.0
SLOW = ("` hangs", "did not answer at")
PLANS = 5
# What a host starts, in this order, and the socket that shows that it is ready.
DAEMONS = {
    "containerd": (["containerd"], "/run/containerd/containerd.sock"),
    "dockerd": (["dockerd", "--containerd", "/run/containerd/containerd.sock", "--iptables=false", "--ip6tables=false", "--bridge=none"],
                "/run/docker.sock"),
    "agent": (["godwit", "agent", "--config", "/etc/godwit/agent.toml"], "/run/godwit/agent.sock"),
}  # fmt: skip


class Lab:
    """Two hosts; a context."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="godwit-vm-"))
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> "Lab":
        try:
            image = ensure_image()
            (self._directory / "initramfs").write_bytes(initramfs(image))
            self._make_disk()
            for name in HOST_ADDRESSES:
                self.machines[name] = Machine(name, image, self._directory)
            first, *others = self.machines.values()
            with ThreadPoolExecutor() as pool:
                boots = [pool.submit(first.start, listens=True)]
                wire = self._directory / "wire"
                _until("the wire", wire.exists, READY_DEADLINE_SECONDS)
                boots += [pool.submit(other.start, listens=False) for other in others]
                for boot in boots:
                    boot.result()
                list(pool.map(self._start_daemons, self.machines.values()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            machine.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- making it -----------------------------------------------------------------------------------------------------

    def _make_disk(self) -> None:
        content = self._directory / "content"
        (content / "bin").mkdir(parents=True)
        for name in ("godwit", "containerd-shim-godwit-v2"):
            strip_into(binaries_dir() / name, content / "bin")
        library = content / "lib/godwit"
        library.mkdir(parents=True)
        strip_into(binaries_dir() / LENS, library)
        for file in ("guest.py", "guest-init.sh"):
            shutil.copyfile(HERE / file, content / file)
        program = content / "dirty"
        run(["gcc", "-static", "-O2", "-o", str(program), str(HERE / "dirty.c")])
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(program, arcname="dirty")
        (content / "image.tar").write_bytes(archive.getvalue())
        godwit, authority = str(binaries_dir() / "godwit"), self._directory / "ca"
        run([godwit, "ca", "init", "--dir", str(authority)])
        for name, address in HOST_ADDRESSES.items():
            etc = content / name / "etc"
            tls = etc / "godwit/tls"
            run([godwit, "ca", "issue", "--dir", str(authority), "--host", name, "--address", address, "--out", str(tls)])
            (etc / "godwit/agent.toml").write_text(configuration(name, address))
            (etc / "hosts").write_text("127.0.0.1 localhost\n")
            (etc / "hostname").write_text(f"{name}\n")
        make_disk(content, self._directory / "lab")

    def _start_daemons(self, machine: Machine) -> None:
        # What CRIU finds out about a kernel it remembers; here that takes longer than an agent waits for an answer.
        machine.run("criu", "check")
        for name in DAEMONS:
            self.start_daemon(machine, name)

    def start_daemon(self, machine: Machine, name: str) -> None:
        """Starts a daemon and waits until it answers."""
        command, ready = DAEMONS[name]
        script = 'setsid "$@" >>/var/log/lab/$0.log 2>&1 </dev/null & echo $! >/run/$0.lab'
        machine.run("sh", "-c", script, name, *command)
        probe = f"import socket; socket.socket(socket.AF_UNIX).connect({ready!r})"
        try:
            _until(f"{name} on {machine.name}", lambda: machine.run("python3", "-c", probe, check=False).returncode == 0,
                   READY_DEADLINE_SECONDS)  # fmt: skip
        except LabError as error:
            raise LabError(f"{error}\n{machine.run('tail', '-n', '30', f'/var/log/lab/{name}.log').stdout}") from None

    def kill_agent(self, machine: Machine) -> None:
        """Kills the agent, and nothing that it has started."""
        machine.run("sh", "-c", "kill -9 $(cat /run/agent.lab)")

    # -- containers and moves ------------------------------------------------------------------------------------------

    def start(self, machine: Machine, name: str, mib: int, hot_mib: int, rate: int) -> None:
        """Starts a container that writes to its memory, and waits until it has it."""
        if machine.run("docker", "image", "inspect", IMAGE, check=False).returncode != 0:
            machine.run("sh", "-c", f"docker import --change 'ENTRYPOINT [\"/dirty\"]' /srv/lab/image.tar {IMAGE}")
        machine.run("docker", "run", "--detach", "--runtime", "io.containerd.godwit.v2", "--network", "none", "--name", name,
                    IMAGE, str(mib), str(hot_mib), str(rate))  # fmt: skip
        _until(f"the memory of {name}", lambda: "ready" in self.logs(machine, name), READY_DEADLINE_SECONDS)

    def logs(self, machine: Machine, name: str) -> str:
        """What a container has said."""
        return machine.run("docker", "logs", name).stdout

    def state(self, machine: Machine, name: str) -> str:
        """The state of a container, or nothing."""
        return machine.run("docker", "inspect", "--format", "{{.State.Status}}", name, check=False).stdout.strip()

    def verdicts(self, machine: Machine, name: str) -> list[str]:
        """What the container's processes find when they look at all their memory."""
        before = self.logs(machine, name).count("wrong of")
        machine.run("docker", "kill", "--signal", "USR1", name)
        _until("both verdicts", lambda: self.logs(machine, name).count("wrong of") >= before + 2, READY_DEADLINE_SECONDS)
        return [line for line in self.logs(machine, name).splitlines() if "wrong of" in line][-2:]

    def leftovers(self, machine: Machine) -> str:
        """What there is of moves on a host; nothing as a rule."""
        script = "ls -d /run/godwit/migrations/* /var/lib/godwit/migrations/* /run/godwit/tickets/*/* 2>/dev/null; pgrep -l 'criu|hold|pager' || :"
        return machine.run("sh", "-c", script).stdout.strip()

    def move(self, source: Machine, target: Machine, name: str, *options: str,
             struck: Callable[[dict], bool] = lambda _: False, strike: Callable[[], None] = lambda: None) -> "Move":  # fmt: skip
        """Moves a container; at the first event that `struck` is true for, `strike` is done.

        Asked for again where it ended before anything was touched because a program or the other host took too long to
        answer: a machine that is interpreted beside a build stands still for seconds.
        """
        for _ in range(PLANS):
            move = Move(source, target, name, options, struck, strike)
            if move.code == 0 or not any(words in move.message for words in SLOW):
                break
        return move


class Move:
    """A move that has ended: its events, and how."""

    def __init__(self, source: Machine, target: Machine, name: str, options, struck, strike) -> None:
        self.events: list[dict] = []
        hit = threading.Event()

        def each(line: str) -> None:
            event = json.loads(line)
            self.events.append(event)
            if not hit.is_set() and struck(event):
                hit.set()

        began = time.monotonic()
        stream = source.stream(["godwit", "migrate", name, target.name, "--json", *options], each)
        striking = threading.Thread(target=lambda: hit.wait(MOVE_DEADLINE_SECONDS) and strike(), daemon=True)
        striking.start()
        self.code, self.stderr = stream.end(MOVE_DEADLINE_SECONDS)
        self.seconds = time.monotonic() - began
        self.was_struck = hit.is_set()
        if self.was_struck:
            striking.join(MOVE_DEADLINE_SECONDS)

    @property
    def message(self) -> str:
        """Its error in a sentence."""
        return self.events[-1].get("message", "") if self.events else self.stderr

    @property
    def report(self) -> dict:
        """Its report; an error if there is none."""
        report = self.events[-1].get("report") if self.events else None
        if self.code != 0 or report is None:
            raise LabError(f"the move ended with {self.code}: {self.stderr} {self.events[-1:]}")
        return report


def _until(what: str, condition: Callable[[], bool], deadline: float) -> None:
    ends_at = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > ends_at:
            raise LabError(f"{what}: not within {deadline:.0f} s")
        time.sleep(0.2)
