"""Real programs: each is dumped while it works, restored, and goes on where it was.

A program is given a state that only its memory has, and connections that stay open. It is checkpointed twice: first it runs
on, then it stops and is restored; each time the same state is asked for on the same connections. Then it works further,
takes a new connection, and stops as it does without a checkpoint.
"""

import json
from collections.abc import Callable
from typing import TypeVar

from lab.commands import wait_until
from lab.hosts import Host
from tests.capabilities import why_no_sockets
from tests.checkpoints import CheckpointTest
from tests.containerd import shim_pid
from tests.support import SOON_SECONDS
from tests.wire import Http, Memcached, Postgres, Redis, Wire, until_connected

AnyWire = TypeVar("AnyWire", bound=Wire)
CAP_SYS_RESOURCE = 24
NO_MAPPED_V2 = "CRIU 4.2 cannot mount cgroup v2 in a user namespace"
# A Java compiler and then the program, beside a build on two cores.
JAVA_SECONDS = 60.0

# Threads that wait in each of the ways a program waits: a lock, a condition, a timer, a sleep, a socket.
THREADS = r"""
import json, os, signal, socket, threading, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(5))
word, lock, ticks = os.urandom(8).hex(), threading.Lock(), [0] * 20
given, orders, results = threading.Condition(), [], []
def tick(n):
    while True:
        with lock: ticks[n] += 1
        time.sleep(0.01 * (n + 1))
def toil():
    while True:
        with given:
            given.wait_for(lambda: orders)
            results.append(orders.pop() * 2)
            given.notify_all()
def periodic():
    print("tick", flush=True)
    threading.Timer(0.1, periodic).start()
def talk(one):
    n_asked = 0
    for line in one.makefile("rb"):
        n_asked += 1
        if line.startswith(b"work"):
            with given:
                orders.append(int(line.split()[1]))
                given.notify_all()
                given.wait_for(lambda: results)
                told = results.pop()
        else:
            with lock: told = {"word": word, "asked": n_asked, "ticks": list(ticks), "threads": threading.active_count()}
        one.sendall(json.dumps(told).encode() + b"\n")
def start(target, *args): threading.Thread(target=target, args=args, daemon=True).start()
for n in range(20): start(tick, n)
start(toil)
periodic()
listener = socket.create_server(("", 80))
while True: start(talk, listener.accept()[0])
"""
# Counts in a variable; a child counts as well and sends by a pipe.
LOOP = r"""
word=$(cat /proc/sys/kernel/random/uuid); n=0
trap 'echo "$word bye $n"; exit 6' TERM
mkfifo /pipe
(m=0; while :; do m=$((m+1)); echo $m; sleep 0.05; done) >/pipe &
exec 3</pipe 4>/deleted; rm /pipe /deleted
while read m <&3; do n=$((n+1)); echo "$word $n $m"; echo $n >&4; done
"""
# A thread for each connection, of the light kind; a scheduler; garbage for the collector; a hook at the end.
JAVA = r"""
import java.io.*; import java.net.*; import java.util.*; import java.util.concurrent.*; import java.util.concurrent.atomic.*;
public class Server {
    static final AtomicLong asked = new AtomicLong(), ticks = new AtomicLong();
    static final Map<String, String> kept = new ConcurrentHashMap<>();
    static volatile byte[][] garbage;
    static void talk(Socket socket) {
        try (var in = new BufferedReader(new InputStreamReader(socket.getInputStream())); var out = socket.getOutputStream()) {
            long own = 0;
            for (String line; (line = in.readLine()) != null;) {
                String[] words = line.split(" ");
                if (words.length == 2) kept.put(words[0], words[1]);
                out.write((++own + " " + asked.incrementAndGet() + " " + ticks.get() + " " + new TreeMap<>(kept) + "\n").getBytes());
            }
        } catch (IOException e) { System.out.println(e); }
    }
    public static void main(String[] args) throws Exception {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("bye " + asked)));
        Executors.newScheduledThreadPool(2).scheduleAtFixedRate(() -> {
            garbage = new byte[64][1 << 14]; ticks.incrementAndGet();
        }, 0, 10, TimeUnit.MILLISECONDS);
        var listener = new ServerSocket(80);
        while (true) { Socket one = listener.accept(); Thread.startVirtualThread(() -> talk(one)); }
    }
}
"""


