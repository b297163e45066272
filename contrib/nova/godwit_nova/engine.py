"""The Docker engine of this host: a connection to it, and the containers that are Nova's.

A container is an instance's by its label, never by its name. Waits have the client's deadline; errors of Docker pass
through as docker.errors.DockerException, whose text is Docker's own.
"""

import docker
from docker.errors import DockerException, NotFound

LABEL = "io.godwit.nova.instance"
# The longest silence of a busy engine: it commits or removes a large layer and says nothing meanwhile.
SILENCE_SECONDS = 300
# Nova asks from as many threads as it has calls under way.
CONNECTIONS = 32
# Docker 25 is the first that takes several networks, with addresses, when a container is created.
OLDEST_API = (1, 44)


class EngineUnusable(Exception):
    """Docker does not answer, or is too old; the text is for the operator."""


class Engine:
    """Docker, by its socket."""

    def __init__(self, socket_path: str) -> None:
        try:
            self.docker = docker.DockerClient(
                base_url=f"unix://{socket_path}", timeout=SILENCE_SECONDS, max_pool_size=CONNECTIONS
            )
            self.api = self.docker.api
            self.version = self.api.version()["Version"]
        except DockerException as error:
            raise EngineUnusable(f"Docker does not answer on {socket_path} ({error}): start it on this host") from None
        if tuple(map(int, self.api.api_version.split("."))) < OLDEST_API:
            raise EngineUnusable(f"Docker {self.version} on {socket_path} is too old: 25 or newer is needed")

    def info(self) -> dict:
        """What Docker says of the host and of itself."""
        return self.api.info()

    def listed(self, **filters: str) -> list[dict]:
        """All containers of Nova's, in whatever state, as Docker lists them."""
        label = f"{LABEL}={filters.pop('instance')}" if "instance" in filters else LABEL
        return self.api.containers(all=True, filters={"label": label, **filters})

    def find(self, instance_uuid: str) -> dict | None:
        """An instance's container in all detail, if this host has it."""
        for container in self.listed(instance=instance_uuid):
            try:
                return self.api.inspect_container(container["Id"])
            except NotFound:
                continue  # it has gone since it was listed
        return None

    def checkpoints(self, container_id: str) -> list[str]:
        """The names of a container's checkpoints."""
        answer = self._call("GET", f"/containers/{container_id}/checkpoints").json()
        return [checkpoint["Name"] for checkpoint in answer or []]

    def checkpoint(self, container_id: str, name: str) -> None:
        """Writes a running container to disk and ends it."""
        self._call("POST", f"/containers/{container_id}/checkpoints", json={"CheckpointID": name, "Exit": True})

    def start(self, container_id: str, checkpoint: str | None = None) -> None:
        """Starts a container, from a checkpoint if one is named."""
        params = {} if checkpoint is None else {"checkpoint": checkpoint}
        self._call("POST", f"/containers/{container_id}/start", params=params)

    def remove_checkpoint(self, container_id: str, name: str) -> None:
        """Removes a checkpoint's files."""
        self._call("DELETE", f"/containers/{container_id}/checkpoints/{name}")

    def _call(self, method: str, path: str, **arguments):
        # The SDK has no calls for checkpoints; its client is a session of requests that knows the way to the socket.
        url = f"{self.api.base_url}/v{self.api.api_version}{path}"
        answer = self.api.request(method, url, timeout=SILENCE_SECONDS, **arguments)
        if not answer.ok:
            try:
                said = answer.json()["message"]
            except (ValueError, KeyError):
                said = answer.reason
            raise DockerException(f"{method} {path}: {said}")
        return answer
