"""A virtual machine: QEMU without hardware's help, one of two that are joined by a wire.

What runs in it is asked for over its serial port (guest.py). It refuses to wait without a deadline. Its disk is a copy that
is written to in memory's stead and forgotten with it.
"""

import itertools
import json
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lab.commands import LabError
from lab.layout import HOST_ADDRESSES

# Everything is interpreted: on two cores that two machines share, a boot takes ten seconds, more beside a build.
BOOT_DEADLINE_SECONDS = 120.0
COMMAND_DEADLINE_SECONDS = 120.0
MEMORY_MIB = 1024
# A clock that is interpreted beside other work is not to be calibrated: the kernel would wait for it for ever.
HURRY = "no_timer_check lpj=4000000 tsc_early_khz=2000000 edd=off mitigations=off random.trust_cpu=on"


class Machine:
    """One of the two; `start` boots it."""

    def __init__(self, name: str, image: Path, directory: Path) -> None:
        self.name = name
        self.address = HOST_ADDRESSES[name]
        self._image = image
        self._directory = directory
        self._process: subprocess.Popen | None = None
        self._port: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._answers: dict[int, dict] = {}
        self._listeners: dict[int, object] = {}
        self._is_up = False

    def start(self, *, listens: bool) -> None:
        """Boots; one of the two listens for the other's end of the wire."""
        port = self._directory / f"{self.name}.port"
        server = "on" if listens else "off"
        wire = f"stream,id=wire,server={server},addr.type=unix,addr.path={self._directory / 'wire'}"
        number = list(HOST_ADDRESSES).index(self.name) + 1
        disk = f"format=raw,if=none,cache=unsafe,snapshot=on,id=root,file={self._image / 'disk'}"
        command = [
            "qemu-system-x86_64", "-M", "microvm,pit=on,pic=on,rtc=on,isa-serial=on", "-cpu", "max", "-accel",
            "tcg,tb-size=128", "-smp", "1", "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-no-reboot",
            "-display", "none", "-serial", f"file:{self._directory / self.name}.log",
            "-kernel", str(self._image / "kernel"), "-initrd", str(self._directory / "initramfs"),
            "-append", f"console=ttyS0 quiet panic=-1 {HURRY} lab.name={self.name} lab.address={self.address}",
            "-drive", disk, "-device", "virtio-blk-device,drive=root",
            "-drive", f"format=raw,if=none,readonly=on,id=lab,file={self._directory / 'lab'}",
            "-device", "virtio-blk-device,drive=lab",
            "-netdev", wire, "-device", f"virtio-net-device,netdev=wire,mac=52:54:00:00:00:{number:02x}",
            "-device", "virtio-serial-device", "-chardev", f"socket,id=port,server=on,wait=off,path={port}",
            "-device", "virtserialport,chardev=port,name=lab", "-device", "virtio-rng-device",
        ]  # fmt: skip
        with open(self._directory / f"{self.name}.qemu", "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        ends_at = time.monotonic() + BOOT_DEADLINE_SECONDS
        while True:
            self._must_live()
            self._port = socket.socket(socket.AF_UNIX)
            try:
                self._port.connect(str(port))
                break
            except OSError:
                self._port.close()
                if time.monotonic() > ends_at:
                    raise self._broken("its port is not there") from None
                time.sleep(0.05)
        threading.Thread(target=self._listen, daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_up or self._process.poll() is not None, ends_at - time.monotonic())
        if not self._is_up:
            raise self._broken("it does not come up")

    def run(
        self, *argv: str, stdin: str = "", check: bool = True, deadline: float = COMMAND_DEADLINE_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in it to its end."""
        number = self._ask({"argv": argv, "stdin": stdin, "deadline": deadline})
        answer = self._await(number, deadline + 10, " ".join(argv))
        done = subprocess.CompletedProcess(argv, answer["code"], answer["stdout"], answer["stderr"])
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}: `{' '.join(argv)}` failed ({done.returncode}): {said}")
        return done

    def stream(self, argv: Sequence[str], each) -> "Stream":
        """Begins a command of which every line is told as it comes, to `each`."""
        return Stream(self, argv, each)

    def stop(self) -> None:
        """Switches it off."""
        if self._port is not None:
            self._port.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """What it said on its console at the end."""
        texts = [path.read_text(errors="replace") for path in (self._directory / f"{self.name}.log",
                 self._directory / f"{self.name}.qemu") if path.exists()]  # fmt: skip
        return "\n".join("\n".join(texts).splitlines()[-25:])

    def _ask(self, request: dict, each=None) -> int:
        number = next(self._numbers)
        if each is not None:
            self._listeners[number] = each
        with self._changed:
            self._port.sendall(json.dumps({"id": number, **request}).encode() + b"\n")
        return number

    def _await(self, number: int, deadline: float, what: str) -> dict:
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._process.poll() is not None, deadline)
            answer = self._answers.pop(number, None)
        if answer is None:
            raise self._broken(f"`{what}` did not end within {deadline:.0f} s")
        return answer

    def _listen(self) -> None:
        pending = b""
        while True:
            try:
                got = self._port.recv(1 << 16)
            except OSError:
                return
            if not got:
                return
            *lines, pending = (pending + got).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "line" in said and said["id"] != 0:
                    self._listeners[said["id"]](said["line"])
                    continue
                with self._changed:
                    if said["id"] == 0:
                        self._is_up = True
                    else:
                        self._answers[said["id"]] = said
                    self._changed.notify_all()

    def _must_live(self) -> None:
        if self._process.poll() is not None:
            raise self._broken("QEMU ended")

    def _broken(self, what: str) -> LabError:
        return LabError(f"the virtual machine {self.name}: {what}\n{self.log_tail()}")


class Stream:
    """A command at work in a machine."""

    def __init__(self, machine: Machine, argv: Sequence[str], each) -> None:
        self._machine = machine
        self._shown = " ".join(argv)
        self._number = machine._ask({"argv": list(argv), "deadline": COMMAND_DEADLINE_SECONDS, "lines": True}, each)

    def end(self, deadline: float) -> tuple[int, str]:
        """Waits for its end: its exit code, and what it said as an error."""
        answer = self._machine._await(self._number, deadline, self._shown)
        return answer["code"], answer["stderr"]
