"""Live migration: Nova's calls, each as one question to the agent. Nothing about how a container moves is known here.

The rule of this file: a move has one ending, the agent's word is the only source for it, and Nova hears it once: by
`post_method` if the container is the destination's, by `recover_method` if it is still here. If the agent cannot be
asked for so long that nobody knows, neither is called; the exception makes Nova put the instance into ERROR.
"""

import enum
import json
import threading
import time

import requests
from docker.errors import DockerException
from nova import exception
from nova.objects import migrate_data as migrate_data_objects
from nova.virt import event as virt_event
from oslo_log import log as logging

from .agent import Agent, AgentError, AgentRefused
from .engine import Engine
from .images import Images
from .instances import container_name
from .progress import Progress
from .vifs import Vifs

LOG = logging.getLogger(__name__)

# How often an agent is asked for the ending of a move that nobody tells of any more.
ASK_SECONDS = 0.5
# An agent that was killed is started again by its supervisor within seconds, an unreachable peer may take an operator.
# After this time a thread of nova-compute is no longer the place to wait.
SETTLE_SECONDS = 3600
# Long after a move's commit the memory may still follow. Neutron then hears early where the port is; of a move that
# is over sooner it hears at the end.
POST_COPY_SECONDS = 2.0


class Ending(enum.Enum):
    """How a move ended, by what Nova must be told."""

    MOVED = "moved"
    STAYED = "failed"
    CANCELLED = "cancelled"


# The agent's words for a move that is over; of one that recovery has ended it says only that it is.
ENDINGS = {
    "moved": Ending.MOVED,
    "aborted": Ending.CANCELLED,
    "refused": Ending.STAYED,
    "failed": Ending.STAYED,
}
# What an agent or a Docker that is being started again looks like.
UNKNOWING = (AgentError, DockerException, requests.RequestException)
OPEN = ("running", "recovering", "unconfirmed")


