"""The Nova driver: its unit tests, and a Nova in one process whose two computes use the lab's two hosts.

They run under the machine's own Python; `make nova` runs the same under the newest one that Debian has, and a whole cloud.
"""

from lab.commands import LabError
from nova_lab import driver_tests, python
from nova_lab.venv import Venv

from tests.moving import MoveTest


class NovaTest(MoveTest):
    def setUp(self) -> None:
        super().setUp()
        try:
            self.venv = Venv(python.machine()).use()
        except LabError as error:
            self.skipTest(f"Nova cannot be installed here: {error}")

    def test_the_driver_itself(self) -> None:
        driver_tests.unit(self.venv)

    def test_a_nova_in_one_process_moves_servers_between_the_hosts(self) -> None:
        self.needs_moves()
        self.image("redis")
        driver_tests.two_hosts(self.venv, self.hosts, self.runtime)
