"""Ports of Neutron as endpoints of Docker networks.

Each Neutron network is a Docker network of the same name on every host, on the bridge or the interface that Neutron has
bound the port to; Docker makes the link and gives it address, MAC, routes and MTU, at each start anew. That lets an
address move: an agent finds the same network at the destination, and Docker wires the restored container like a new one.
It refuses the other types of VIF, and what Docker cannot express: to attach a port to a container that is there already
is none of its calls, since Docker takes no MAC then.
"""

import threading

from docker.errors import APIError, NotFound
from nova import exception
from nova.network import model
from oslo_log import log as logging

from .engine import LABEL as INSTANCE_LABEL
from .engine import Engine

LOG = logging.getLogger(__name__)

PREFIX = "nova-"
LABEL = "io.godwit.nova.network"


class Vifs:
    """The networks of this host that Nova's containers are on.

    One is made when the first port on it is plugged, and removed with the last. A port that is plugged counts from then
    on, since its container may come only later, by a migration.
    """

    def __init__(self, engine: Engine) -> None:
        self._api = engine.api
        self._engine = engine
        self._lock = threading.Lock()
        self._holders: dict[str, set[str]] = {}

    def plug(self, instance_uuid: str, network_info) -> dict[str, dict]:
        """Sees to it that the networks exist; returns Docker's configuration of the endpoints, by the networks' names."""
        endpoints = {}
        for vif in network_info or []:
            name = network_name(vif)
            if name in endpoints:
                raise _refusal(vif, "the instance has another port on this network, and Docker takes one")
            wiring(vif)
            # The first port's network has the default route.
            endpoints[name] = {**self._api.create_endpoint_config(**endpoint(vif)), "GwPriority": -len(endpoints)}
        with self._lock:
            for vif in network_info or []:
                self._ensure(vif)
                self._holders.setdefault(network_name(vif), set()).add(instance_uuid)
        return endpoints

    def unplug(self, instance_uuid: str, network_info=None) -> None:
        """Takes an instance off these networks and all that were plugged for it; removes those that nobody else is on."""
        with self._lock:
            plugged = {name for name, holders in self._holders.items() if instance_uuid in holders}
            for name in plugged | {network_name(vif) for vif in network_info or []}:
                self._release(instance_uuid, name)

    def _release(self, instance_uuid: str, name: str) -> None:
        holders = self._holders.setdefault(name, set())
        holders.discard(instance_uuid)
        if holders:
            return
        del self._holders[name]
        if any(it["Labels"][INSTANCE_LABEL] != instance_uuid for it in self._engine.listed(network=name)):
            return
        try:
            self._api.remove_network(name)
        except NotFound:
            return  # it has gone already
        except APIError as error:
            LOG.warning("network %s stays: %s", name, error)

    def _ensure(self, vif) -> None:
        name = network_name(vif)
        if any(found["Name"] == name for found in self._api.networks(names=[name])):
            return
        network = vif["network"]
        pools = [
            {"Subnet": subnet["cidr"], **({"Gateway": gateway} if (gateway := _gateway(subnet)) else {})}
            for subnet in network["subnets"]
        ]
        kind, options = wiring(vif)
        if mtu := network.get_meta("mtu"):
            options["com.docker.network.driver.mtu"] = str(mtu)
        try:
            self._api.create_network(
                name,
                driver=kind,
                options=options,
                ipam={"Driver": "default", "Config": pools},
                enable_ipv6=any(subnet["version"] == 6 for subnet in network["subnets"]),
                labels={LABEL: network["id"]},
            )
        except APIError as error:
            raise _refusal(vif, f"Docker cannot make network {name}: {error.explanation}") from error


def network_name(vif) -> str:
    """What a port's network is called in Docker, on every host."""
    return f"{PREFIX}{vif['network']['id']}"


def wiring(vif) -> tuple[str, dict[str, str]]:
    """Docker's driver for a port's network, and its options."""
    details = vif.get("details") or {}
    source, bridge = details.get("macvtap_source"), details.get("bridge_name") or vif["network"]["bridge"]
    if vif["type"] == model.VIF_TYPE_MACVTAP and source:
        return "macvlan", {"parent": source}
    if vif["type"] in (model.VIF_TYPE_OTHER, model.VIF_TYPE_BRIDGE) and bridge:
        return "bridge", {
            "com.docker.network.bridge.name": bridge,
            # The bridge is Neutron's: the gateway is somewhere else, and who translates addresses is, too.
            "com.docker.network.bridge.inhibit_ipv4": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "false",
        }
    told = f"its vif_type is {vif['type']} with {sorted(details)}"
    raise _refusal(vif, f"{told}; only `macvtap` with a macvtap_source and `other` with a bridge_name can be plugged")


def endpoint(vif) -> dict:
    """Address and MAC of a port, as Docker's client takes them; refuses a port that would come out otherwise."""
    by_version: dict[int, list[str]] = {4: [], 6: []}
    for subnet in vif["network"]["subnets"]:
        by_version[subnet["version"]] += [ip["address"] for ip in subnet["ips"]]
    if not any(by_version.values()):
        raise _refusal(vif, "it has no address, and Docker would give it one of its own")
    if any(len(addresses) > 1 for addresses in by_version.values()):
        raise _refusal(vif, "Docker gives a port one address of each family at most")
    settings = {"mac_address": vif["address"]}
    for version, addresses in by_version.items():
        if addresses:
            settings[f"ipv{version}_address"] = addresses[0]
    return settings


def _gateway(subnet) -> str | None:
    gateway = subnet.get("gateway")
    return gateway["address"] if gateway else None


def _refusal(vif, why: str) -> exception.VirtualInterfacePlugException:
    return exception.VirtualInterfacePlugException(f"port {vif['id']}: {why}")
