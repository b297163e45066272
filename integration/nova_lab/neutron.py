"""As much of Neutron as Nova asks for: `neutron.py ADDRESS PORT JOURNAL`. Two networks, ports with several bindings.

On the first a binding is a bridge, as a mechanism driver of one's own would answer it; on the second an interface, as
Neutron's macvtap driver does. What changes a binding goes to the journal, a JSON object a line, so that a test can see in
which order Nova did it. It is no model of Neutron: whatever Nova does not need is missing, and nothing is checked.
"""

import json
import re
import sys
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

BRIDGE = "brnova"
INTERFACE = "eth0"
MTU = 1450
ADDRESSES = range(100, 120)
EXTENSIONS = ("binding", "binding-extended")


@dataclass(frozen=True)
class Network:
    """A network with one subnet, of 256 addresses below a prefix."""

    id: str
    prefix: str
    vif_type: str
    vif_details: tuple[tuple[str, object], ...]

    def shown(self) -> dict:
        """As the API shows it."""
        return {
            "id": self.id, "name": self.prefix, "tenant_id": "lab", "project_id": "lab", "subnets": [self.id],
            "shared": True, "admin_state_up": True, "status": "ACTIVE", "mtu": MTU, "port_security_enabled": False,
        }  # fmt: skip

    def subnet(self) -> dict:
        """Its subnet, which has the same id."""
        return {
            "id": self.id, "name": self.prefix, "network_id": self.id, "tenant_id": "lab", "ip_version": 4,
            "cidr": f"{self.prefix}.0/24", "gateway_ip": f"{self.prefix}.1", "enable_dhcp": False,
            "dns_nameservers": [], "host_routes": [],
        }  # fmt: skip


NETWORK = Network(
    "6e6f7661-0000-4000-8000-000000000001", "10.77.0", "other", (("bridge_name", BRIDGE), ("connectivity", "l2"))
)
SECOND_NETWORK = Network(
    "6e6f7661-0000-4000-8000-000000000002", "10.78.0", "macvtap",
    (("macvtap_source", INTERFACE), ("macvtap_mode", "bridge"), ("physical_interface", INTERFACE)),
)  # fmt: skip
NETWORKS = {network.id: network for network in (NETWORK, SECOND_NETWORK)}


class Table:
    """The ports and their bindings."""

    def __init__(self, journal: str) -> None:
        self.ports: dict[str, dict] = {}
        self.bindings: dict[str, dict[str, str]] = {}
        self._journal = journal

    def note(self, what: str, port: str, host: str) -> None:
        """Writes down what was done to a binding."""
        with open(self._journal, "a") as journal:
            journal.write(json.dumps({"did": what, "port": port, "host": host}) + "\n")

    def create_port(self, wanted: dict) -> dict:
        """A port with a free address, or the one that is asked for."""
        network = NETWORKS[wanted["network_id"]]
        taken = {ip["ip_address"] for port in self.ports.values() for ip in port["fixed_ips"]}
        asked = (wanted.get("fixed_ips") or [{}])[0].get("ip_address")
        addresses = (f"{network.prefix}.{last}" for last in ADDRESSES)
        address = asked or next(address for address in addresses if address not in taken)
        second, _, last = map(int, address.split(".")[1:])
        port = {
            "id": str(uuid.uuid4()), "name": "", "network_id": network.id, "tenant_id": "lab", "project_id": "lab",
            "admin_state_up": True, "status": "ACTIVE", "device_id": "", "device_owner": "", "security_groups": [],
            "mac_address": f"fa:16:3e:00:{second:02x}:{last:02x}", "allowed_address_pairs": [], "extra_dhcp_opts": [],
            "fixed_ips": [{"subnet_id": network.id, "ip_address": address}], "resource_request": None,
            "binding:vnic_type": "normal", "binding:profile": {}, "binding:host_id": "",
        }  # fmt: skip
        self.ports[port["id"]] = port
        self.bindings[port["id"]] = {}
        return self.update_port(port["id"], {key: value for key, value in wanted.items() if key != "fixed_ips"})

    def update_port(self, port_id: str, wanted: dict) -> dict:
        """A new host is a new binding, the only one."""
        port = self.ports[port_id]
        port.update(wanted)
        host = port["binding:host_id"]
        if wanted.get("binding:host_id") and self.bindings[port_id].get(host) != "ACTIVE":
            self.bindings[port_id] = {host: "ACTIVE"}
            self.note("bind", port_id, host)
        return port

    def activate(self, port_id: str, host: str) -> None:
        """Makes one binding the active one."""
        self.bindings[port_id] = {
            name: "ACTIVE" if name == host else "INACTIVE" for name in {*self.bindings[port_id], host}
        }
        self.ports[port_id]["binding:host_id"] = host
        self.note("activate", port_id, host)


