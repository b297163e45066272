"""Metrics: what Stats reports is what the stock shim reports, field by field, of the same cgroup at the same time."""

import json

from tests.specs import DIRECTORY, SpecTest
from tests.support import STOCK_RUNTIME

# Runs before the container's program, and moves it to the cgroups of another container.
JOIN = r"""
read -r state
pid=$(echo "$state" | sed 's/.*"pid": *\([0-9]*\).*/\1/')
find /sys/fs/cgroup -type d -path "*/specs/$1" | while read -r directory; do
    echo "$pid" >"$directory/cgroup.procs" || exit 1
done
"""
# Some of everything: processor time in both modes, memory, cache, processes, and the disk, past the cache and through it.
BUSY = """
dd if=/dev/zero of=/disk/one bs=64k count=20 oflag=direct; dd if=/disk/one of=/dev/null bs=64k iflag=direct
dd if=/dev/urandom of=/disk/two bs=64k count=20 conv=fsync
sleep 1000 & sleep 1000 &
touch /disk/ready
while :; do cat /disk/two >/dev/null; done
"""
N_TRIES = 20


class Stats(SpecTest):
    """One cgroup, seen by two shims."""

    def metrics(self, name: str) -> dict:
        return json.loads(self.ctr("task", "metrics", "--format", "json", name).stdout)

    def test_every_field_is_that_of_the_stock_shim(self) -> None:
        disk = "/var/lib/docker/stats"  # on the machine's disk
        self.addCleanup(self.ha.run, "rm", "-rf", disk)
        self.ha.run("mkdir", "-p", disk)
        resources: dict = {}
        if self.ha.state()["cgroups"] == "v1":
            number = self.ha.path(disk).stat().st_dev
            # Without a limit this kernel counts no operations.
            limit = [{"major": number >> 8, "minor": number & 0xFF, "rate": 1 << 30}]
            resources = {
                "memory": {"limit": 64 << 20, "swap": 64 << 20},
                "pids": {"limit": 100},
                "blockIO": {"throttleReadBpsDevice": limit, "throttleWriteBpsDevice": limit},
            }
        theirs = self.run_spec(
            self.new_name(), "sh", "-c", BUSY, runtime=STOCK_RUNTIME, resources=resources,
            mounts=({"destination": "/disk", "type": "bind", "source": disk, "options": ["bind"]},),
        )  # fmt: skip
        self.ha.write(f"{DIRECTORY}/join", JOIN)
        hook = {"path": "/bin/sh", "args": ["sh", f"{DIRECTORY}/join", theirs]}
        ours = self.run_spec(self.new_name(), hooks={"createRuntime": [hook]})
        # runC 1.1 looks for whom to kill in the container's own cgroup only.
        self.addCleanup(self.ha.run, "kill", "-KILL", self.task_pid(ours), check=False)
        self.addCleanup(self.ctr, "task", "resume", theirs, check=False)
        self.soon("the program to be busy", lambda: self.ha.path(f"{disk}/ready").exists())
        # Both, as they share a freezer; and again, since runC gives up soon where a busy machine is slow to freeze.
        self.soon("runC to freeze them", lambda: self.ctr("task", "pause", theirs, check=False).returncode == 0)

        for _ in range(N_TRIES):  # the kernel still brings its books up to date
            before, seen, after = self.metrics(theirs), self.metrics(ours), self.metrics(theirs)
            if before == after:
                break
        else:
            self.fail(f"the stock shim's own metrics do not rest: {before} {after}")
        if self.ha.state()["cgroups"] == "v2":
            # containerd's shims before 2.2 read `cpu.stat` only where the controller is switched on.
            for key in ("usage_usec", "user_usec", "system_usec"):
                before["cpu"].setdefault(key, seen["cpu"].get(key, 0))
        self.assertEqual(before, seen)
        is_v1 = self.ha.state()["cgroups"] == "v1"
        if is_v1 or "pids" in self.ha.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split():
            self.assertGreaterEqual(seen["pids"]["current"], 5, seen)  # of both containers
        if is_v1:
            self.assertEqual(100, seen["pids"]["limit"])
            self.assertGreater(seen["cpu"]["usage"]["total"], 0)
            self.assertEqual(64 << 20, seen["memory"]["usage"]["limit"])
            self.assertGreater(seen["memory"]["cache"], 0)
            written = [one for one in seen["blkio"]["io_service_bytes_recursive"] if one["op"] == "Write"]
            self.assertGreaterEqual(written[0]["value"], 2 * 20 * 65536)
            self.assertRegex(written[0]["device"], "^/dev/")
        else:
            self.assertGreater(seen["cpu"]["usage_usec"], 0)
