"""The driver in Nova's own in-process test bed: API, conductor, scheduler, Placement and two computes, all of them real.

Docker and the agents are those of the lab's two hosts, which GODWIT_NOVA_HOSTS names: integration/run-tests test_nova.
Neutron and Glance are Nova's fixtures.
"""

# isort: off
from nova.tests.functional import integrated_helpers  # before all others of Nova: it chooses native threads

# isort: on
import json
import os
import sys
import types
import uuid
import warnings

import docker
from godwit_nova.driver import CONF, GodwitDriver
from godwit_nova.images import reference
from sqlalchemy.exc import SADeprecationWarning

HOSTS = json.loads(os.environ["GODWIT_NOVA_HOSTS"])
IMAGE = {"id": "67646f77-6974-4000-8000-000000000001", "checksum": "0" * 32}
REDIS = "redis:8"


class TwoHostsDriver(GodwitDriver):
    """The driver with a configuration for each host: in one process there is one for both."""

    def init_host(self, host):
        for option, value in HOSTS[host].items():
            CONF.set_override(option, value, group="godwit")
        super().init_host(host)

    def get_nodenames_by_uuid(self, refresh=False):
        return {node_uuid(self._host): self._host}

    def get_available_resource(self, nodename):
        return {**super().get_available_resource(nodename), "uuid": node_uuid(nodename)}


def node_uuid(host: str) -> str:
    """An identity for a host's node."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, host))


# Nova imports drivers from nova.virt only.
sys.modules["nova.virt.twohosts"] = types.SimpleNamespace(TwoHostsDriver=TwoHostsDriver)


class TwoHostsTest(integrated_helpers.ProviderUsageBaseTestCase):
    """Two computes, and what their hosts have in the end."""

    compute_driver = "twohosts.TwoHostsDriver"

    def setUp(self):
        super().setUp()
        # Nova's tests make errors of what SQLAlchemy 2.1 has deprecated, and use it.
        warnings.filterwarnings("ignore", category=SADeprecationWarning)
        self.docker = {}
        for host, sockets in HOSTS.items():
            self.docker[host] = docker.DockerClient(base_url=f"unix://{sockets['docker_socket']}")
            self.addCleanup(self.docker[host].close)
        # As if Glance's image were loaded already: its fixture has no content to load.
        repository, _, tag = reference(IMAGE).rpartition(":")
        self.docker["ha"].images.get(REDIS).tag(repository, tag)
        self.addCleanup(self.remove_image)
        self.glance.create(None, {
            **IMAGE, "name": "redis", "container_format": "docker", "disk_format": "raw", "status": "active",
            "min_ram": 0, "min_disk": 0, "size": 1, "visibility": "public", "properties": {},
        })  # fmt: skip
        for host in HOSTS:
            self._start_compute(host)
        self.server = self._create_server(image_uuid=IMAGE["id"], networks="none", host="ha")
        self.addCleanup(self.remove_containers)

    def remove_image(self):
        for client in self.docker.values():
            try:
                client.images.remove(reference(IMAGE))
            except docker.errors.ImageNotFound:
                continue

    def remove_containers(self):
        for container in self.containers():
            container.remove(force=True)

    def containers(self):
        """All of this server's, wherever they are."""
        name = f"nova-{self.server['id']}"
        return [it for client in self.docker.values() for it in client.containers.list(all=True) if it.name == name]

    def is_on(self, host):
        """Nova, Docker and Placement agree."""
        self.assertEqual(host, self.api.get_server(self.server["id"])["OS-EXT-SRV-ATTR:host"])
        running = {
            name: [it.status for it in client.containers.list(all=True) if it.name == f"nova-{self.server['id']}"]
            for name, client in self.docker.items()
        }
        self.assertEqual({name: ["running"] if name == host else [] for name in HOSTS}, running)
        allocations = self._get_allocations_by_server_uuid(self.server["id"])
        self.assertEqual([node_uuid(host)], list(allocations))

    def test_a_server_goes_to_the_other_host_and_back_and_away(self):
        self.is_on("ha")
        for host in ("hb", "ha"):
            self._live_migrate(self.server, "completed", host=host)
            self.is_on(host)
        self._delete_server(self.server)
        self.assertEqual([], self.containers())

    def test_what_stands_against_a_move_leaves_the_server_active_where_it_is(self):
        client = self.docker["hb"]
        client.images.load(self.docker["ha"].images.get(REDIS).save(named=True))
        taken = client.containers.create(REDIS, name=f"nova-{self.server['id']}")
        try:
            self._live_migrate(self.server, "error", host="hb")
        finally:
            taken.remove()
        self.is_on("ha")

    def test_a_service_that_is_started_again_finds_its_server_running(self):
        self.restart_compute_service(self.computes["ha"])
        self.is_on("ha")
        self._live_migrate(self.server, "completed", host="hb")
        self.is_on("hb")
