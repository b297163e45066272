"""A shim as containerd sees it: a binary that is started in a bundle, and the Task API on its socket.

No containerd takes part. What comes back is kept as text that two shims can be compared by: ids and paths that
differ by nature are replaced by what they mean.
"""

import contextlib
import copy
import functools
import itertools
import json
import os
import select
import signal
import subprocess
import time
import unittest
from pathlib import Path
from urllib.parse import urlsplit

from lab.hosts import Host
from tests.ttrpc import Answer, Connection, EventSink, any_of, decode, encode, message, number, text

STOCK, OURS = "containerd-shim-runc-v2", "containerd-shim-godwit-v2"
NAMESPACE = "taskapi"
# All of a test's bundles lie here, and the root file system that they share.
DIRECTORY = "/run/lab/taskapi"
CONTAINERD = "/run/containerd/containerd.sock"
# A call that hangs is an error; the slowest one runs runC, on a busy machine.
CALL_SECONDS = 30.0
KILLED = 128 + signal.SIGKILL
# One process, so that the list of all is the same at any time.
FOREVER = ("sleep", "100000")
RUNC_OPTIONS = "containerd.runc.v1.Options"
STATUS = ("UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING")

_numbers = itertools.count(1)

# Per call: the numbers of its request's fields, and of its answer's.
CALLS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "Create": (
        {"id": 1, "bundle": 2, "rootfs": 3, "terminal": 4, "stdin": 5, "stdout": 6, "stderr": 7, "checkpoint": 8,
         "options": 10},
        {"pid": 1},
    ),
    "Start": ({"id": 1, "exec_id": 2}, {"pid": 1}),
    "State": (
        {"id": 1, "exec_id": 2},
        {"id": 1, "bundle": 2, "pid": 3, "status": 4, "stdin": 5, "stdout": 6, "stderr": 7, "terminal": 8,
         "exit_status": 9, "exited_at": 10, "exec_id": 11},
    ),
    "Delete": ({"id": 1, "exec_id": 2}, {"pid": 1, "exit_status": 2, "exited_at": 3}),
    "Pids": ({"id": 1}, {"processes": 1}),
    "Pause": ({"id": 1}, {}),
    "Resume": ({"id": 1}, {}),
    "Checkpoint": ({"id": 1, "path": 2, "options": 3}, {}),
    "Kill": ({"id": 1, "exec_id": 2, "signal": 3, "all": 4}, {}),
    "Exec": ({"id": 1, "exec_id": 2, "terminal": 3, "stdin": 4, "stdout": 5, "stderr": 6, "spec": 7}, {}),
    "ResizePty": ({"id": 1, "exec_id": 2, "width": 3, "height": 4}, {}),
    "CloseIO": ({"id": 1, "exec_id": 2, "stdin": 3}, {}),
    "Update": ({"id": 1, "resources": 2, "annotations": 3}, {}),
    "Wait": ({"id": 1, "exec_id": 2}, {"exit_status": 1, "exited_at": 2}),
    "Stats": ({"id": 1}, {"stats": 1}),
    "Connect": ({"id": 1}, {"shim_pid": 1, "task_pid": 2}),
    "Shutdown": ({"id": 1, "now": 2}, {}),
}  # fmt: skip
TEXTS = ("id", "bundle", "stdin", "stdout", "stderr", "exec_id")


def prepare(host: Host) -> None:
    """Makes the root file system that all bundles share, a busybox, unless it is there."""
    script = f"""
        mkdir -p {DIRECTORY}/rootfs/bin && cd {DIRECTORY}/rootfs && mkdir -p proc dev sys tmp etc run data &&
        for applet in $(busybox --list); do ln -sf busybox bin/$applet; done &&
        rm -f bin/busybox && cp /bin/busybox bin/ && cd .. && runc spec
    """
    if not host.path(f"{DIRECTORY}/config.json").exists():
        host.run("sh", "-ec", script)


@functools.cache
def _specification(init: int) -> dict:
    return json.loads(Path(f"/proc/{init}/root{DIRECTORY}/config.json").read_text())


def specification(host: Host, args: tuple[str, ...]) -> dict:
    """A configuration that runs `args`: runC's own example, without a terminal."""
    config = copy.deepcopy(_specification(host.init()))
    config["process"] |= {"terminal": False, "args": list(args)}
    config["root"] = {"path": "rootfs"}
    config["hostname"] = "t"
    return config


