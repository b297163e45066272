"""The lab itself, with the stock runtime: what the other tests stand on."""

import hashlib
import os
import subprocess
import sys
import time
import unittest

from lab.layout import NAME, REPOSITORY, SUBNET, WIRE_ADDRESS
from lab.load import LoadClient
from tests.support import STOCK_RUNTIME, EngineTest

LAB = str(REPOSITORY / "integration/lab/lab")
# An up, with builds beside it.
UP_DEADLINE_SECONDS = 120.0
# A lab beside the one that the run uses, for tests of up and down: another one for each, since runs may go side by side.
OTHER_LAB = "gw" + "".join(chr(ord("a") + byte % 26) for byte in hashlib.sha256(NAME.encode()).digest()[:6])


class Hosts(EngineTest):
    """Two hosts, which have an engine each and share a segment."""

    runtime = STOCK_RUNTIME

    def test_hosts_have_their_own_names_processes_and_engines(self) -> None:
        self.assertEqual("ha", self.ha.run("hostname").stdout.strip())
        self.assertEqual("hb", self.hb.run("hostname").stdout.strip())
        self.assertEqual("1", self.ha.run("cat", "/proc/1/stat").stdout.split()[0])
        name = self.start("busybox", "sh", "-c", "while :; do sleep 1; done")
        self.assertIn(name, self.docker("ps").stdout)
        self.assertNotIn(name, self.docker("ps", host=self.hb).stdout)

    def test_exec_passes_stdin_streams_and_exit_code(self) -> None:
        done = subprocess.run(
            [LAB, "exec", "ha", "--", "sh", "-c", "cat; echo err >&2; exit 7"], input=b"in", capture_output=True
        )
        self.assertEqual((7, b"in", b"err\n"), (done.returncode, done.stdout, done.stderr))

    def test_containers_of_two_hosts_have_cgroups_of_their_own_under_one_path(self) -> None:
        for host in (self.ha, self.hb):
            host.run("mkdir", "-p", f"/sys/fs/cgroup/{self._any_cgroup(host)}/default")
            self.addCleanup(host.run, "rmdir", f"/sys/fs/cgroup/{self._any_cgroup(host)}/default")
        inodes = {host.run("stat", "-c", "%i", f"/sys/fs/cgroup/{self._any_cgroup(host)}/default").stdout
                  for host in (self.ha, self.hb)}  # fmt: skip
        self.assertEqual(2, len(inodes))

    @staticmethod
    def _any_cgroup(host) -> str:
        return "." if host.state()["cgroups"] == "v2" else "freezer"

    def test_a_published_port_answers_a_client(self) -> None:
        self.start("busybox", "sh", "-c", "mkdir /w; echo here >/w/index.html; exec httpd -f -p 80 -h /w",
                   options=("--publish", "8080:80"))  # fmt: skip
        script = f"import urllib.request as u; print(u.urlopen('http://{self.ha.address}:8080/', timeout=2).read())"
        self.soon("the page", lambda: "here" in self.at_clients(sys.executable, "-c", script).stdout)

    def test_an_address_of_the_common_segment_answers_from_either_host(self) -> None:
        for host in (self.ha, self.hb):
            if host is self.hb:
                subprocess.run([LAB, "image", "hb", "redis"], check=True)
                self.addCleanup(self.docker, "image", "rm", "redis:8", host=host)
            name = self.start("redis:8", options=("--network", "lan", "--ip", "10.77.0.60"), host=host)
            self.soon("redis", lambda: self._pings(host, name))
            self.at_clients("ip", "neigh", "flush", "to", "10.77.0.60")  # Docker 28 tells the others itself, 26 does not
            with LoadClient("10.77.0.60") as client:
                self.soon("the load", lambda: client.mark()["acknowledged"] > 100)
                account = client.finish()
            self.assertEqual((0, "kept"), (account["lost"], account["connection"]))
            self.docker("rm", "--force", name, host=host)

    def _pings(self, host, name: str) -> bool:
        return "PONG" in self.docker("exec", name, "redis-cli", "ping", host=host, check=False).stdout

    def test_the_load_client_tells_a_broken_connection_from_a_kept_one(self) -> None:
        # with a fixed MAC address, since the client would not learn another one at once
        name = self.start("redis:8", options=("--network", "lan", "--ip", "10.77.0.61", "--mac-address", "02:42:0a:4d:00:3d"))
        self.soon("redis", lambda: self._pings(self.ha, name))
        with LoadClient("10.77.0.61") as client:
            time.sleep(0.3)
            before = client.mark()["acknowledged"]
            self.docker("restart", name)  # it keeps nothing on disk
            self.soon("the load to go on", lambda: client.mark()["acknowledged"] > before + 100)
            account = client.finish()
        self.assertEqual("broken", account["connection"])
        self.assertGreaterEqual(account["lost"], before)
        self.assertGreater(account["acknowledged"], account["lost"])

    def test_the_load_client_measures_a_pause(self) -> None:
        name = self.start("redis:8", options=("--network", "lan", "--ip", "10.77.0.62"))
        self.soon("redis", lambda: self._pings(self.ha, name))
        with LoadClient("10.77.0.62") as client:
            time.sleep(0.3)
            client.mark()
            self.docker("pause", name)
            time.sleep(0.5)
            self.docker("unpause", name)
            time.sleep(0.2)
            self.assertGreaterEqual(client.mark()["longest_gap_ms"], 500)

    def test_the_network_for_moving_addresses_is_the_same_on_both_hosts(self) -> None:
        for host in (self.ha, self.hb):
            network = self.docker("network", "inspect", "lan", "--format", "{{.Driver}} {{json .IPAM.Config}}", host=host)
            self.assertIn("macvlan", network.stdout)
            self.assertIn(SUBNET, network.stdout)
            self.assertIn(WIRE_ADDRESS, network.stdout)


