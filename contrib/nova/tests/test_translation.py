"""What Nova says, in Docker's words: limits, environment, ports, images."""

import io
import unittest
from types import SimpleNamespace

from godwit_nova.images import Chunks, reference
from godwit_nova.instances import environment, limits
from godwit_nova.vifs import endpoint, network_name, wiring
from nova import exception
from nova.network import model

CAPABLE = {"SwapLimit": True, "CpuCfsQuota": True, "PidsLimit": True}


def flavor(**more):
    """A flavor of two processors and a gigabyte."""
    return SimpleNamespace(**{"memory_mb": 1024, "vcpus": 2, "swap": 512, "extra_specs": {}, **more})


def port(kind: str = "other", addresses: tuple[str, ...] = ("192.0.2.5",), **details) -> model.VIF:
    """A port with these addresses."""
    ips = [model.FixedIP(address=address) for address in addresses]
    subnet = model.Subnet(cidr="192.0.2.0/24", ips=ips, gateway=model.IP(address="192.0.2.1"), version=4)
    network = model.Network(id="net", bridge=None, subnets=[subnet])
    return model.VIF(id="port", address="fa:16:3e:00:00:05", network=network, type=kind, details=details)


class LimitsTest(unittest.TestCase):
    def test_a_flavor_bounds_memory_processors_and_processes(self) -> None:
        expected = {
            "mem_limit": 1 << 30, "memswap_limit": 1536 << 20, "cpu_shares": 2048, "nano_cpus": 2 * 10**9, "pids_limit": 99,
        }  # fmt: skip
        self.assertEqual(expected, limits(flavor(), CAPABLE, 99))

    def test_a_flavor_may_say_how_many_processes(self) -> None:
        self.assertEqual(7, limits(flavor(extra_specs={"godwit:pids_limit": "7"}), CAPABLE, 99)["pids_limit"])
        self.assertNotIn("pids_limit", limits(flavor(extra_specs={"godwit:pids_limit": "0"}), CAPABLE, 99))

    def test_what_the_host_cannot_bound_is_not_asked_of_it(self) -> None:
        self.assertEqual({"mem_limit", "cpu_shares"}, limits(flavor(), {}, 99).keys())


class EnvironmentTest(unittest.TestCase):
    def test_metadata_stands_above_the_image_and_names_that_are_none_are_left_out(self) -> None:
        instance = SimpleNamespace(
            system_metadata={"image_docker_env_A": "image", "image_docker_env_B": "image", "image_os_type": "linux"},
            metadata={"B": "metadata", "not a name": "x", "1A": "x"},
        )
        self.assertEqual({"A": "image", "B": "metadata"}, environment(instance))


class PortTest(unittest.TestCase):
    def test_address_and_mac_are_the_ports(self) -> None:
        self.assertEqual(
            {"mac_address": "fa:16:3e:00:00:05", "ipv4_address": "192.0.2.5"}, endpoint(port(bridge_name="br"))
        )

    def test_a_network_has_one_name_on_every_host(self) -> None:
        self.assertEqual("nova-net", network_name(port()))

    def test_a_binding_says_how_docker_wires_it(self) -> None:
        self.assertEqual(("macvlan", {"parent": "eth1.7"}), wiring(port("macvtap", macvtap_source="eth1.7")))
        kind, options = wiring(port(bridge_name="br7"))
        self.assertEqual(("bridge", "br7"), (kind, options["com.docker.network.bridge.name"]))

    def test_a_binding_that_cannot_be_wired_is_refused(self) -> None:
        for vif in (port("ovs", bridge_name="br-int"), port("binding_failed"), port("other"), port("macvtap")):
            with self.assertRaises(exception.VirtualInterfacePlugException):
                wiring(vif)

    def test_what_docker_would_make_otherwise_is_refused(self) -> None:
        for addresses in ((), ("192.0.2.5", "192.0.2.6")):
            with self.assertRaises(exception.VirtualInterfacePlugException):
                endpoint(port(addresses=addresses))


class ImageTest(unittest.TestCase):
    def test_an_image_is_known_by_id_and_digest(self) -> None:
        image = {"id": "i", "os_hash_value": "a" * 128, "checksum": "b" * 32}
        self.assertEqual(f"glance.godwit.local/i:{'a' * 64}", reference(image))
        self.assertEqual(f"glance.godwit.local/i:{'b' * 32}", reference({**image, "os_hash_value": None}))

    def test_an_image_without_content_is_refused(self) -> None:
        with self.assertRaises(exception.ImageUnacceptable):
            reference({"id": "i", "checksum": None})

    def test_pieces_are_read_as_one_file(self) -> None:
        pieces = [b"ab", b"", b"c" * 100_000, b"d"]
        self.assertEqual(b"".join(pieces), io.BufferedReader(Chunks(iter(pieces)), 4096).read())