class Migrations:
    """The moves from this host and to it that Nova has asked for."""

    def __init__(self, agent: Agent, engine: Engine, images: Images, vifs: Vifs, options: dict, emit_event) -> None:
        self._agent = agent
        self._engine = engine
        self._images = images
        self._vifs = vifs
        self._options = options
        self._emit_event = emit_event
        self._lock = threading.Lock()
        # The agent's name of the move of each instance that is on its way; None while it has none yet.
        self._under_way: dict[str, str | None] = {}
        self._unwanted: set[str] = set()

    # -- before the move -----------------------------------------------------------------------------------------------

    def check_destination(self, instance) -> migrate_data_objects.LibvirtLiveMigrateData:
        """At the destination: says who it is; the source's agent looks at both hosts in one plan."""
        try:
            told = self._agent.check()
        except AgentError as error:
            raise exception.MigrationPreCheckError(reason=str(error)) from None
        # The plan finds the networks as the container will.
        self._vifs.plug(instance.uuid, instance.get_network_info())
        return new_data(instance.uuid, told["host"])

    def cleanup_check(self, data) -> None:
        """At the destination: takes back what the check has made; the real preparation makes it anew."""
        self._vifs.unplug(json.loads(data.filename)["instance"])

    def check_source(self, instance, data, block_device_info) -> migrate_data_objects.LibvirtLiveMigrateData:
        """At the source: every reason why the move would be refused becomes Nova's error."""
        if (block_device_info or {}).get("block_device_mapping"):
            raise exception.MigrationPreCheckError(reason="the instance has volumes, which a container cannot have")
        destination = json.loads(data.filename)["agent"]
        try:
            found = self._agent.plan(self._container_id(instance), destination, self._options)
        except AgentError as error:
            raise exception.MigrationPreCheckError(reason=str(error)) from None
        problems = [finding for finding in found["findings"] if finding["level"] == "problem"]
        if problems:
            raise exception.MigrationPreCheckError(reason="; ".join(map(sentence, problems)))
        return data

    def prepare(self, context, instance, network_info, data) -> migrate_data_objects.LibvirtLiveMigrateData:
        """At the destination: networks as Neutron has bound the ports there, and the image."""
        bound = [vif.get_dest_vif() for vif in data.vifs] if "vifs" in data and data.vifs else network_info
        self._vifs.plug(instance.uuid, bound)
        try:
            self._images.ensure(context, instance.image_ref)
        except exception.NovaException as error:
            # It may be deleted by now, or Glance away: the agents bring the layers along then.
            LOG.info("its image does not come from Glance: %s", error, instance=instance)
        return data

    # -- the move ------------------------------------------------------------------------------------------------------

    def run(self, context, instance, dest, post_method, recover_method, block_migration, data) -> None:
        """At the source, in a thread of Nova's: moves an instance and tells Nova how that ended."""
        with self._lock:
            self._under_way[instance.uuid] = None
        try:
            ending = self._move(instance, data)
        finally:
            with self._lock:
                self._under_way.pop(instance.uuid, None)
                self._unwanted.discard(instance.uuid)
        if ending is Ending.MOVED:
            post_method(context, instance, dest, block_migration, data)
        else:
            recover_method(context, instance, dest, data, migration_status=ending.value)

    def _move(self, instance, data) -> Ending:
        move = None
        try:
            container = self._container_id(instance)
            destination = json.loads(data.filename)["agent"]
            progress = Progress(instance, data.migration)
            committed_at = None
            for event in self._agent.migrate(container, destination, self._options):
                if "migration" in event:
                    move = event["migration"]
                    self._begun(instance, move)
                elif "message" in event:
                    LOG.error("move %s: %s", move, event["message"], instance=instance)
                elif (event.get("phase"), event.get("state")) == ("commit", "end"):
                    committed_at = time.monotonic()
                progress.hear(event)
                if committed_at is not None and time.monotonic() - committed_at > POST_COPY_SECONDS:
                    committed_at = None
                    self._tell_post_copy(instance, progress)
        except (AgentRefused, exception.NovaException) as refused:
            if move is None:
                LOG.error("it is not moved: %s", refused, instance=instance)
                return Ending.STAYED
            LOG.exception("move %s is no longer followed", move, instance=instance)
        except Exception:
            # Whatever it was, it does not say where the container is.
            LOG.exception("move %s is no longer followed", move, instance=instance)
        return self.settle(instance, move)

    def settle(self, instance, move: str | None) -> Ending:
        """Asks the agent for a move's ending until it knows; `None` for a move whose name was never heard."""
        ends_at = time.monotonic() + SETTLE_SECONDS
        logged = None
        while True:
            try:
                move = move or self.find(instance)
                state = self._state(move)
                if state in ENDINGS:
                    return ENDINGS[state]
                if state in (None, "recovered"):
                    return self._by_facts(instance)
                said = f"the agent says {state}"
            except UNKNOWING as missing:
                said = str(missing)
            if said != logged:
                logged = said
                LOG.info("waiting for the ending of move %s: %s", move, said, instance=instance)
            if time.monotonic() > ends_at:
                raise exception.MigrationError(
                    reason=f"nobody can say where the container is: {said}; see `godwit migrations show {move or ''}`"
                )
            time.sleep(ASK_SECONDS)

    def find(self, instance) -> str | None:
        """The agent's name of an instance's move away from here that is not over."""
        return next((move["migration"] for move in self._moves_of(instance) if move["state"] in OPEN), None)

    def _moves_of(self, instance) -> list[dict]:
        """What the agent remembers of an instance's moves away from here, the newest first."""
        found = self._engine.find(instance.uuid)
        name = found["Name"].lstrip("/") if found else container_name(instance.uuid)
        return [move for move in self._agent.migrations() if (move["role"], move["container"]) == ("source", name)]

    def _state(self, move: str | None) -> str | None:
        """A move's state; `None` if the agent knows of none."""
        if move is None:
            return None
        try:
            return self._agent.migration(move)["migration"]["state"]
        except AgentRefused as refused:
            if refused.status == 404:
                return None
            raise

    def _by_facts(self, instance) -> Ending:
        """Of a move that is over or never was: an agent removes the source's container when it is the destination's."""
        if self._engine.find(instance.uuid) is not None:
            return Ending.STAYED
        if any(move["state"] in ("moved", "recovered") for move in self._moves_of(instance)[:1]):
            return Ending.MOVED
        raise exception.MigrationError(reason="its container is not on this host, and the agent knows of no move")

    # -- what others want of a move ------------------------------------------------------------------------------------

    def abort(self, instance) -> None:
        """Asks for a move to be given up; refused from its commit on."""
        with self._lock:
            if instance.uuid in self._under_way and self._under_way[instance.uuid] is None:
                self._unwanted.add(instance.uuid)
                return
        self._ask(instance, self._agent.abort, "aborted")

    def force_complete(self, instance) -> None:
        """Has a move freeze its container now; what is left of its memory follows, in the mode that was taken."""
        self._ask(instance, self._agent.force_complete, "forced to complete")

    def _ask(self, instance, action, what: str) -> None:
        try:
            move = self._under_way.get(instance.uuid) or self.find(instance)
            if move is None:
                raise exception.MigrationError(reason="the agent knows of no move of this instance")
            action(move)
        except AgentError as error:
            raise exception.MigrationError(reason=f"it cannot be {what}: {error}") from None

    def _begun(self, instance, move: str) -> None:
        LOG.info("move %s begins", move, instance=instance)
        with self._lock:
            self._under_way[instance.uuid] = move
            unwanted = instance.uuid in self._unwanted
        if unwanted:
            self._agent.abort(move)

    def _tell_post_copy(self, instance, progress: Progress) -> None:
        progress.post_copy()
        self._emit_event(
            virt_event.LifecycleEvent(instance.uuid, virt_event.EVENT_LIFECYCLE_POSTCOPY_STARTED)
        )

    def _container_id(self, instance) -> str:
        found = self._engine.find(instance.uuid)
        if found is None:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        return found["Id"]


def new_data(instance_uuid: str, destination: str) -> migrate_data_objects.LibvirtLiveMigrateData:
    """What goes from check to check. Nova calls all of the rollback for libvirt's class only, and its conductor knows no
    class of ours, so that it is libvirt's: `filename` carries what we have to say.
    """
    return migrate_data_objects.LibvirtLiveMigrateData(
        filename=json.dumps({"agent": destination, "instance": instance_uuid}),
        block_migration=True,
        disk_over_commit=False,
        is_shared_instance_path=False,
        is_shared_block_storage=False,
        bdms=[],
    )


def sentence(finding: dict) -> str:
    """A finding of a plan, for an operator."""
    remedy = f" ({finding['remedy']})" if finding["remedy"] else ""
    return f"{finding['host']}: {finding['text']}{remedy}"
