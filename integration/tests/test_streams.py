"""Standard streams: files, programs and fifos, terminals, large outputs, readers that are slow or come and go."""

import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import time
import unittest

from tests.containerd import IMAGE, ContainerdTest, kill_client, memory_kb, shim_pid, start_client, stdout_fifo
from tests.support import RUNTIME, SOON_SECONDS, STOCK_RUNTIME, EngineTest, Terminal, needs_slow

is_stock = RUNTIME == STOCK_RUNTIME
# Says when it starts and ends, and keeps each stream in a file of its own.
LOGGER = """#!/bin/sh
PATH=/usr/bin:/bin; cd "${0%/*}"
echo "$CONTAINER_NAMESPACE/$CONTAINER_ID $*" >called
READY
cat <&3 >out &
cat <&4 >err &
wait
echo ended >ended
"""
BOTH = ("sh", "-c", "echo to out; echo to err >&2; exit 3")


class LogUris(ContainerdTest):
    """`--log-uri`: outputs that go to a file or a program."""

    def logger(self, ready: str = "exec 5>&-") -> str:
        """The directory of a fresh logger, which is called `log`."""
        directory = self.new_directory()
        self.ha.write(f"{directory}/log", LOGGER.replace("READY", ready))
        self.ha.run("chmod", "+x", f"{directory}/log")
        return directory

    def assert_logged(self, directory: str, called: str) -> None:
        """The logger got both streams and is gone."""
        self.soon("the logger to have both", lambda: self.read(f"{directory}/out") + self.read(f"{directory}/err") ==
                  "to out\nto err\n")  # fmt: skip
        self.assertEqual(called, self.read(f"{directory}/called").strip())
        self.soon("its end", lambda: f"{directory}/log" not in self.ha.run("ps", "ax", "-o", "args").stdout)
        if not is_stock:  # which ends it by SIGTERM even though all is read
            self.assertEqual("ended\n", self.read(f"{directory}/ended"))

    def test_a_file_takes_both_streams_and_is_appended_to(self) -> None:
        directory = self.new_directory()
        log = f"{directory}/made/for it/log"
        uri = f"file://{directory}/made/for%20it/log?ignored=1"
        for n_runs in (1, 2):
            self.assertEqual(3, self.run_to_end(*BOTH, options=("--log-uri", uri)).returncode)
            self.soon("both lines", lambda n=n_runs: len(self.read(log).splitlines()) == 2 * n)
        self.assertEqual(["to err", "to err", "to out", "to out"], sorted(self.read(log).splitlines()))

    def test_a_program_takes_both_streams_with_its_arguments(self) -> None:
        directory = self.logger()
        name = self.new_task_name()
        uri = f"binary://{directory}/log?tag=a%20b"
        done = self.ctr("run", "--rm", "--runtime", self.runtime, "--log-uri", uri, IMAGE, name, *BOTH, check=False)
        self.assertEqual(3, done.returncode)
        self.assert_logged(directory, f"default/{name} tag a b")

    def test_an_exec_has_its_own_file_or_program(self) -> None:
        name = self.run_detached("sleep", "1000")
        directory = self.logger()
        log = f"{directory}/file"
        for exec_id, uri in (("e1", f"file://{log}"), ("e2", f"binary://{directory}/log")):
            done = self.ctr("task", "exec", "--exec-id", exec_id, "--log-uri", uri, name, *BOTH, check=False)
            self.assertEqual(3, done.returncode)
        self.soon("both lines", lambda: sorted(self.read(log).splitlines()) == ["to err", "to out"])
        self.assert_logged(directory, "default/e2")

    def test_a_program_that_is_not_there_is_an_error_and_leaves_nothing(self) -> None:
        name = self.new_task_name()
        done = self.ctr("run", "--runtime", self.runtime, "--log-uri", "binary:///no/such/log", IMAGE, name, "true", check=False)
        self.assertNotEqual(0, done.returncode)
        self.assertIn("/no/such/log", done.stderr)
        self.assertEqual("none", self.task_status(name))
        self.soon("its shim to end", lambda: f"-id {name}" not in self.ha.run("ps", "ax", "-o", "args").stdout)

    @unittest.skipIf(is_stock, "stock takes the death of a logger for its readiness")
    def test_a_program_that_dies_at_its_start_is_an_error_that_says_so(self) -> None:
        directory = self.logger(ready="exit 7")
        done = self.run_to_end(*BOTH, options=("--log-uri", f"binary://{directory}/log"))
        self.assertNotEqual(3, done.returncode)
        self.assertRegex(done.stderr, "ended before it was ready.*7")


    @unittest.skipIf(is_stock, "a ticket is Godwit's own way to a restore; ctr's passes no URI on")
    def test_a_restored_container_goes_on_in_a_program(self) -> None:
        self.needs_checkpoint_options()
        directory = self.logger()
        log, image = f"{directory}/before", f"{directory}/image"
        count = ("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")
        name = self.run_detached(*count, options=("--log-uri", f"file://{log}"))
        self.soon("its output", lambda: len(self.read(log).splitlines()) > 3)
        self.ha.run("mkdir", "-m", "700", image)
        self.ctr("task", "checkpoint", "--exit", "--image-path", image, name)
        self.soon("its end", lambda: self.task_status(name) == "STOPPED")
        self.ctr("task", "rm", name)
        self.ctr("container", "rm", name)
        ticket = {"version": 1, "namespace": "default", "id": name, "migration": "test", "image_dir": image}
        path = f"/run/godwit/tickets/default/{name}"
        self.ha.write(path, json.dumps(ticket))
        self.ha.run("chmod", "600", path)
        self.ctr("run", "--detach", "--runtime", self.runtime, "--log-uri", f"binary://{directory}/log", IMAGE, name, *count)
        self.soon("its output to go on", lambda: len(self.read(f"{directory}/out").splitlines()) > 3)
        before, after = self.read(log).splitlines(), self.read(f"{directory}/out").splitlines()
        numbers = [int(number) for number in [*before, *after]]
        self.assertEqual(list(range(1, len(numbers) + 1)), numbers)
        self.ctr("task", "rm", "--force", name)
        self.soon("the end of its logger", lambda: self.read(f"{directory}/ended") == "ended\n")


