"""Servers as a user of the cloud has them: boot, move, watch, delete. What a test expects of them is not said here."""

import subprocess
from dataclasses import dataclass, field

from lab.commands import LabError
from lab.hosts import Host

from . import api
from .neutron import NETWORK

ENDED = ("completed", "failed", "error", "cancelled")
SAVE_DEADLINE_SECONDS = 120.0


@dataclass
class Server:
    """A server by its id."""

    id: str
    name: str
    # Migrations whose ending has been seen.
    seen: set[int] = field(default_factory=set)

    def shown(self) -> dict:
        """All that the API says."""
        return api.nova("GET", f"/servers/{self.id}")["server"]

    @property
    def host(self) -> str:
        """Where Nova says that it is."""
        return self.shown()["OS-EXT-SRV-ATTR:host"]

    @property
    def address(self) -> str:
        """Its address on the lab's network."""
        (addresses,) = self.shown()["addresses"].values()
        return addresses[0]["addr"]

    @property
    def container(self) -> str:
        """Its container's name."""
        return f"nova-{self.id}"

    def until(self, status: str, *, may_fail: bool = False) -> dict:
        """Waits for a status with nothing under way; ERROR ends the wait, unless it is expected."""

        def look() -> dict | None:
            shown = self.shown()
            if shown["status"] == "ERROR" and not may_fail:
                raise LabError(f"server {self.name} is in ERROR: {shown.get('fault')}")
            return shown if shown["status"] == status and shown["OS-EXT-STS:task_state"] is None else None

        return api.until(f"server {self.name} to be {status}", look)

    def act(self, action: str, arguments: object = None, *, until: str | None = None) -> dict:
        """Does something to it, and waits for the status that it is to lead to."""
        answer = api.act(self.id, action, arguments)
        if until is not None:
            self.until(until)
        return answer

    # -- migrations ----------------------------------------------------------------------------------------------------

    def begin_migration(self, host: str) -> None:
        """Asks for a live migration."""
        self.seen |= {migration["id"] for migration in self.migrations()}
        self.act("os-migrateLive", {"host": host, "block_migration": "auto"})

    def migrations(self) -> list[dict]:
        """All of its migrations."""
        return api.nova("GET", f"/os-migrations?instance_uuid={self.id}")["migrations"]

    def migration(self) -> dict | None:
        """The one that was asked for last, once Nova knows of it."""
        return next((found for found in self.migrations() if found["id"] not in self.seen), None)

    def until_migration(self, *statuses: str) -> dict:
        """Waits for a status of it."""
        wanted = statuses or ENDED

        def look() -> dict | None:
            found = self.migration()
            if found and found["status"] in ENDED and found["status"] not in wanted:
                raise LabError(f"the migration of {self.name} is {found['status']}, wanted {wanted}: {self.faults()}")
            return found if found and found["status"] in wanted else None

        return api.until(f"the migration of {self.name} to be {' or '.join(wanted)}", look)

    def faults(self) -> list[str]:
        """Why its last actions have failed."""
        texts = []
        for action in api.nova("GET", f"/servers/{self.id}/os-instance-actions")["instanceActions"][:3]:
            shown = api.nova("GET", f"/servers/{self.id}/os-instance-actions/{action['request_id']}")["instanceAction"]
            texts += [event["details"] for event in shown["events"] if event.get("details")]
        return texts

    def in_progress(self) -> str:
        """The path of its migration that is under way, in the API."""
        return f"/servers/{self.id}/migrations/{self.until_migration('running')['id']}"

    # -- its end -------------------------------------------------------------------------------------------------------

    def delete(self) -> None:
        """Deletes it and waits until Nova knows of none."""
        api.nova("DELETE", f"/servers/{self.id}")

        def is_gone() -> bool:
            try:
                self.shown()
            except api.Refused:
                return True
            return False

        api.until(f"server {self.name} to be gone", is_gone)

    def allocated_to(self) -> set[str]:
        """The resource providers that Placement has it on, by their names."""
        names = {it["uuid"]: it["name"] for it in api.placement("/resource_providers")["resource_providers"]}
        allocations = api.placement(f"/allocations/{self.id}")["allocations"]
        return {names[provider] for provider in allocations}


def boot(name: str, image: str, flavor: str, *, host: str, networks: object = None, **more: object) -> Server:
    """Boots a server and waits until it is active."""
    wanted = {
        "name": name, "imageRef": image, "flavorRef": flavor, "host": host, **more,
        "networks": [{"uuid": NETWORK.id}] if networks is None else networks,
    }  # fmt: skip
    server = Server(api.nova("POST", "/servers", {"server": wanted})["server"]["id"], name)
    server.until("ACTIVE")
    return server


def make_flavor(name: str, *, memory_mb: int, vcpus: int = 1) -> str:
    """A flavor's id."""
    wanted = {"name": name, "ram": memory_mb, "vcpus": vcpus, "disk": 1, "id": name}
    return api.nova("POST", "/flavors", {"flavor": wanted})["flavor"]["id"]


def upload_image(name: str, host: Host, tag: str) -> str:
    """Uploads what `docker save` writes of an image on a host; returns Glance's id of it."""
    saved = subprocess.run(host.command(["docker", "save", tag]), capture_output=True, timeout=SAVE_DEADLINE_SECONDS)
    if saved.returncode != 0:
        raise LabError(f"docker save {tag}: {saved.stderr.decode(errors='replace')}")
    wanted = {"name": name, "container_format": "docker", "disk_format": "raw", "visibility": "public",
              "docker_env_FROM_IMAGE": "image"}  # fmt: skip
    image = api.glance("POST", "/images", wanted)["id"]
    api.glance("PUT", f"/images/{image}/file", saved.stdout, {"Content-Type": "application/octet-stream"})
    return image