class ProgramTest(CheckpointTest):
    """A program that is checkpointed twice and restored."""

    def setUp(self) -> None:
        super().setUp()
        self.wires: list[Wire] = []
        if why_not := why_no_sockets(self.ha):
            self.skipTest(why_not)

    def connect(self, kind: type[AnyWire], name: str, port: int, seconds: float = SOON_SECONDS) -> AnyWire:
        """A connection to a program that comes up or is up; it ends with the test."""
        made: list[AnyWire] = []
        address = self.address(name)

        def try_once() -> bool:
            made.extend(one for one in [until_connected(lambda: kind(self.ha.name, address, port))] if one)
            return bool(made)

        wait_until(f"{kind.__name__} at {address}:{port}", try_once, seconds)
        self.wires.append(made[0])
        return made[0]

    def tearDown(self) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Ends all connections."""
        while self.wires:
            self.wires.pop().close()

    def checkpoint_and_run_on(self, name: str) -> None:
        """A checkpoint that leaves the container running: what the host's file says counts for each."""
        pid = self.inspect(name, "{{.State.Pid}}")
        self.ha.write("/etc/godwit/shim.toml", "[checkpoint]\nleave-running = true\n")
        try:
            self.checkpoint(name, "before")
        finally:
            self.ha.path("/etc/godwit/shim.toml").unlink()
        self.assertEqual(("running", pid), (self.status(name), self.inspect(name, "{{.State.Pid}}")))

    def survive(self, name: str, goes_on: Callable[[], None], exit_code: int) -> None:
        """The program goes on after a checkpoint that leaves it running, and after one that does not; then it stops."""
        goes_on()
        self.checkpoint_and_run_on(name)
        goes_on()
        self.checkpoint(name)
        self.assertEqual("exited", self.status(name))
        self.restore(name)
        goes_on()
        self.assert_no_trace(name)
        self.disconnect()  # some wait for their clients before they end
        self.docker("stop", name)
        self.assertEqual(f"exited {exit_code}", self.inspect(name, "{{.State.Status}} {{.State.ExitCode}}"))


