"""Instances as containers: what Nova says of one becomes a container's configuration, what it wants done is done.

A container never restarts by itself: Nova decides what runs, and a source that was given away must stay down. It refuses
what a container cannot have: volumes, config drives, injected files.
"""

import re
import shlex

from docker.errors import APIError, NotFound
from nova import exception
from nova.compute import power_state
from nova.virt import hardware
from oslo_log import log as logging

from .engine import LABEL, Engine
from .images import Images
from .vifs import Vifs

LOG = logging.getLogger(__name__)

# What one is called for people; programs find it by its label.
NAME_PREFIX = "nova-"
# Where a suspended instance's memory is, among its container's checkpoints.
SUSPENDED = "nova-suspended"
# What Docker counts as one processor's share.
CPU_SHARES = 1024
# As much as Nova's other drivers give.
CONSOLE_BYTES = 100 * 1024
CONSOLE_LINES = 2000
# What a soft reboot leaves a program to end by itself.
REBOOT_SECONDS = 30
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Of an image's properties, as Nova keeps them with the instance.
ENVIRONMENT_PROPERTY = "image_docker_env_"

STATES = {
    "created": power_state.SHUTDOWN,
    "running": power_state.RUNNING,
    "restarting": power_state.RUNNING,
    "paused": power_state.PAUSED,
    "removing": power_state.SHUTDOWN,
    "exited": power_state.SHUTDOWN,
    "dead": power_state.CRASHED,
}


class Instances:
    """The instances of this host."""

    def __init__(self, engine: Engine, images: Images, vifs: Vifs, runtime: str, pids_limit: int) -> None:
        self._engine = engine
        self._api = engine.api
        self._images = images
        self._vifs = vifs
        self._runtime = runtime
        self._pids_limit = pids_limit

    def spawn(self, context, instance, image_meta, network_info, *, power_on: bool) -> None:
        """Makes an instance's container. What is left of a failure Nova has destroyed."""
        image = self._images.ensure(context, instance.image_ref)
        endpoints = self._vifs.plug(instance.uuid, network_info)
        command = image_meta.properties.get("os_command_line")
        try:
            container = self._api.create_container(
                image,
                name=container_name(instance.uuid),
                hostname=instance.hostname,
                command=shlex.split(command) if command else None,
                environment=environment(instance),
                labels={LABEL: instance.uuid},
                host_config=self._api.create_host_config(
                    runtime=self._runtime,
                    network_mode=next(iter(endpoints), "none"),
                    **limits(instance.flavor, self._engine.info(), self._pids_limit),
                ),
                networking_config=self._api.create_networking_config(endpoints) if endpoints else None,
            )
            if power_on:
                self._engine.start(container["Id"])
        except APIError as error:
            raise exception.InstanceDeployFailure(reason=f"Docker: {error.explanation}") from error

    def container(self, instance) -> dict:
        """An instance's container in all detail."""
        found = self._engine.find(instance.uuid)
        if found is None:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        return found

    def destroy(self, instance, network_info) -> None:
        """Removes an instance's container, if there is one, and its networks, if it was the last on them."""
        found = self._engine.find(instance.uuid)
        if found is not None:
            try:
                self._api.remove_container(found["Id"], force=True, v=True)
            except NotFound:
                LOG.info("its container has gone meanwhile", instance=instance)
        self._vifs.unplug(instance.uuid, network_info)

    def info(self, instance) -> hardware.InstanceInfo:
        """How an instance is."""
        found = self.container(instance)
        state = STATES.get(found["State"]["Status"], power_state.NOSTATE)
        if state == power_state.SHUTDOWN and self._is_suspended(found):
            state = power_state.SUSPENDED
        return hardware.InstanceInfo(state=state, internal_id=found["Id"])

    def power_on(self, instance) -> None:
        """Starts an instance that is off; one that runs is left alone, as Docker does."""
        self._engine.start(self.container(instance)["Id"])

    def power_off(self, instance, timeout: int) -> None:
        """Stops an instance; its program has `timeout` seconds to end by itself."""
        found = self._unpaused(instance)
        self._api.stop(found["Id"], timeout=timeout)

    def reboot(self, instance, *, hard: bool) -> None:
        """Stops an instance, at once if `hard`, and starts it."""
        found = self._unpaused(instance)
        self._api.restart(found["Id"], timeout=0 if hard else REBOOT_SECONDS)

    def pause(self, instance) -> None:
        """Lets an instance stand still."""
        self._api.pause(self.container(instance)["Id"])

    def unpause(self, instance) -> None:
        """Lets it go on."""
        self._api.unpause(self.container(instance)["Id"])

    def suspend(self, instance) -> None:
        """Writes an instance to this host's disk and ends it."""
        found = self.container(instance)
        self._forget_suspension(found)
        self._engine.checkpoint(found["Id"], SUSPENDED)

    def resume(self, instance) -> None:
        """Has a suspended instance go on where it was."""
        found = self.container(instance)
        self._engine.start(found["Id"], SUSPENDED)
        self._engine.remove_checkpoint(found["Id"], SUSPENDED)

    def resume_on_boot(self, instance) -> None:
        """Starts an instance that ran when the host went down."""
        if self.info(instance).state == power_state.SHUTDOWN:
            self.power_on(instance)

    def console(self, instance) -> bytes:
        """The end of what an instance has written to its standard streams."""
        said = self._api.logs(self.container(instance)["Id"], stdout=True, stderr=True, tail=CONSOLE_LINES)
        return said[-CONSOLE_BYTES:]

    def _is_suspended(self, found: dict) -> bool:
        return SUSPENDED in self._engine.checkpoints(found["Id"])

    def _forget_suspension(self, found: dict) -> None:
        # One that a resume has left: the container has gone on since, and must not be taken back to it.
        if self._is_suspended(found):
            self._engine.remove_checkpoint(found["Id"], SUSPENDED)

    def _unpaused(self, instance) -> dict:
        # Docker cannot stop what does not run.
        found = self.container(instance)
        if found["State"]["Status"] == "paused":
            self._api.unpause(found["Id"])
        return found


def container_name(instance_uuid: str) -> str:
    """What an instance's container is called."""
    return f"{NAME_PREFIX}{instance_uuid}"


def environment(instance) -> dict[str, str]:
    """An instance's environment: of the image's properties, and above them its own metadata."""
    of_image = {
        name.removeprefix(ENVIRONMENT_PROPERTY): value
        for name, value in instance.system_metadata.items()
        if name.startswith(ENVIRONMENT_PROPERTY)
    }
    return {
        name: value for name, value in {**of_image, **instance.metadata}.items() if ENVIRONMENT_NAME.fullmatch(name)
    }


def limits(flavor, host: dict, pids_limit: int) -> dict:
    """A flavor as Docker's limits, of those which the host's cgroups can keep.

    An instance has a share of the processors by its vcpus, and no more than so many of them.
    """
    found = {"mem_limit": flavor.memory_mb << 20, "cpu_shares": CPU_SHARES * flavor.vcpus}
    if host.get("SwapLimit"):
        found["memswap_limit"] = (flavor.memory_mb + flavor.swap) << 20
    if host.get("CpuCfsQuota"):
        found["nano_cpus"] = flavor.vcpus * 10**9
    pids = int(flavor.extra_specs.get("godwit:pids_limit", pids_limit))
    if pids and host.get("PidsLimit"):
        found["pids_limit"] = pids
    return found