def shown(port: dict) -> dict:
    """A port with what its binding says."""
    if not port["binding:host_id"]:
        return {**port, "binding:vif_type": "unbound", "binding:vif_details": {}}
    network = NETWORKS[port["network_id"]]
    return {**port, "binding:vif_type": network.vif_type, "binding:vif_details": dict(network.vif_details)}


def binding(port: dict, host: str, status: str) -> dict:
    """One binding as the API shows it."""
    network = NETWORKS[port["network_id"]]
    return {
        "host": host, "status": status, "vif_type": network.vif_type, "vnic_type": "normal", "profile": {},
        "vif_details": dict(network.vif_details),
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One request."""

    table: Table

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        """Lists, and single things by their id."""
        path, query = self._path()
        table = self.table
        if found := re.fullmatch(r"ports/([^/]+)/bindings", path):
            port = table.ports[found[1]]
            return self._answer({"bindings": [binding(port, *it) for it in table.bindings[found[1]].items()]})
        if found := re.fullmatch(r"ports/([^/]+)/bindings/([^/]+)", path):
            status = table.bindings.get(found[1], {}).get(found[2])
            return self._answer({"binding": binding(table.ports[found[1]], found[2], status)}, 200 if status else 404)
        if found := re.fullmatch(r"(ports|networks|subnets)/([^/]+)", path):
            one = next((it for it in self._rows(found[1]) if it["id"] == found[2]), None)
            return self._answer({found[1][:-1]: one}, 200 if one else 404)
        if path.startswith("quotas/"):
            return self._answer({"quota": {"port": -1}})
        what = path.rpartition("/")[2]
        rows = self._rows(what)
        for key, values in query.items():
            if key not in ("fields", "limit", "sort_key", "sort_dir"):
                rows = [row for row in rows if key not in row or str(row[key]) in values]
        return self._answer({what: rows})

    def do_POST(self) -> None:  # noqa: N802
        """Makes ports and bindings."""
        path, body = self._path()[0], self._body()
        if path == "ports":
            return self._answer({"port": shown(self.table.create_port(body["port"]))}, 201)
        port_id, host = path.split("/")[1], body["binding"]["host"]
        self.table.bindings[port_id].setdefault(host, "INACTIVE")
        self.table.note("add", port_id, host)
        status = self.table.bindings[port_id][host]
        return self._answer({"binding": binding(self.table.ports[port_id], host, status)}, 201)

    def do_PUT(self) -> None:  # noqa: N802
        """Changes ports, and which binding is active."""
        path, body = self._path()[0], self._body()
        if found := re.fullmatch(r"ports/([^/]+)/bindings/([^/]+)/activate", path):
            self.table.activate(found[1], found[2])
            return self._answer({"binding": binding(self.table.ports[found[1]], found[2], "ACTIVE")})
        return self._answer({"port": shown(self.table.update_port(path.split("/")[1], body["port"]))})

    def do_DELETE(self) -> None:  # noqa: N802
        """Removes ports and bindings."""
        path = self._path()[0]
        if found := re.fullmatch(r"ports/([^/]+)/bindings/([^/]+)", path):
            self.table.bindings.get(found[1], {}).pop(found[2], None)
            self.table.note("delete", found[1], found[2])
        else:
            self.table.ports.pop(path.split("/")[1], None)
        return self._answer(None, 204)

    def _rows(self, what: str) -> list[dict]:
        return {
            "ports": [shown(port) for port in self.table.ports.values()],
            "networks": [network.shown() for network in NETWORKS.values()],
            "subnets": [network.subnet() for network in NETWORKS.values()],
            "extensions": [{"alias": alias, "name": alias} for alias in EXTENSIONS],
        }.get(what, [])

    def _path(self) -> tuple[str, dict]:
        parts = urlsplit(self.path)
        return parts.path.removeprefix("/v2.0/").removesuffix(".json"), parse_qs(parts.query)

    def _body(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def _answer(self, body: dict | None, status: int = 200) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serves until it is killed."""
    address, port, journal = sys.argv[1:]
    Handler.table = Table(journal)
    # One request at a time, and each on a connection of its own: so nothing here needs a lock.
    HTTPServer.request_queue_size = 64
    HTTPServer((address, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
