"""The checks by which other tests are skipped: one that went wrong would silently skip what must run."""

from tests.capabilities import version, why_no_sockets
from tests.support import EngineTest


class Capabilities(EngineTest):
    """What is known of the versions in the lab's bases."""

    def test_criu_dumps_network_sockets_from_4_2_on(self) -> None:
        if version(self.ha, "criu") >= (4, 2):
            self.assertEqual("", why_no_sockets(self.ha))
        else:
            self.assertIn("sockets: Can't get 1:16 opt", why_no_sockets(self.ha))