class Shim:
    """One shim and the container it is for; used as a context, which leaves nothing of either."""

    def __init__(
        self, host: Host, binary: str, *argv: str, version: int = 0, options: bytes = b"", task_id: str = "",
        one_cgroup_version: bool = False, **config
    ) -> None:  # fmt: skip
        self.host, self.binary, self._version = host, binary, version
        self.id = task_id or f"t{os.getpid()}-{next(_numbers)}"
        self.bundle = f"{DIRECTORY}/{self.id}"
        self.options = options
        self._one_cgroup_version = one_cgroup_version
        self.calls: list[str] = []
        self.pid = 0
        self.specification = specification(host, argv or FOREVER) | config
        self._closing = contextlib.ExitStack()

    # -- its life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> "Shim":
        with self._closing as stack:
            stack.callback(self.remove)
            self.place()
            self.address = self.start()
            self.pid = self.shim_pid()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def close(self) -> None:
        """Leaves nothing of a shim that was only placed."""
        self.remove()
        self._closing.close()

    def place(self) -> None:
        """Lays out the bundle, as containerd does before it starts a shim."""
        path = self.host.path(self.bundle)
        (path / "rootfs").mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(self.specification))
        os.mkfifo(path / "log")
        self._log = os.open(path / "log", os.O_RDONLY | os.O_NONBLOCK)
        self._closing.callback(os.close, self._log)
        # Unix sockets have short paths.
        self.sink = EventSink(str(self.host.path(f"{DIRECTORY}/{self.id}.ev")))
        self._closing.callback(self.sink.close)

    def action(self, *argv: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
        """Runs the shim's binary in the bundle with the flags that containerd gives, and `argv`."""
        variables = {
            "TTRPC_ADDRESS": f"{DIRECTORY}/{self.id}.ev", "GRPC_ADDRESS": CONTAINERD, "NAMESPACE": NAMESPACE,
            "MAX_SHIM_VERSION": "2", **environment,
        }  # fmt: skip
        flags = ("-namespace", NAMESPACE, "-id", self.id, "-address", CONTAINERD)
        # The shell stays, because a shim looks at its parent's OOM score, and must find that parent in its own namespace.
        script = 'cd "$0" && env "$@"; exit $?'
        if self._one_cgroup_version:
            script = f"umount /sys/fs/cgroup/unified 2>/dev/null; {script}"
        command = [*(("unshare", "--mount") if self._one_cgroup_version else ()), "sh", "-c", script, self.bundle,
                   *(f"{k}={v}" for k, v in variables.items()), self.binary, *flags, *argv]  # fmt: skip
        given = self.options if stdin is None else stdin
        return subprocess.run(self.host.command(command), input=given, capture_output=True, timeout=CALL_SECONDS)

    def start(self) -> str:
        """Starts the server; its socket's path."""
        done = self.action("start")
        if done.returncode != 0:
            raise AssertionError(f"start of {self.binary}: {done.stderr.decode()}")
        # containerd 1.7's answers with the bare address.
        bare = done.stdout.startswith(b"unix://")
        reply = {"protocol": "ttrpc", "version": 2, "address": done.stdout.decode()} if bare else json.loads(done.stdout)
        if reply["protocol"] != "ttrpc" or reply["version"] not in (2, 3):
            raise AssertionError(f"{self.binary} answered {reply}")
        self._version = self._version or reply["version"]
        return urlsplit(reply["address"]).path

    def shim_pid(self) -> int:
        """The server's pid in the host's numbering, by its own word."""
        with self.connection() as connection:
            answer = self._send(connection, "Connect", id=self.id)
        if answer.code != "OK":
            raise AssertionError(f"Connect of {self.binary}: {answer.code} {answer.words}")
        return number(answer.payload, 1)

    def kill_shim(self) -> None:
        """SIGKILL for the server, and only for it."""
        self.host.run("kill", "-9", str(self.pid))
        self.host.run("sh", "-c", f"while kill -0 {self.pid} 2>/dev/null; do sleep 0.02; done")

    def delete(self) -> dict[int, list]:
        """Runs `delete` as containerd does for a shim that has died; its answer."""
        done = self.action("-bundle", self.bundle, "delete")
        if done.returncode != 0:
            raise AssertionError(f"delete of {self.binary}: {done.stderr.decode()}")
        return decode(done.stdout)

    def remove(self) -> None:
        """Ends the server and removes what it has left, by its own delete."""
        if self.pid:
            self.host.run("kill", "-9", str(self.pid), check=False)
        self.action("-bundle", self.bundle, "delete")
        # What a shim should have unmounted may still be there, and must not be removed through it.
        self.host.run("umount", "--recursive", f"{self.bundle}/rootfs", check=False)
        self.host.run("rm", "-rf", "--one-file-system", self.bundle, f"{self.bundle}.ev")

    def log(self) -> str:
        """What the shim has logged so far."""
        try:
            return os.read(self._log, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return ""

    # -- calls ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connection(self):
        """A connection to the server."""
        opened = Connection(str(self.host.path(self.address)), CALL_SECONDS)
        try:
            yield opened
        finally:
            opened.close()

    def call(self, method: str, **fields: object) -> Answer:
        """Calls, for this container unless told, and keeps the answer for the comparison."""
        label = " ".join([method, *(f"{k}={_shown(v)}" for k, v in fields.items() if k not in ("spec", "resources"))])
        with self.connection() as connection:
            answer = self._send(connection, method, **{"id": self.id} | fields)
        self.note(f"{label} -> {self.shown(method, answer)}")
        self.answered = answer
        return answer

    def ok(self, method: str, **fields: object) -> Answer:
        """A call that must succeed."""
        answer = self.call(method, **fields)
        if answer.code != "OK":
            raise AssertionError(f"{self.binary}: {method} {fields}: {answer.code} {answer.words}\n{self.log()}")
        return answer

    def create(self, **fields: object) -> Answer:
        """Create, with the root file system mounted by the shim."""
        return self.ok("Create", **self._creation(fields))

    def try_create(self, **fields: object) -> Answer:
        """As `create`, and may fail."""
        return self.call("Create", **self._creation(fields))

    def _creation(self, fields: dict[str, object]) -> dict[str, object]:
        rootfs = {1: "bind", 2: f"{DIRECTORY}/rootfs", 4: ["rbind", "rw"]}
        return {"bundle": self.bundle, "rootfs": [rootfs], "options": self.options} | fields

    def run(self) -> int:
        """Create and Start; the init's pid."""
        self.create()
        return number(self.ok("Start").payload, 1)

    def streams(self, *names: str) -> "Streams":
        """Fifos in the bundle for standard streams, as containerd makes them."""
        return self._closing.enter_context(Streams(self, names))

    def exec(self, exec_id: str, *argv: str, **fields: object) -> Answer:
        """Exec of a process that runs `argv`."""
        process = self.specification["process"] | {"args": list(argv)}
        spec = any_of("types.containerd.io/opencontainers/runtime-spec/1/Process", json.dumps(process).encode())
        return self.call("Exec", **{"exec_id": exec_id, "spec": spec} | fields)

    def end(self, number_of: int = signal.SIGKILL) -> None:
        """Kills the init and waits for its end."""
        self.ok("Kill", signal=number_of)
        self.ok("Wait")

    def background(self, method: str, **fields: object) -> Connection:
        """Begins a call on a connection of its own, to be answered later."""
        opened = Connection(str(self.host.path(self.address)), CALL_SECONDS)
        self._closing.callback(opened.close)
        opened.begin(self.service, method, self._request(method, {"id": self.id} | fields))
        return opened

    def _send(self, connection: Connection, method: str, **fields: object) -> Answer:
        return connection.call(self.service, method, self._request(method, fields))

    @property
    def service(self) -> str:
        """The Task API's name in the version that is spoken."""
        return f"containerd.task.v{self._version}.Task"

    def _request(self, method: str, fields: dict[str, object]) -> bytes:
        return encode({CALLS[method][0][name]: value for name, value in fields.items()})

    # -- comparison ----------------------------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """Keeps a line for the comparison."""
        self.calls.append(line.replace(self.id, "ID").replace(self.binary, "SHIM"))

    def shown(self, method: str, answer: Answer) -> str:
        """An answer's essentials."""
        if answer.code != "OK":
            return answer.code
        shown = []
        for name, at in CALLS[method][1].items():
            if name in TEXTS:
                shown.append(f"{name}={text(answer.payload, at)}")
            elif name == "status":
                shown.append(f"{name}={STATUS[number(answer.payload, at)]}")
            elif name == "exited_at":
                shown.append(f"{name}={moment(message(answer.payload, at))}")
            elif name.endswith("pid"):
                shown.append(f"{name}={'some' if number(answer.payload, at) else 0}")
            elif name == "processes":
                shown.append(f"{name}={_processes(answer)}")
            elif name == "stats":
                shown.append(f"{name}={text(message(answer.payload, at) or {}, 1)}")
            else:
                shown.append(f"{name}={number(answer.payload, at)}")
        return " ".join(["OK", *shown])

    def events(self, until: str = "", n_times: int = 1) -> list[str]:
        """The events so far as text; waits until `until` has come that often."""
        ends_at = time.monotonic() + CALL_SECONDS
        while until and sum(topic == until for topic, _ in self.sink.events) < n_times:
            if time.monotonic() > ends_at:
                raise AssertionError(f"{self.binary}: no {until} among {self.sink.events}\n{self.log()}")
            time.sleep(0.02)
        return [self._event(topic, fields) for topic, fields in list(self.sink.events)]

    def _event(self, topic: str, fields: dict) -> str:
        if topic == "/tasks/exit":
            return f"{topic} {text(fields, 2)} status={number(fields, 4)} at={moment(message(fields, 5))}"
        if topic == "/tasks/delete":
            return f"{topic} status={number(fields, 3)} at={moment(message(fields, 4))}"
        return f"{topic} {text(fields, 2)}" if "exec" in topic else topic


class Streams:
    """The client's ends of a process's standard streams."""

    def __init__(self, shim: Shim, names: tuple[str, ...]) -> None:
        self.paths = {name: f"{shim.bundle}/{name}" for name in names}
        self._ends: dict[str, int] = {}
        self._read = b""
        for name, inside in self.paths.items():
            path = shim.host.path(inside)
            os.mkfifo(path)
            # Both ways, because a fifo cannot be opened for writing alone before it has a reader.
            self._ends[name] = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends.values():
            os.close(end)

    def write(self, data: bytes) -> None:
        """Sends to stdin."""
        os.write(self._ends["stdin"], data)

    def close_input(self) -> None:
        """Has no more to send."""
        os.close(self._ends.pop("stdin"))

    def read(self, name: str, until: bytes) -> bytes:
        """What an output has said, up to and with `until`."""
        ends_at = time.monotonic() + CALL_SECONDS
        while until not in self._read:
            if not select.select([self._ends[name]], [], [], max(0.0, ends_at - time.monotonic()))[0]:
                raise AssertionError(f"{name} did not say {until!r} but {self._read!r}")
            self._read += os.read(self._ends[name], 4096)
        said, _, self._read = self._read.partition(until)
        return said + until


def moment(time_stamp: dict | None) -> str:
    """What a time means: none, Go's zero, now, or some other."""
    if time_stamp is None:
        return "none"
    seconds = number(time_stamp, 1)
    return "zero" if seconds == -62135596800 else "now" if abs(time.time() - seconds) < 120 else str(seconds)


def _processes(answer: Answer) -> str:
    found = []
    for raw in answer.payload.get(1, []):
        process = _process(raw)
        found.append(f"({process})")
    return "".join(sorted(found))


def _process(raw: bytes) -> str:
    info = message(decode(raw), 2)
    return "" if info is None else f"{text(info, 1)} {text(decode(info[2][-1]), 1)}"


def _shown(value: object) -> str:
    return "..." if isinstance(value, (dict, list, bytes)) else str(value)


def runc_options(**fields: object) -> bytes:
    """Options of the stock type, packed as containerd sends them on stdin and in Create."""
    numbers = {
        "no_pivot_root": 1, "no_new_keyring": 2, "shim_cgroup": 3, "io_uid": 4, "io_gid": 5, "binary_name": 6,
        "root": 7, "systemd_cgroup": 9, "criu_image_path": 10, "criu_work_path": 11, "task_api_address": 12,
        "task_api_version": 13,
    }  # fmt: skip
    return encode(any_of(RUNC_OPTIONS, encode({numbers[name]: value for name, value in fields.items()})))


class ShimTest(unittest.TestCase):
    """A test that starts shims itself."""

    def setUp(self) -> None:
        self.ha = Host("ha")
        prepare(self.ha)

    def shim(self, binary: str, *argv: str, **config) -> Shim:
        """A shim that goes away with the test."""
        return self.enterContext(Shim(self.ha, binary, *argv, **config))

    def placed(self, binary: str, *argv: str, **config) -> Shim:
        """A shim whose bundle is there, and which is not started."""
        shim = Shim(self.ha, binary, *argv, **config)
        self.addCleanup(shim.close)
        shim.place()
        return shim
