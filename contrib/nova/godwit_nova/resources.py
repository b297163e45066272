"""What this host has to give, for Placement and for `openstack hypervisor show`.

It counts processors and memory as Docker does, and disk where Docker keeps its layers.
"""

import json
import os

from nova.objects import fields
from nova.virt import node
from oslo_utils import versionutils

from .engine import Engine

GIB = 1 << 30
MIB = 1 << 20
DOCKER = fields.HVType.DOCKER


class Resources:
    """The inventory of this host."""

    def __init__(self, engine: Engine, storage_path: str | None) -> None:
        self._engine = engine
        self._storage_path = storage_path

    def available(self, hostname: str) -> dict:
        """What the resource tracker asks for."""
        host = self._engine.info()
        disk = self._disk(host)
        architecture = fields.Architecture.canonicalize(host["Architecture"])
        return {
            "uuid": node.get_local_node_uuid(),
            "hypervisor_hostname": hostname,
            "hypervisor_type": DOCKER,
            "hypervisor_version": versionutils.convert_version_to_int(self._engine.version.partition("+")[0]),
            "cpu_info": json.dumps({"arch": architecture}),
            "numa_topology": None,
            "supported_instances": [(architecture, DOCKER, fields.VMMode.EXE)],
            "vcpus": host["NCPU"],
            "vcpus_used": 0,  # Nova counts by itself what its instances use
            "memory_mb": host["MemTotal"] // MIB,
            "memory_mb_used": _memory_used_bytes() // MIB,
            "local_gb": disk.f_blocks * disk.f_frsize // GIB,
            "local_gb_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize // GIB,
            "disk_available_least": disk.f_bavail * disk.f_frsize // GIB,
        }

    def inventory(self, ratios: dict[str, float], reserved: dict[str, int]) -> dict[str, dict]:
        """What Placement keeps, with the operator's ratios and reserves."""
        host = self._engine.info()
        disk = self._disk(host)
        totals = {
            "VCPU": host["NCPU"],
            "MEMORY_MB": host["MemTotal"] // MIB,
            "DISK_GB": disk.f_blocks * disk.f_frsize // GIB,
        }
        return {
            what: {
                "total": total,
                "min_unit": 1,
                "max_unit": total,
                "step_size": 1,
                "allocation_ratio": ratios[what],
                "reserved": reserved[what],
            }
            for what, total in totals.items()
        }

    def _disk(self, host: dict) -> os.statvfs_result:
        return os.statvfs(self._storage_path or host["DockerRootDir"])


def _memory_used_bytes() -> int:
    with open("/proc/meminfo") as meminfo:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in meminfo}
    return (kilobytes["MemTotal"] - kilobytes["MemAvailable"]) << 10