class Streams(ContainerdTest):
    """Fifos, and how much goes through them how fast."""

    def client(self, *argv: str, **streams: object) -> subprocess.Popen:
        """An attached `ctr run` whose streams are the test's."""
        name = self.new_task_name()
        command = ("ctr", "run", "--rm", "--runtime", self.runtime, IMAGE, name, *argv)
        process = start_client(self.ha, *command, **streams)
        self.addCleanup(kill_client, process)
        return process

    def assert_arrives_whole(self, n_bytes: int) -> None:
        """Each byte of a large output arrives, and the shim grows by no more than its buffers."""
        go = self.new_directory()
        line = "0123456789abcde\n"
        name = self.new_task_name()
        script = f"while [ ! -e /go/now ]; do sleep 0.05; done; yes {line.strip()} | head -c {n_bytes}; touch /go/done; sleep 1000"
        mount = f"type=bind,src={go},dst=/go,options=rbind:rw"
        command = ("ctr", "run", "--runtime", self.runtime, "--mount", mount, IMAGE, name, "sh", "-c", script)
        process = start_client(self.ha, *command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.addCleanup(process.stdout.close)
        self.addCleanup(kill_client, process)
        self.soon("it to run", lambda: self.task_status(name) == "RUNNING")
        shim = shim_pid(self.ha, name)
        before = memory_kb(self.ha, shim, "VmRSS")
        self.ha.write(f"{go}/now", "")
        n_read, digest = 0, hashlib.sha256()
        while n_read < n_bytes:
            chunk = process.stdout.read(min(1 << 16, n_bytes - n_read))
            self.assertTrue(chunk, f"the end came after {n_read} of {n_bytes} bytes")
            n_read += len(chunk)
            digest.update(chunk)
        expected = hashlib.sha256()
        block = line.encode() * 4096
        for _ in range(n_bytes // len(block)):
            expected.update(block)
        expected.update(block[: n_bytes % len(block)])
        self.assertEqual(expected.hexdigest(), digest.hexdigest())
        peak, after = memory_kb(self.ha, shim, "VmHWM"), memory_kb(self.ha, shim, "VmRSS")
        print(f"        shim: {before} kB before, {peak} kB at most, {after} kB after {n_bytes >> 20} MB")
        # stock is a Go program and takes what its collector lets it
        self.assertLess(peak - before, 8192 if is_stock else 1024, "the shim grew with the output")

    def test_64_mb_arrive_whole_and_the_shim_does_not_grow(self) -> None:
        self.assert_arrives_whole(64 << 20)

    @needs_slow
    def test_1_gb_arrives_whole_and_the_shim_does_not_grow(self) -> None:
        self.assert_arrives_whole(1 << 30)

    def test_64_mb_of_input_arrive_whole_and_end(self) -> None:
        data = os.urandom(1 << 20) * 64
        process = self.client("sha256sum", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        output, _ = process.communicate(data, timeout=60)
        self.assertEqual(hashlib.sha256(data).hexdigest(), output.decode().split()[0])

    def waiting(self, script: str) -> tuple[str, str, str]:
        """A detached container that runs a script when `now` appears in a directory, its /go; that directory, its name, and
        the fifo of its output. Who reads it is the test: `ctr run` of 1.7 goes when the container has ended, and leaves what
        it has not read by then, with the stock shim as well."""
        directory = self.new_directory()
        mount = f"type=bind,src={directory},dst=/go,options=rbind:rw"
        script = f"while [ ! -e /go/now ]; do sleep 0.05; done; {script}"
        name = self.run_detached("sh", "-c", script, options=("--mount", mount))
        return directory, name, str(stdout_fifo(self.ha, shim_pid(self.ha, name)))

    def test_a_slow_reader_slows_the_container_and_loses_nothing(self) -> None:
        n_lines = 30_000  # 2 MB: far more than all the pipes on the way hold
        script = f"i=0; while [ $i -lt {n_lines} ]; do i=$((i+1)); printf '%070d\\n' $i; done; touch /go/done"
        go, name, fifo = self.waiting(script)
        with open(fifo, "rb") as reader:
            self.ha.write(f"{go}/now", "")
            first = reader.readline()
            time.sleep(3)  # long enough for all of it, if nothing held it back
            self.assertFalse(self.ha.path(f"{go}/done").exists(), "the container wrote on although nobody read")
            lines = [first, *reader.readlines()]
        self.assertEqual([b"%070d\n" % n for n in range(1, n_lines + 1)], lines)
        self.soon("its end", lambda: self.task_status(name) == "STOPPED")

    def test_a_delete_waits_for_a_reader_that_is_slow_after_the_exit(self) -> None:
        n_bytes, n_left = 400_000, 100_000  # what is left fits into the container's pipe and the fifo
        go, name, fifo = self.waiting(f"yes 0123456789abcde | head -c {n_bytes}")
        with open(fifo, "rb") as reader:
            self.ha.write(f"{go}/now", "")
            n_read = len(reader.read(n_bytes - n_left))
            self.soon("its end", lambda: self.task_status(name) == "STOPPED")
            removal = start_client(self.ha, "ctr", "task", "rm", name)
            self.addCleanup(kill_client, removal)
            time.sleep(2)  # it is under way
            n_read += len(reader.read())
        self.assertEqual(n_bytes, n_read)
        self.assertEqual(0, removal.wait(timeout=SOON_SECONDS))

    def tickers_fifo(self, script: str) -> tuple[str, str]:
        """A detached container that writes numbers, with nobody at its fifos."""
        name = self.run_detached("sh", "-c", script, options=())
        return name, str(stdout_fifo(self.ha, shim_pid(self.ha, name)))

    def read_fifo(self, path: str, enough: int) -> bytes:
        """Opens a fifo, reads until `enough` bytes or the end, and goes away."""
        fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fifo, True)
        read = b""
        try:
            while len(read) < enough:
                chunk = os.read(fifo, min(512, enough - len(read)))
                if not chunk:
                    break
                read += chunk
        finally:
            os.close(fifo)
        return read

    def test_a_reader_that_goes_away_and_comes_back_misses_nothing(self) -> None:
        name, fifo = self.tickers_fifo("n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done")
        read = b""
        for _ in range(3):
            read += self.read_fifo(fifo, 200)
            time.sleep(0.3)
            self.assertEqual("RUNNING", self.task_status(name))
        *numbers, _ = read.split(b"\n")
        self.assertGreater(len(numbers), 100)
        first = int(numbers[0])  # what came before is ctr's, which looks in for a moment
        self.assertEqual(list(range(first, first + len(numbers))), [int(number) for number in numbers])

    def test_a_container_that_nobody_reads_waits_and_can_be_removed(self) -> None:
        name, _ = self.tickers_fifo("while :; do echo 0123456789abcdef; done")
        time.sleep(1)
        self.assertEqual("RUNNING", self.task_status(name))
        self.ctr("task", "rm", "--force", name)
        self.assertEqual("none", self.task_status(name))

    @unittest.skipIf(is_stock, "stock drops what nobody has read when the container ends")
    def test_output_waits_for_a_reader_that_comes_after_the_exit(self) -> None:
        directory, name, fifo = self.waiting("echo last words")
        self.ha.write(f"{directory}/now", "")
        self.soon("its end", lambda: self.task_status(name) == "STOPPED")
        time.sleep(0.5)
        self.assertEqual(b"last words\n", self.read_fifo(fifo, 100))

    def test_an_exec_reads_its_input_to_the_end(self) -> None:
        name = self.run_detached("sleep", "1000")
        done = self.ha.run("ctr", "task", "exec", "--exec-id", "in", name, "wc", "-c", stdin=b"x" * 300_000)
        self.assertEqual("300000", done.stdout.strip())


class DockerStreams(EngineTest):
    """What Docker's users see of it."""

    def post(self, path: str) -> int:
        """Asks the engine's API on ha, which has what the command line does only on a person's terminal."""
        connection = http.client.HTTPConnection("docker")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(SOON_SECONDS)
        connection.sock.connect(str(self.ha.path("/run/docker.sock")))
        connection.request("POST", path)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def test_a_resize_reaches_a_detached_terminal(self) -> None:
        name = self.start("busybox", "sh", "-c", "trap 'stty size' WINCH; echo up; while :; do sleep 0.1; done",
                          options=("--tty",))  # fmt: skip
        self.soon("its trap", lambda: "up" in self.logs(name))
        self.assertEqual(200, self.post(f"/containers/{name}/resize?h=33&w=101"))
        self.soon("the size", lambda: "33 101" in self.logs(name))

    def test_a_resize_reaches_the_terminal_of_an_exec_and_of_nobody_else(self) -> None:
        name = self.start("sh", options=("--interactive", "--tty", "busybox"))
        with Terminal(self.ha, "docker", "exec", "-it", name, "sh") as terminal:
            terminal.expect("# ")
            (exec_id,) = re.findall(r"[0-9a-f]{64}", self.inspect(name, "{{json .ExecIDs}}"))
            self.assertIn(self.post(f"/exec/{exec_id}/resize?h=44&w=111"), (200, 201))
            terminal.send("stty size; echo done-$((1+1))\n")
            terminal.expect("done-2")
            self.assertIn("44 111", terminal.output)
        with Terminal(self.ha, "docker", "attach", name) as terminal:
            terminal.send("stty size; echo done-$((1+1))\n")
            terminal.expect("done-2")
            self.assertNotIn("44 111", terminal.output)

    def test_what_is_attached_writes_to_stdin_and_may_come_again(self) -> None:
        name = self.start("cat", options=("--interactive", "busybox"))
        for word in ("once", "again"):
            attached = start_client(self.ha, "docker", "attach", name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            attached.stdin.write(f"{word}\n".encode())
            attached.stdin.flush()
            self.soon("its echo", lambda word=word: word in self.logs(name))
            kill_client(attached)
            attached.stdin.close()
            attached.stdout.close()
        self.assertEqual("running", self.inspect(name, "{{.State.Status}}"))

    def test_the_end_of_input_ends_a_reader(self) -> None:
        done = self.ha.run("docker", "run", "--rm", "-i", "--runtime", self.runtime, "busybox", "sh", "-c",
                           "cat; echo end; exit 6", stdin=b"all\n", check=False)  # fmt: skip
        self.assertEqual(("all\nend\n", 6), (done.stdout, done.returncode))

    def test_a_child_that_keeps_the_output_open_does_not_keep_the_container(self) -> None:
        name = self.start("busybox", "sh", "-c", "sleep 1000 & echo parent; exit 5")
        self.assertEqual("5", self.docker("wait", name).stdout.strip())
        self.assertEqual("parent\n", self.logs(name))
