"""Glance's images in Docker, and containers as images in Glance. What goes over is what `docker save` writes.

An image is known in Docker by a name made of its Glance id and of Glance's digest of its content, so that neither another
image of the same name nor older content is taken for it. Nothing is written to a disk on the way.
"""

import io
from collections.abc import Iterator

from docker.errors import DockerException, ImageNotFound
from nova import exception
from nova.image import glance
from oslo_concurrency import lockutils
from oslo_log import log as logging

from .engine import Engine

LOG = logging.getLogger(__name__)

REPOSITORY = "glance.godwit.local"
CHUNK_BYTES = 1 << 20
# A tag has 128 characters at most.
DIGEST_CHARACTERS = 64


class Images:
    """The images of this host."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._glance = glance.API()

    def ensure(self, context, image_id: str) -> str:
        """Docker's name of an image of Glance, which is loaded if it is missing."""
        image = self._glance.get(context, image_id)
        if image.get("container_format") != "docker":
            raise exception.ImageUnacceptable(
                image_id=image_id,
                reason=f"its container_format is {image.get('container_format')}; upload what `docker save` "
                "writes with --container-format docker --disk-format raw",
            )
        name = reference(image)
        with lockutils.lock(name):
            if self._id_of(name) is None:
                self._load(context, image_id, name)
        return name

    def _load(self, context, image_id: str, name: str) -> None:
        api = self._engine.docker.images
        had = {tag for image in api.list() for tag in image.tags}
        try:
            loaded = api.load(self._glance.download(context, image_id))
        except DockerException as error:
            raise exception.ImageUnacceptable(image_id=image_id, reason=f"Docker cannot load it: {error}") from error
        if len(loaded) != 1:
            raise exception.ImageUnacceptable(
                image_id=image_id, reason=f"it holds {len(loaded)} images: save one image by its name"
            )
        image = loaded[0]
        repository, _, tag = name.rpartition(":")
        image.tag(repository, tag)
        # The names in it were its uploader's, and say nothing about which image is which on this host.
        for tag in set(image.tags) - had - {name}:
            api.remove(tag, noprune=True)
        LOG.info("Glance image %s is in Docker as %s", image_id, image.id)

    def _id_of(self, name: str) -> str | None:
        try:
            return self._engine.api.inspect_image(name)["Id"]
        except ImageNotFound:
            return None

    def upload(self, context, container_id: str, image_id: str, before_upload) -> None:
        """Makes a container's file system, as it is now, the content of an image that Glance has made room for."""
        container = self._engine.docker.containers.get(container_id)
        committed = container.commit(pause=True)
        try:
            before_upload()
            wanted = self._glance.get(context, image_id)
            metadata = {
                "name": wanted["name"],
                "status": "active",
                "container_format": "docker",
                "disk_format": "raw",
                "properties": {},
            }
            with io.BufferedReader(Chunks(committed.save(chunk_size=CHUNK_BYTES)), CHUNK_BYTES) as content:
                self._glance.update(context, image_id, metadata, data=content, purge_props=False)
        finally:
            self._engine.docker.images.remove(committed.id, noprune=False)

    def remove_unused(self, wanted: set[str]) -> None:
        """Removes what no instance of this host is made of. `wanted` are ids of Glance."""
        in_use = {container["ImageID"] for container in self._engine.api.containers(all=True)}
        for image in self._engine.docker.images.list():
            for name in image.tags:
                repository, _, _ = name.rpartition(":")
                ours, _, image_id = repository.rpartition("/")
                if ours == REPOSITORY and image_id not in wanted and image.id not in in_use:
                    LOG.info("image %s is used no more and removed", name)
                    self._engine.docker.images.remove(name)


def reference(image: dict) -> str:
    """What an image of Glance is called in Docker."""
    digest = image.get("os_hash_value") or image.get("checksum")
    if not digest:
        raise exception.ImageUnacceptable(image_id=image["id"], reason="it has no content yet")
    return f"{REPOSITORY}/{image['id']}:{digest[:DIGEST_CHARACTERS]}"


class Chunks(io.RawIOBase):
    """A file to read from, for who cannot take pieces as they come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            try:
                self._rest = next(self._pieces)
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
