"""Containers that containerd makes of a whole OCI configuration, without Docker: for annotations, hooks, shared namespaces.

Their root file system is busybox, one directory for all of them, read-only. Works on both versions of cgroups, whereas `ctr run`
of an image asks for a controller that a machine may lack.
"""

import copy
import json
import subprocess

from tests.support import EngineTest

DIRECTORY = "/run/specs"
SPEC = {
    "ociVersion": "1.1.0",
    "process": {"user": {"uid": 0, "gid": 0}, "env": ["PATH=/usr/bin"], "cwd": "/"},
    "root": {"path": f"{DIRECTORY}/rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ],
    "linux": {},
}
NAMESPACES = ("pid", "mount", "ipc", "uts", "network")
FOREVER = ("sh", "-c", "while :; do sleep 0.2; done")


class SpecTest(EngineTest):
    """A test of such containers on host ha."""

    def setUp(self) -> None:
        super().setUp()
        if not self.ha.path(f"{DIRECTORY}/rootfs/usr").exists():
            self.ha.run("sh", "-ec", f"mkdir -p {DIRECTORY}/rootfs; docker create --name root busybox; "
                        f"docker export root | tar -x -C {DIRECTORY}/rootfs; docker rm root")  # fmt: skip

    def run_spec(
        self, name: str, *command: str, runtime: str | None = None, annotations: dict[str, str] | None = None,
        namespaces: dict[str, str] | None = None, resources: dict | None = None, mounts: tuple[dict, ...] = (),
        hooks: dict | None = None,
    ) -> str:  # fmt: skip
        """Starts a container; `namespaces` are those of others by their paths. It goes away with the test."""
        spec = copy.deepcopy(SPEC)
        spec["process"]["args"] = list(command or FOREVER)
        spec["mounts"] += mounts
        spec["annotations"] = annotations or {}
        shared = namespaces or {}
        spec["linux"] = {
            "cgroupsPath": f"/specs/{name}",
            "namespaces": [{"type": kind, **({"path": shared[kind]} if kind in shared else {})} for kind in NAMESPACES],
            "resources": resources or {},
        }
        if hooks:
            spec["hooks"] = hooks
        self.ha.write(f"{DIRECTORY}/{name}.json", json.dumps(spec))
        self.addCleanup(self.remove, name)
        self.ctr("run", "--detach", "--config", f"{DIRECTORY}/{name}.json", "--runtime", runtime or self.runtime, name)
        return name

    def ctr(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """containerd's own client."""
        return self.ha.run("ctr", *argv, check=check)

    def remove(self, name: str) -> None:
        """Kills it and lets containerd forget it."""
        self.ctr("task", "rm", "--force", name, check=False)
        self.ctr("container", "rm", name, check=False)

    def task_pid(self, name: str) -> str:
        """The pid of a container's init on the host; empty if it does not run."""
        lines = (line.split() for line in self.ctr("task", "ls").stdout.splitlines())
        return next((words[1] for words in lines if words[0] == name and words[2] == "RUNNING"), "")
