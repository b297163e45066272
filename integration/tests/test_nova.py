"""The Nova driver: its unit tests, and a Nova in one process whose two computes use the lab's two hosts.

`make nova` is the whole cloud. What runs here is in contrib/nova/tests, under the virtual environment that has Nova.
"""

import json
import os
import subprocess

from lab.commands import LabError
from nova_lab.venv import DRIVER, Venv

from tests.moving import MoveTest

# The whole takes half a minute; a machine busy with a build needs more.
TESTS_DEADLINE_SECONDS = 300.0


class NovaTest(MoveTest):
    def setUp(self) -> None:
        super().setUp()
        try:
            self.venv = Venv().use()
        except LabError as error:
            self.skipTest(f"Nova cannot be installed here: {error}")

    def run_driver_tests(self, *which: str, **environment: str) -> None:
        """Runs tests of contrib/nova in a process of their own, as Nova wants to be imported once and in its own way."""
        done = subprocess.run(
            [self.venv.program("python"), "-B", "-m", "unittest", *which], cwd=DRIVER, capture_output=True, text=True,
            env={**os.environ, **environment, "PYTHONWARNINGS": "ignore"}, timeout=TESTS_DEADLINE_SECONDS,
        )  # fmt: skip
        self.assertEqual(0, done.returncode, f"{done.stdout[-5000:]}{done.stderr[-20000:]}")

    def test_the_driver_itself(self) -> None:
        self.run_driver_tests("discover", "-s", "tests", "-t", ".")

    def test_a_nova_in_one_process_moves_servers_between_the_hosts(self) -> None:
        self.needs_moves()
        self.image("redis")
        hosts = {
            host.name: {
                "docker_socket": str(host.path("/run/docker.sock")),
                "agent_socket": str(host.path("/run/godwit/agent.sock")),
                "storage_path": str(host.disk),
                "runtime": self.runtime,
            }
            for host in self.hosts
        }
        self.run_driver_tests(
            "tests.two_hosts", GODWIT_NOVA_HOSTS=json.dumps(hosts), OS_NOVA_DISABLE_EVENTLET_PATCHING="true"
        )
