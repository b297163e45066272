"""The files that the services read: Nova's as docs/nova.md has them, and what a lab needs in place of Keystone.

Everything lies in one directory, and goes with the lab.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lab.hosts import Host
from lab.layout import HOST_ADDRESSES, WIRE_ADDRESS

from .backing import RABBITMQ_PORT, database
from .venv import Venv

API_PORT, PLACEMENT_PORT, GLANCE_PORT, NEUTRON_PORT = 8774, 8778, 9292, 9696
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Places:
    """Where things lie."""

    run: Path

    @property
    def etc(self) -> Path:
        """Configuration files."""
        return self.run / "etc"

    @property
    def log(self) -> Path:
        """What the services have said."""
        return self.run / "log"

    @property
    def python(self) -> Path:
        """Modules of the lab's own that the services load."""
        return self.run / "python"

    @property
    def bindings(self) -> Path:
        """Neutron's journal."""
        return self.run / "bindings"


def write(places: Places, venv: Venv, hosts: list[Host]) -> None:
    """Writes all of it."""
    for directory in (places.etc, places.log, places.python, places.run / "images"):
        directory.mkdir(parents=True)
    (places.etc / "nova.conf").write_text(_nova(places))
    for host in hosts:
        (places.run / host.name).mkdir()
        (places.etc / f"{host.name}.conf").write_text(_compute(places, host))
    (places.etc / "placement.conf").write_text(_placement(places))
    (places.etc / "glance-api.conf").write_text(_glance(places))
    for name in ("nova/api-paste.ini", "glance/glance-api-paste.ini"):
        shipped = (venv.path / "etc" / name).read_text()
        ours = re.sub(r"= keystonemiddleware\.auth_token:filter_factory", "= serve:administrator", shipped)
        (places.etc / Path(name).name).write_text(ours)
    (places.python / "serve.py").write_text((HERE / "serve.py").read_text())


def _nova(places: Places) -> str:
    return f"""[DEFAULT]
transport_url = rabbit://guest:guest@{WIRE_ADDRESS}:{RABBITMQ_PORT}/
compute_driver = godwit.GodwitDriver
state_path = {places.run}/ctl
log_date_format = %H:%M:%S
vif_plugging_timeout = 0
vif_plugging_is_fatal = false
# What tests do, not what time does.
sync_power_state_interval = -1
heal_instance_info_cache_interval = -1
max_concurrent_live_migrations = 4
[compute]
live_migration_wait_for_vif_plug = false
[api_database]
connection = {database("nova_api")}
[database]
connection = {database("nova")}
[wsgi]
api_paste_config = {places.etc}/api-paste.ini
[conductor]
workers = 1
[scheduler]
workers = 1
[placement]
auth_type = admin_token
endpoint = http://{WIRE_ADDRESS}:{PLACEMENT_PORT}
endpoint_override = http://{WIRE_ADDRESS}:{PLACEMENT_PORT}
token = admin
[glance]
api_servers = http://{WIRE_ADDRESS}:{GLANCE_PORT}
[neutron]
auth_type = none
endpoint = http://{WIRE_ADDRESS}:{NEUTRON_PORT}
endpoint_override = http://{WIRE_ADDRESS}:{NEUTRON_PORT}
[vnc]
enabled = false
[filter_scheduler]
enabled_filters = ComputeFilter
[oslo_concurrency]
lock_path = {places.run}/lock
"""


def _compute(places: Places, host: Host) -> str:
    # A socket's path reaches it from any network namespace.
    return f"""[DEFAULT]
host = {host.name}
my_ip = {HOST_ADDRESSES[host.name]}
state_path = {places.run}/{host.name}
[oslo_concurrency]
lock_path = {places.run}/{host.name}/lock
[godwit]
docker_socket = {host.path("/run/docker.sock")}
agent_socket = {host.path("/run/godwit/agent.sock")}
storage_path = {host.disk}
"""


def _placement(places: Places) -> str:
    return f"""[DEFAULT]
log_file = {places.log}/placement.log
[api]
auth_strategy = noauth2
[placement_database]
connection = {database("placement")}
[oslo_concurrency]
lock_path = {places.run}/lock
"""


def _glance(places: Places) -> str:
    return f"""[DEFAULT]
log_file = {places.log}/glance-api.log
enabled_backends = local:file
worker_self_reference_url = http://{WIRE_ADDRESS}:{GLANCE_PORT}
[database]
connection = {database("glance")}
[glance_store]
default_backend = local
# It is made whether or not it is used.
filesystem_store_datadir = {places.run}/images
[local]
filesystem_store_datadir = {places.run}/images
[paste_deploy]
flavor = keystone
config_file = {places.etc}/glance-api-paste.ini
[oslo_concurrency]
lock_path = {places.run}/lock
"""