class Programs(ProgramTest):
    """Programs that are root in their containers."""

    def test_redis(self) -> None:
        name = self.start("redis:8")
        one, blocked, listener, queuing = (self.connect(Redis, name, 6379) for _ in range(4))
        run_id = next(line for line in str(one.ask("INFO", "server")).splitlines() if line.startswith("run_id:"))
        listener.ask("SUBSCRIBE", "news")
        self.assertEqual("OK", one.ask("SET", "timed", "x", "EX", "1000"))
        queuing.ask("MULTI")
        n_steps = 0

        def goes_on() -> None:
            nonlocal n_steps
            n_steps += 1
            self.assertEqual(n_steps, one.ask("INCR", "steps"))
            self.assertIn(run_id, str(one.ask("INFO", "server")))
            self.assertLess(900, int(str(one.ask("TTL", "timed"))))
            self.assertEqual("QUEUED", queuing.ask("INCR", "queued"))
            if n_steps > 1:  # it has waited in there since the last time
                fresh = self.connect(Redis, name, 6379)
                fresh.ask("RPUSH", "jobs", f"job{n_steps}")
                self.assertEqual(["jobs", f"job{n_steps}"], blocked.answer())
            blocked.tell("BLPOP", "jobs", "0")
            one.ask("PUBLISH", "news", f"number {n_steps}")
            self.assertEqual(["message", "news", f"number {n_steps}"], listener.answer())
            self.assertEqual("OK", one.ask("SAVE"))
            if n_steps == 3:
                self.assertEqual([1, 2, 3], queuing.ask("EXEC"))

        self.survive(name, goes_on, exit_code=0)
        self.assertIn("User requested shutdown", self.logs(name))

    def test_java(self) -> None:
        self.ha.write("/run/java/Server.java", JAVA)
        self.addCleanup(self.ha.run, "rm", "-r", "/run/java")
        name = self.start(self.image("java"), "sh", "-c", "javac -21 -d /tmp /source/Server.java && exec java -cp /tmp Server",
                          options=("--volume", "/run/java:/source:ro"))  # fmt: skip
        held = self.connect(Wire, name, 80, JAVA_SECONDS)
        n_own = n_asked = n_ticks = 0

        def goes_on() -> None:
            nonlocal n_own, n_asked, n_ticks
            fresh = self.connect(Wire, name, 80)
            self.assertRegex(fresh.ask(f"key{n_own} fresh"), rf"^1 {n_asked + 1} ")
            n_own, n_asked = n_own + 1, n_asked + 2
            told = held.ask("look")
            own, asked, ticks, kept = told.split(maxsplit=3)
            self.assertEqual((n_own, n_asked), (int(own), int(asked)))
            self.assertEqual("{" + ", ".join(f"key{n}=fresh" for n in range(n_own)) + "}", kept)
            self.assertGreater(int(ticks), n_ticks)
            n_ticks = int(ticks)

        self.survive(name, goes_on, exit_code=143)
        self.assertIn(f"bye {n_asked}", self.logs(name))

    def test_a_go_program(self) -> None:
        name = self.start(self.image("go"))
        held = self.connect(Http, name, 80)
        n_steps = 0

        def goes_on() -> None:
            nonlocal n_steps
            n_steps += 1
            fresh = self.connect(Http, name, 80)
            self.assertEqual(200, fresh.put(f"/metrics/job/job{n_steps}", f"kept {n_steps}\n")[0])
            _, page = held.get("/metrics")
            for n in range(1, n_steps + 1):
                self.assertIn(f'kept{{instance="",job="job{n}"}} {n}\n', page)
            self.assertRegex(page, rf'pushgateway_http_requests_total{{code="200",handler="push",method="put"}} {n_steps}\n')
            self.assertIn("go_goroutines", page)

        self.survive(name, goes_on, exit_code=0)

    def test_python_with_threads(self) -> None:
        name = self.start("python:3", "python3", "-c", THREADS)
        held, other = (self.connect(Wire, name, 80) for _ in range(2))
        first = json.loads(held.ask("state"))
        n_asked = 1

        def goes_on() -> None:
            nonlocal n_asked
            now = json.loads(held.ask("state"))
            n_asked += 1
            self.assertEqual((first["word"], n_asked), (now["word"], now["asked"]))
            self.assertEqual(84, json.loads(other.ask("work 42")))
            self.assertLess(22, now["threads"])

            def all_tick() -> bool:
                later = json.loads(self.connect(Wire, name, 80).ask("state"))
                return all(after > before for before, after in zip(now["ticks"], later["ticks"], strict=True))

            self.soon("all threads to go on", all_tick)
            n_lines = len(self.logs(name).split())
            self.soon("the timer to go on", lambda: len(self.logs(name).split()) > n_lines)

        self.survive(name, goes_on, exit_code=5)

    def test_a_shell_loop(self) -> None:
        name = self.start("busybox", "sh", "-c", LOOP)
        self.soon("its log", lambda: "\n" in self.logs(name))
        word = self.logs(name).split()[0]
        n_before = 0

        def goes_on() -> None:
            nonlocal n_before
            self.soon("its log to go on", lambda: self.logs(name).count("\n") > n_before + 3)
            lines = self.logs(name).splitlines()
            self.assertEqual([f"{word} {n} {n}" for n in range(1, len(lines) + 1)], lines)
            n_before = len(lines)

        self.survive(name, goes_on, exit_code=6)
        self.assertRegex(self.logs(name).splitlines()[-1], f"{word} bye [0-9]+")


