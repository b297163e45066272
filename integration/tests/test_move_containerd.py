"""Moves between plain containerd hosts, of containers that `ctr run` has made."""

import json
import subprocess
import time

from lab.commands import wait_until
from lab.hosts import Host
from lab.moves import Move, holdings, names
from tests.moving import MoveTest
from tests.support import Terminal

BUSYBOX = "docker.io/library/busybox:latest"
REDIS = "docker.io/library/redis:8"
# Writes what only its memory holds, a word of its own and how far it has counted, into its root.
COUNTER = ("sh", "-c", 'word=$(cat /proc/sys/kernel/random/uuid); n=0; '
           'while :; do n=$((n+1)); echo "$word $n" >/next; mv /next /count; sleep 0.05; done')  # fmt: skip
SHARED = "/srv/shared"
# CRIU takes so long on the destination that a fault can strike meanwhile.
SLOW_RESTORE = 'case "$*" in swrk*) sleep 3;; esac'
RESTARTS = "containerd.io/restart.status=running"
# The same with memory that follows a container in mode post, for so long over this link that a fault can strike meanwhile.
HEAVY_BYTES = 24 << 20
SLOW_MEGABITS = 80
HEAVY_COUNTER = ("sh", "-c", f"ballast=$(head -c {HEAVY_BYTES} /dev/urandom | base64); {COUNTER[-1]}")
# containerd's restart monitor looks every ten seconds.
MONITOR_SECONDS = 25.0