class Lifecycle(unittest.TestCase):
    """Labs of their own, beside the one that the run uses."""

    def setUp(self) -> None:
        self.environment = {**os.environ, "GODWIT_LAB": OTHER_LAB}
        self._lab("down")
        self.addCleanup(self._lab, "down")

    def _lab(self, *argv: str) -> str:
        done = subprocess.run(
            [LAB, *argv], env=self.environment, capture_output=True, text=True, timeout=UP_DEADLINE_SECONDS
        )
        self.assertEqual(0, done.returncode, done.stderr)
        return done.stdout

    def _standing(self) -> list[str]:
        """What of the lab the machine has, found here by other means than the lab's own."""
        netns = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
        with open("/proc/self/mountinfo") as mountinfo:
            mounts = mountinfo.read()
        found = [text for text in (netns, links, mounts) if OTHER_LAB in text]
        found += [os.path.join(at, name) for at, names, _ in os.walk("/sys/fs/cgroup") for name in names if OTHER_LAB in name]
        found += [path for path in (f"/run/godwit-lab/{OTHER_LAB}", f"/var/lib/godwit-lab/{OTHER_LAB}") if os.path.exists(path)]
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cgroup") as cgroup, open(f"/proc/{pid}/mountinfo") as mountinfo:
                    if OTHER_LAB in cgroup.read() + mountinfo.read():
                        found.append(f"process {pid}")
            except OSError:
                continue
        return found

    def test_both_cgroup_flavours_run_containers_and_down_leaves_nothing(self) -> None:
        self._lab("up", "--no-agent", "--cgroup", "ha=v1", "--cgroup", "hb=v2")
        self._lab("image", "hb", "busybox")
        for host, version in (("ha", "1"), ("hb", "2")):
            info = self._lab("exec", host, "--", "docker", "info", "--format", "{{.CgroupVersion}}")
            self.assertEqual(version, info.strip())
            run = ("exec", host, "--", "docker", "run", "--runtime", STOCK_RUNTIME)
            self.assertEqual("hi\n", self._lab(*run, "--rm", "busybox", "echo", "hi"))
            self._lab(*run, "--detach", "busybox", "sh", "-c", "while :; do sleep 1; done")
        self.assertNotEqual([], self._standing())
        self._lab("down")
        self.assertEqual([], self._standing())
        self._lab("down")  # again: nothing to do is no failure

    def test_down_leaves_nothing_of_an_up_that_was_killed_half_way(self) -> None:
        for seconds in (0.15, 0.4, 0.8):
            up = subprocess.Popen([LAB, "up", "--no-agent"], env=self.environment, stdout=subprocess.DEVNULL)
            time.sleep(seconds)
            up.kill()
            up.wait()
            self._lab("down")
            self.assertEqual([], self._standing(), f"after {seconds} s of up")

    def test_a_killed_daemon_is_seen_and_starts_again(self) -> None:
        self._lab("up", "--no-agent", "--no-images", "--no-lan")
        self._lab("kill", "ha", "dockerd")
        self.assertRegex(self._lab("status"), r"(?m)^ha .*dockerd=down")
        self._lab("restart", "ha", "dockerd")
        self.assertRegex(self._lab("status"), r"(?m)^ha .*dockerd=up")