class MappedUsers(ProgramTest):
    """Programs whose processes have users of their own, under a daemon that maps users (`--userns-remap`).

    CRIU reads the limits of another user's processes only with CAP_SYS_RESOURCE. Over the users of a namespace it has that
    everywhere, over the host's own only where the machine grants it.
    """

    CONFIGURATION = "/etc/docker/daemon.json"

    @classmethod
    def setUpClass(cls) -> None:
        # Not ha: a daemon that maps users has other images.
        cls.host = Host("hb")
        cls.before = cls.host.path(cls.CONFIGURATION).read_text()
        for file in ("/etc/subuid", "/etc/subgid"):
            cls.host.write(file, "daemon:100000:65536\n")
        cls.configure(json.dumps({**json.loads(cls.before), "userns-remap": "daemon"}))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.configure(cls.before)

    @classmethod
    def configure(cls, text: str) -> None:
        """Restarts the daemon with another configuration."""
        cls.host.write(cls.CONFIGURATION, text)
        cls.host.restart_daemon("dockerd")

    def setUp(self) -> None:
        super().setUp()
        self.ha = self.host
        self.is_v2 = self.ha.state()["cgroups"] == "v2"

    def survive(self, name: str, goes_on: Callable[[], None], exit_code: int) -> None:
        if self.is_v2:
            self.skipTest(NO_MAPPED_V2)
        super().survive(name, goes_on, exit_code)

    def test_on_cgroup_v2_the_dump_is_refused_and_says_why(self) -> None:
        if not self.is_v2:
            self.skipTest("cgroup v1: dumped and restored, as the other tests show")
        for options in ((), ("--annotation", "io.godwit.checkpoint.leave-running=true")):
            name = self.start(self.image("memcached"), options=options)
            held = self.connect(Memcached, name, 11211)
            self.assertEqual("STORED", held.set("kept", "x"))
            error = self.failed_checkpoint(name)
            self.assertIn("CRIU cannot mount cgroup v2 in a user namespace", error)
            self.assertIn("does not map users", error)
            self.assertEqual(("x", "running"), (held.get("kept"), self.status(name)))
            self.assert_no_trace(name)
            self.disconnect()
            self.docker("rm", "--force", name)

    def test_a_killed_shim_leaves_the_image_closed(self) -> None:
        if self.is_v2:
            self.skipTest(NO_MAPPED_V2)
        pause = self.pause()
        name = self.start(self.image("busybox"), "sh", "-c", "while :; do sleep 1; done", options=pause.OPTIONS)
        self.checkpoint(name)
        container_id = self.inspect(name, "{{.Id}}")
        pause.at("pre-restore")
        started = self.in_background(lambda: self.restore(name, check=False))
        self.soon("the restore", pause.reached)
        record = json.loads(self.ha.run("sh", "-c", "cat /run/godwit/tasks/*/lent.json").stdout)
        image = record["opened"]["directory"]
        owner = ("sh", "-c", f"stat -c '%a %g' {image} || echo gone")
        self.assertEqual("710 100000\n", self.ha.run(*owner).stdout)
        self.ha.run("kill", "-9", str(shim_pid(self.ha, container_id)))
        self.soon("its group to be as before", lambda: self.ha.run(*owner).stdout in ("700 0\n", "gone\n"))
        pause.over()
        self.assertNotEqual(0, started.result().returncode)

    def test_postgresql(self) -> None:
        name = self.start(self.image("postgres"))
        one, waiter, other = (self.connect(Postgres, name, 5432) for _ in range(3))
        one.ask("CREATE TABLE account (n int); INSERT INTO account VALUES (0)")
        one.ask("CREATE TEMPORARY TABLE own (n int)")
        one.ask("PREPARE steps AS SELECT count(*) FROM own")
        one.ask("BEGIN")
        other.ask("LISTEN news")
        one.ask("UPDATE account SET n = n + 100")
        waiter.tell("UPDATE account SET n = n + 1 RETURNING n")  # waits for the transaction that is open
        processes = [wire.ask("SELECT pg_backend_pid()") for wire in (one, other)]
        n_steps = 0

        def goes_on() -> None:
            nonlocal n_steps
            n_steps += 1
            one.ask(f"INSERT INTO own VALUES ({n_steps})")
            self.assertEqual([str(n_steps)], one.ask("EXECUTE steps"))
            self.assertEqual(processes, [wire.ask("SELECT pg_backend_pid()") for wire in (one, other)])
            self.assertEqual(["0"], other.ask("SELECT n FROM account"), "the transaction is not over")
            fresh = self.connect(Postgres, name, 5432)
            self.assertEqual(["1"], fresh.ask("SELECT count(*) FROM pg_locks WHERE NOT granted"))
            if n_steps == 3:
                one.ask("COMMIT")
                self.assertEqual(["101"], waiter.answer())
                self.assertEqual(["101"], fresh.ask("SELECT n FROM account"))
                fresh.ask("CHECKPOINT")
                fresh.ask("VACUUM account")

        self.survive(name, goes_on, exit_code=0)
        self.assertIn("database system is shut down", self.logs(name))

    def test_nginx(self) -> None:
        name = self.start(self.image("nginx"))
        held = self.connect(Http, name, 80)
        # Of this one only a part has been sent.
        partial = self.connect(Http, name, 80)
        n_requests = 0

        def goes_on() -> None:
            nonlocal n_requests
            if n_requests:
                partial.send(b"st: x\r\n\r\n")
                self.assertEqual((200, "nginx\n"), partial.response())
                n_requests += 1
            partial.send(b"GET / HTTP/1.1\r\nHo")
            fresh = self.connect(Http, name, 80)
            self.assertEqual((200, "nginx\n"), fresh.get())
            status, page = held.get("/status")
            n_requests += 2
            # A request counts from its first byte on, and one is under way.
            self.assertIn(n_requests - int(page.splitlines()[2].split()[2]), (0, -1), page)
            self.assertEqual(200, status)

        self.survive(name, goes_on, exit_code=0)

    def test_nginx_takes_a_new_configuration_after_a_restore(self) -> None:
        if self.is_v2:
            self.skipTest(NO_MAPPED_V2)
        name = self.start(self.image("nginx"))
        held = self.connect(Http, name, 80)
        self.assertEqual((200, "nginx\n"), held.get())
        self.checkpoint(name)
        self.restore(name)
        workers = self.docker("top", name, "-o", "pid,cmd").stdout
        self.docker("kill", "--signal", "HUP", name)
        self.soon("new workers", lambda: self.docker("top", name, "-o", "pid,cmd").stdout != workers)
        self.assertEqual((200, "nginx\n"), self.connect(Http, name, 80).get())

    def test_memcached(self) -> None:
        name = self.start(self.image("memcached"))
        held, other = (self.connect(Memcached, name, 11211) for _ in range(2))
        self.assertEqual("STORED", held.set("steps", "0"))
        self.assertEqual("STORED", held.set("timed", "x", 1000))
        n_steps = 0

        def goes_on() -> None:
            nonlocal n_steps
            n_steps += 1
            self.assertEqual(str(n_steps), held.ask("incr steps 1"))
            self.assertEqual(("x", None), (other.get("timed"), other.get("nothing")))
            fresh = self.connect(Memcached, name, 11211)
            self.assertEqual("STORED", fresh.set(f"more{n_steps}", "y" * 100_000))
            told = held.stats()
            self.assertEqual((2 + n_steps, n_steps), (int(told["cmd_set"]), int(told["incr_hits"])))

        self.survive(name, goes_on, exit_code=0)


class Refused(ProgramTest):
    """What cannot be dumped, and what the operator is told to do about it."""

    def test_a_database_that_uses_io_uring(self) -> None:
        name = self.start(self.image("postgres"), "-c", "io_method=io_uring",
                          options=("--security-opt", "seccomp=unconfined"))  # fmt: skip
        one = self.connect(Postgres, name, 5432)
        error = self.failed_checkpoint(name)
        self.assertIn("io_uring", error)
        self.assertIn("switch it off", error)
        self.assertEqual(["2"], one.ask("SELECT 1 + 1"))
        self.assert_no_trace(name)

    def test_processes_of_other_users_without_the_capability(self) -> None:
        effective = self.ha.run("sed", "-n", "s/^CapEff:.//p", "/proc/self/status").stdout
        if int(effective, 16) >> CAP_SYS_RESOURCE & 1:
            self.skipTest("this machine grants CAP_SYS_RESOURCE")
        name = self.start(self.image("memcached"))
        held = self.connect(Memcached, name, 11211)
        self.assertEqual("STORED", held.set("kept", "x"))
        error = self.failed_checkpoint(name)
        self.assertIn("CAP_SYS_RESOURCE", error)
        self.assertEqual("x", held.get("kept"))
        self.assert_no_trace(name)