class CtrMoveTest(MoveTest):
    """A test that moves containers of containerd's namespace `default`, or another."""

    def setUp(self) -> None:
        super().setUp()
        self.needs_moves()
        for host in (self.ha, self.hb):
            if host.state()["cgroups"] == "v2" and "cpu" not in host.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout:
                self.skipTest("ctr asks for a share of the cpu, and this machine's cgroup v2 has no cpu controller")
        if self.runtime != "io.containerd.godwit.v2":
            self.skipTest("under the stock runtime's name a move is refused")

    def ctr(self, *argv: str, host: Host | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs containerd's command line on a host (ha unless told)."""
        return (host or self.ha).run("ctr", *argv, check=check)

    def load(self, image: str, host: Host | None = None, namespace: str = "default") -> None:
        """Gives containerd one of Docker's images."""
        tag = image.removeprefix("docker.io/library/")
        self.image(tag.split(":")[0], host)
        (host or self.ha).run("sh", "-c", f"docker save {tag} | ctr -n {namespace} images import -")

    def new_container(self, namespace: str = "default") -> str:
        """A fresh id, which is free again on both hosts after the test."""
        name = self.new_name()
        for host in (self.ha, self.hb):
            self.addCleanup(self.ctr, "-n", namespace, "snapshots", "rm", name, host=host, check=False)
            self.addCleanup(self.ctr, "-n", namespace, "container", "rm", name, host=host, check=False)
            self.addCleanup(self.ctr, "-n", namespace, "task", "rm", "--force", name, host=host, check=False)
        return name

    def run_ctr(self, *command: str, options: tuple[str, ...] = (), image: str = BUSYBOX, namespace: str = "default",
                runtime: str | None = None) -> str:  # fmt: skip
        """Starts a container on ha."""
        self.load(image, namespace=namespace)
        name = self.new_container(namespace)
        self.ctr("-n", namespace, "run", "--detach", "--runtime", runtime or self.runtime, *options, image, name, *command)
        return name

    def states(self, host: Host, namespace: str = "default") -> dict[str, str]:
        """Whether containers have a task that runs, by their ids."""
        tasks = [line.split() for line in self.ctr("-n", namespace, "task", "ls", host=host).stdout.splitlines()[1:]]
        running = {task[0]: task[2].lower() for task in tasks}
        names = self.ctr("-n", namespace, "container", "ls", "--quiet", host=host).stdout.split()
        return {name: running.get(name, "none") for name in names}

    def labels(self, name: str, host: Host) -> dict[str, str]:
        """A container's labels."""
        return json.loads(self.ctr("container", "info", name, host=host).stdout)["Labels"]

    def spec(self, name: str, host: Host) -> dict:
        """All of a container's record but its times."""
        record = json.loads(self.ctr("container", "info", name, host=host).stdout)
        return {key: value for key, value in record.items() if key not in ("CreatedAt", "UpdatedAt")}

    def inside(self, name: str, *argv: str, host: Host, namespace: str = "default", check: bool = True) -> str:
        """What a command says in a container."""
        done = self.ctr("-n", namespace, "task", "exec", "--exec-id", "x", name, *argv, host=host, check=check)
        return done.stdout.strip()

    def count(self, name: str, host: Host, namespace: str = "default") -> tuple[str, int]:
        """The counter's word, and how far it is."""
        counts: list[str] = []

        def read() -> bool:
            counts[:] = self.inside(name, "cat", "/count", host=host, namespace=namespace, check=False).split()
            return len(counts) == 2

        self.soon("the counter's word", read)
        return counts[0], int(counts[1])

    def goes_on_counting(self, name: str, since: tuple[str, int], host: Host, namespace: str = "default") -> None:
        """The same process counts on."""
        word, n = self.count(name, host, namespace)
        self.assertEqual(since[0], word, "it was started afresh")
        self.assertGreaterEqual(n, since[1])
        self.soon("it to count on", lambda: self.count(name, host, namespace)[1] > n)

    def ctr_move(self, name: str, *options: str, source: Host | None = None, target: Host | None = None) -> Move:
        """A move, whatever its end."""
        return Move(source or self.ha, name, (target or self.hb).name, options=options).end()

    def moved(self, name: str, *options: str, source: Host | None = None, target: Host | None = None) -> Move:
        """A move that must succeed and leave nothing behind."""
        source, target = source or self.ha, target or self.hb
        move = self.ctr_move(name, *options, source=source, target=target)
        self.assertEqual(0, move.code, move.said)
        self.assertEqual([], move.events[-1]["report"]["remarks"])
        self.no_trace(name.split("/")[-1], source)
        return move

    def no_trace(self, name: str, host: Host) -> None:
        """Soon a host has nothing of a container, nor of a move."""

        def traces() -> list[str]:
            found = [f"container in {space}" for space in ("default", "birds") if name in self.states(host, space)]
            found += [line for line in self.ctr("snapshots", "ls", host=host).stdout.splitlines() if line.split()[0] == name]
            found += [line for line in self.ctr("leases", "ls", host=host).stdout.splitlines() if "godwit" in line]
            found += [entry for entry in names(host, "/run/containerd/fifo") if entry.endswith(f"-{name}")]
            found += names(host, "/run/godwit/tickets/default")
            # Which tasks may be there is told by Docker's containers, and these are not.
            return found + [f"{key}: {value}" for key, value in holdings(host).items() if key != "tasks"]

        try:
            self.soon("no trace of it", lambda: not traces())
        except Exception:
            self.fail(f"{host.name} still has {traces()}")


class Everything(CtrMoveTest):
    def test_a_counter_moves_to_and_fro_with_its_record_and_files(self) -> None:
        # Other tests have brought it, under its name or, where that means hb's own image, with its digest behind it.
        self.hb.run("sh", "-c", f"ctr images ls -q | grep -F {BUSYBOX} | xargs -r ctr images rm --sync")
        name = self.run_ctr(*COUNTER, options=("--label", "team=birds", "--env", "COLOR=grün"))
        self.inside(name, "sh", "-c", "echo kept >/note; rm /usr/bin/vi /bin/vi; mkdir -p /etc/new", host=self.ha)
        source, target = self.ha, self.hb
        for number in range(3):
            record, before = self.spec(name, source), self.count(name, source)
            move = self.moved(name, "--engine", "containerd", source=source, target=target)
            with self.subTest(move=number):
                self.assertEqual("running", self.states(target)[name])
                self.goes_on_counting(name, before, target)
                self.assertEqual(record, self.spec(name, target))
                self.assertEqual("kept", self.inside(name, "cat", "/note", host=target))
                self.assertEqual("", self.inside(name, "sh", "-c", "ls /bin/vi 2>/dev/null; true", host=target))
                self.assertEqual(number == 0, move.events[-1]["report"]["bytes"]["layers"] > 0, "layers go only once")
            source, target = target, source
        # It is a container like any other: it can be ended, and started again from its snapshot.
        self.ctr("task", "kill", "--signal", "KILL", name, host=self.hb)
        self.soon("its end", lambda: self.states(self.hb)[name] == "stopped")
        self.ctr("task", "rm", name, host=self.hb)
        self.ctr("task", "start", "--detach", name, host=self.hb)
        self.assertNotEqual(before[0], self.count(name, self.hb)[0])

    def test_a_redis_behind_a_socket_on_a_bind_mount_keeps_what_it_holds(self) -> None:
        for host in (self.ha, self.hb):
            host.run("mkdir", "-p", SHARED)
            self.addCleanup(host.run, "rm", "-rf", SHARED)
        name = self.run_ctr(
            "redis-server", "--port", "0", "--unixsocket", "/data/redis.sock", "--save", "",
            options=("--mount", f"type=bind,src={SHARED},dst=/data,options=rbind:rw"), image=REDIS,
        )  # fmt: skip
        redis = ("redis-cli", "-s", f"{SHARED}/redis.sock")
        self.soon("Redis", lambda: "PONG" in self.ha.run(*redis, "PING", check=False).stdout)
        self.ha.run(*redis, "SET", "bird", "godwit")
        run_id = self.ha.run("sh", "-c", f"{' '.join(redis)} INFO server | grep run_id").stdout
        self.moved(name)  # auto: Docker does not know it
        self.assertEqual("godwit", self.hb.run(*redis, "GET", "bird").stdout.strip())
        self.assertEqual(run_id, self.hb.run("sh", "-c", f"{' '.join(redis)} INFO server | grep run_id").stdout)

    def test_a_terminal_and_a_log_file_go_on_at_the_new_host(self) -> None:
        name, log = self.new_container(), "/var/log/bird.log"
        for host in (self.ha, self.hb):
            self.addCleanup(host.run, "rm", "-f", log)
        self.load(BUSYBOX)
        script = "n=0; while :; do n=$((n+1)); echo said-$n; sleep 0.1; done"
        run_detached = ("ctr", "run", "--detach", "--runtime", self.runtime)
        self.ha.run(*run_detached, "--log-uri", f"file://{log}", BUSYBOX, name, "sh", "-c", script)
        with_terminal = self.new_container()
        with Terminal(self.ha, *run_detached, "--tty", BUSYBOX, with_terminal, *COUNTER) as run:
            self.assertEqual(0, run.exit_code(), run.output)
        self.soon("its log", lambda: "said-3" in self.ha.path(log).read_text())
        self.moved(name)
        said = self.ha.path(log).read_text().split()
        self.soon("its log to go on", lambda: self.hb.path(log).exists() and self.hb.path(log).read_text().count("said-") > 3)
        self.assertEqual(f"said-{len(said) + 1}", self.hb.path(log).read_text().split()[0], "nothing is lost or said twice")
        before = self.count(with_terminal, self.ha)
        self.moved(with_terminal)
        self.goes_on_counting(with_terminal, before, self.hb)
        self.assertIn("/dev/pts/0", self.inside(with_terminal, "readlink", "/proc/1/fd/1", host=self.hb))

    def test_hosts_need_no_docker(self) -> None:
        name = self.run_ctr(*COUNTER)
        before = self.count(name, self.ha)

        def without_docker(text: str) -> str:
            return f'docker_socket = "/nonexistent/docker.sock"\n{text}'

        with self.agent_file(self.ha, "/etc/godwit/agent.toml", without_docker):
            with self.agent_file(self.hb, "/etc/godwit/agent.toml", without_docker):
                move = self.ctr_move("nobody")
                self.assertEqual(1, move.code, move.said)
                self.assertIn("no such container: nobody (docker does not answer", move.stderr)
                self.moved(name)
        self.goes_on_counting(name, before, self.hb)

    def test_another_namespace_is_chosen_by_option_or_name(self) -> None:
        name = self.run_ctr(*COUNTER, namespace="birds", options=("--null-io",))
        move = self.ctr_move(name)
        self.assertEqual(1, move.code, move.said)
        self.assertIn(f"birds/{name}", move.stderr)
        before = self.count(name, self.ha, "birds")
        self.moved(name, "--namespace", "birds")
        self.goes_on_counting(name, before, self.hb, "birds")
        self.moved(f"birds/{name}", source=self.hb, target=self.ha)
        self.goes_on_counting(name, before, self.ha, "birds")

    def test_what_restarts_it_does_so_at_its_new_host_and_only_there(self) -> None:
        name = self.run_ctr(*COUNTER, options=("--label", RESTARTS))
        before = self.count(name, self.ha)
        self.moved(name)
        self.goes_on_counting(name, before, self.hb)
        self.assertEqual("running", self.labels(name, self.hb)["containerd.io/restart.status"])
        self.ctr("task", "kill", "--signal", "KILL", name, host=self.hb)
        wait_until("the monitor to start it", lambda: self.states(self.hb).get(name) == "running", MONITOR_SECONDS)
        self.assertNotIn(name, self.states(self.ha))


class Refusals(CtrMoveTest):
    def refused(self, name: str, *said: str, options: tuple[str, ...] = ("--engine", "containerd")) -> None:
        """Nothing was touched, and why is said."""
        state = self.states(self.ha)[name]
        elsewhere = self.states(self.hb)
        move = self.ctr_move(name, *options)
        self.assertEqual(4, move.code, move.said)
        for words in said:
            self.assertIn(words, move.message)
        self.assertEqual(state, self.states(self.ha)[name])
        self.assertEqual(elsewhere, self.states(self.hb))

    def test_what_would_stay_behind_is_refused_with_every_reason(self) -> None:
        self.ha.run("mkdir", "-p", "/srv/only-here")
        self.addCleanup(self.ha.run, "rm", "-rf", "/srv/only-here")
        name = self.run_ctr(
            *COUNTER, options=("--net-host", "--mount", "type=bind,src=/srv/only-here,dst=/here,options=rbind:ro",
                               "--device", "/dev/null"),
        )  # fmt: skip
        self.refused(name, "without --net-host", "/srv/only-here does not exist", "/dev/null")

    def test_an_id_that_is_taken_is_refused(self) -> None:
        name = self.run_ctr(*COUNTER)
        self.load(BUSYBOX, self.hb)
        self.ctr("container", "create", BUSYBOX, name, host=self.hb)
        before = self.count(name, self.ha)
        self.refused(name, f"hb: a container {name} is there already in namespace default", f"a snapshot {name} is there")
        self.goes_on_counting(name, before, self.ha)

    def test_another_runtime_and_a_container_that_does_not_run_are_refused(self) -> None:
        name = self.run_ctr(*COUNTER, runtime="io.containerd.runc.v2")
        self.refused(name, "not under Godwit")
        self.ctr("task", "rm", "--force", name)
        self.refused(name, "is not running")

    def test_an_engine_does_not_know_what_is_the_others(self) -> None:
        name = self.run_ctr(*COUNTER)
        move = self.ctr_move(name, "--engine", "docker")
        self.assertEqual(1, move.code, move.said)
        self.assertIn("no such container", move.stderr)
        of_docker = self.start("busybox", "sh", "-c", "while :; do sleep 1; done")
        for options in (("--engine", "containerd"), ("--namespace", "moby")):
            move = self.ctr_move(self.inspect(of_docker, "{{.Id}}"), *options)
            self.assertEqual(1, move.code, move.said)
        self.assertEqual("running", self.containers(self.ha)[of_docker])


class Faults(CtrMoveTest):
    def test_the_destinations_agent_is_killed_before_the_commit(self) -> None:
        name = self.run_ctr(*COUNTER, options=("--label", RESTARTS))
        labels = self.labels(name, self.ha)
        lift = self.criu_that(SLOW_RESTORE)
        before = self.count(name, self.ha)
        move = Move(self.ha, name, "hb", options=())
        move.until("restore")
        self.kill_agent(self.hb)
        self.assertEqual(1, move.end().code, move.said)
        self.assertIn("restore failed on ha", move.message)
        self.goes_on_counting(name, before, self.ha)
        self.assertEqual(labels, self.labels(name, self.ha))
        lift()
        self.start_agent(self.hb)
        self.no_trace(name, self.hb)
        self.moved(name)
        self.goes_on_counting(name, before, self.hb)

    def test_a_restore_that_fails_leaves_it_where_it_was(self) -> None:
        name = self.run_ctr(*COUNTER)
        lift = self.criu_that('case "$*" in swrk*) echo no >&2; exit 1;; esac')
        before = self.count(name, self.ha)
        move = self.ctr_move(name)
        self.assertEqual(1, move.code, move.said)
        self.assertIn("restore failed on hb", move.message)
        lift()
        self.goes_on_counting(name, before, self.ha)
        self.no_trace(name, self.hb)

    def test_the_sources_agent_is_killed_while_it_is_frozen_and_the_restart_label_comes_back(self) -> None:
        name = self.run_ctr(*COUNTER, options=("--label", RESTARTS))
        labels = self.labels(name, self.ha)
        self.criu_that(SLOW_RESTORE)
        before = self.count(name, self.ha)
        move = Move(self.ha, name, "hb")
        move.until("restore")
        self.assertNotIn("containerd.io/restart.status", self.labels(name, self.ha))
        self.kill_agent(self.ha)
        self.assertEqual(1, move.end().code, move.said)
        self.start_agent(self.ha)
        self.goes_on_counting(name, before, self.ha)
        self.no_trace(name, self.hb)
        self.soon("its label", lambda: self.labels(name, self.ha) == labels)

    def test_a_destination_that_dies_with_the_commit_runs_it_when_it_is_back(self) -> None:
        name = self.run_ctr(*COUNTER, options=("--label", RESTARTS))
        before = self.count(name, self.ha)
        held = self.hb.path("/run/godwit")
        # Its memory in the freeze: a restore that needs pages of a source that stands still would never be held.
        move = Move(self.ha, name, "hb", options=("--mode", "stop"))
        move.until("restore")
        # The source's agent stands still until the destination's has said that it is ready and has died.
        self.ha.run("kill", "-STOP", str(self.ha.daemon_pid("agent")))
        self.soon("the restore to be held", lambda: any(entry.name == "hold.json" for entry in held.glob("tasks/*/*")))
        time.sleep(1)
        self.kill_agent(self.hb)
        self.ha.run("kill", "-CONT", str(self.ha.daemon_pid("agent")))
        self.assertEqual(3, move.end().code, move.said)
        self.assertNotEqual("running", self.states(self.ha)[name])
        self.start_agent(self.hb)
        self.goes_on_counting(name, before, self.hb)
        self.no_trace(name, self.ha)
        self.soon("its label", lambda: "containerd.io/restart.status" in self.labels(name, self.hb))


class Recover(CtrMoveTest):
    """What only a human can decide; whatever he decides, there is one copy. Each strikes while memory follows."""

    def setUp(self) -> None:
        super().setUp()
        self.name = self.run_ctr(*HEAVY_COUNTER, options=("--label", RESTARTS))
        self.before = self.count(self.name, self.ha)
        self.slow_link(SLOW_MEGABITS)
        self.begun = Move(self.ha, self.name, "hb", options=("--mode", "post"))
        self.begun.until("drain")
        self.migration = self.begun.events[0]["migration"]

    def recover(self, host: Host, *choice: str, code: int = 0) -> str:
        """What the command says."""
        done = host.run("godwit", "migrations", "recover", self.migration, *choice, check=False)
        self.assertEqual(code, done.returncode, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def is_broken(self, host: Host) -> bool:
        """Whether its agent waits for a human."""
        listed = json.loads(host.run("godwit", "migrations", "--json").stdout)
        return any((view["migration"], view["state"]) == (self.migration, "broken") for view in listed)

    def runs_afresh(self, host: Host, other: Host) -> None:
        """One copy runs, without its memory, its engine minds it as before, and nothing of the move is left."""
        self.soon("it to run", lambda: self.states(host).get(self.name) == "running")
        self.no_trace(self.name, other)
        word, n = self.count(self.name, host)
        self.assertNotEqual(self.before[0], word, "its memory was lost")
        self.goes_on_counting(self.name, (word, n), host)
        self.assertEqual("running", self.labels(self.name, host)["containerd.io/restart.status"])
        self.soon("nothing to be left", lambda: not {key for key in holdings(host) if key != "tasks"})

    def test_a_destination_gives_up_whose_source_is_away(self) -> None:
        self.kill_agent(self.ha)
        self.assertEqual(3, self.begun.end().code, self.begun.said)
        self.assertIn("--give-up", self.recover(self.hb))
        self.assertIn("does not help", self.recover(self.hb, "--run-here", code=1))
        self.recover(self.hb, "--give-up")
        self.soon("it to be removed", lambda: self.name not in self.states(self.hb))
        self.start_agent(self.ha)
        self.runs_afresh(self.ha, self.hb)

    def test_a_source_takes_back_what_went_to_a_host_that_is_lost(self) -> None:
        self.kill_agent(self.hb)
        self.ctr("task", "rm", "--force", self.name, host=self.hb)
        self.ctr("container", "rm", self.name, host=self.hb)
        self.assertEqual(3, self.begun.end().code, self.begun.said)
        self.assertIn("--destination-is-lost", self.recover(self.ha, "--run-here", code=1))
        self.recover(self.ha, "--run-here", "--destination-is-lost")
        self.soon("it to run", lambda: self.states(self.ha)[self.name] == "running")
        self.start_agent(self.hb)
        self.soon("hb to see it", lambda: self.is_broken(self.hb))
        self.recover(self.hb, "--give-up")
        self.runs_afresh(self.ha, self.hb)

    def test_a_broken_container_is_started_afresh_where_it_is(self) -> None:
        self.kill_agent(self.hb)
        # Otherwise the monitor starts it afresh before anybody has to decide.
        self.ctr("container", "label", self.name, "containerd.io/restart.status=", host=self.hb)
        self.ctr("task", "kill", "--signal", "SIGKILL", self.name, host=self.hb)
        self.assertEqual(3, self.begun.end().code, self.begun.said)
        self.start_agent(self.hb)
        self.soon("hb to see it", lambda: self.is_broken(self.hb))
        self.assertIn("the agent on hb answers", self.recover(self.ha, "--run-here", "--destination-is-lost", code=1))
        self.assertIn("started afresh", self.recover(self.hb, "--run-here"))
        self.runs_afresh(self.hb, self.ha)
