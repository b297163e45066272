"""The driver that Nova loads: each of its methods is handed to the module that knows about it.

It has the methods that Nova's contract names and keeps nothing but its parts. What is not here is refused by Nova's base
class with NotImplementedError.
"""

import nova.conf
from nova import context as nova_context
from nova import exception, objects
from nova.compute import task_states
from nova.virt import driver, node
from oslo_concurrency import processutils
from oslo_log import log as logging

from . import conf  # noqa: F401 (it registers the options)
from .agent import Agent, AgentError
from .engine import LABEL, Engine, EngineUnusable
from .images import Images
from .instances import Instances
from .migration import Migrations
from .resources import Resources
from .restart import finish_migrations
from .vifs import Vifs

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)


class GodwitDriver(driver.ComputeDriver):
    """Docker containers as instances, moved by Godwit's agent."""

    capabilities = {
        **driver.ComputeDriver.capabilities,
        "has_imagecache": True,
        "supports_image_type_raw": True,
    }

    # -- the host ------------------------------------------------------------------------------------------------------

    def init_host(self, host):
        """Fails, and so stops nova-compute, where Docker or the agent cannot be used."""
        settings = CONF.godwit
        self._host = host
        try:
            engine = self._engine = Engine(settings.docker_socket)
            agent = Agent(settings.agent_socket)
            told = agent.check()
        except (EngineUnusable, AgentError) as error:
            raise exception.HypervisorUnavailable(message=str(error)) from None
        LOG.info("Docker %s, agent %s of host %s", engine.version, told["version"], told["host"])
        self._images = Images(engine)
        self._vifs = Vifs(engine)
        self._instances = Instances(engine, self._images, self._vifs, settings.runtime, settings.pids_limit)
        self._resources = Resources(engine, settings.storage_path)
        options = {"mode": settings.migration_mode, "downtime_ms": settings.migration_downtime_ms}
        self._migrations = Migrations(agent, engine, self._images, self._vifs, options, self.emit_event)
        if not hasattr(driver.ComputeDriver, "process_instances_at_startup"):
            # Nova 33 calls its driver nowhere else before it resets what was migrating.
            admin = nova_context.get_admin_context()
            self.process_instances_at_startup(admin, objects.InstanceList.get_by_host(admin, host))

    def process_instances_at_startup(self, context, instances):
        """Finishes what a nova-compute that died has left of live migrations."""
        finish_migrations(context, instances, self._migrations, self.virtapi._compute)
        return type(instances)(context, objects=[one for one in instances if one.host == self._host])

    def get_available_nodes(self, refresh=False):
        """The one node that this host is."""
        return [self._host]

    def get_nodenames_by_uuid(self, refresh=False):
        """The same with the identity that Nova keeps on its disk."""
        return {node.get_local_node_uuid(): self._host}

    def get_available_resource(self, nodename):
        """What the resource tracker asks for."""
        return self._resources.available(nodename)

    def update_provider_tree(self, provider_tree, nodename, allocations=None):
        """Inventories for Placement."""
        ratios = self._get_allocation_ratios(provider_tree.data(nodename).inventory)
        reserved = {
            "VCPU": CONF.reserved_host_cpus,
            "MEMORY_MB": CONF.reserved_host_memory_mb,
            "DISK_GB": self._get_reserved_host_disk_gb_from_config(),
        }
        provider_tree.update_inventory(nodename, self._resources.inventory(ratios, reserved))

    def get_host_ip_addr(self):
        """Where other hosts reach this one."""
        return CONF.my_ip

    def get_host_uptime(self):
        """What `uptime` says."""
        return processutils.execute("uptime", env_variables={"LANG": "C", "PATH": "/usr/bin:/bin"})[0]

    def manage_image_cache(self, context, all_instances):
        """Removes images that no instance is made of."""
        self._images.remove_unused({instance.image_ref for instance in all_instances})

    # -- instances -----------------------------------------------------------------------------------------------------

    def list_instance_uuids(self):
        """Instances that have a container here."""
        return [container["Labels"][LABEL] for container in self._engine.listed()]

    def list_instances(self):
        """The same: a container's name follows from the uuid."""
        return self.list_instance_uuids()

    def instance_exists(self, instance):
        """Whether it has a container here."""
        return self._engine.find(instance.uuid) is not None

    def get_info(self, instance, use_cache=True):
        """Its power state."""
        return self._instances.info(instance)

    def spawn(self, context, instance, image_meta, injected_files, admin_password, allocations,
              network_info=None, block_device_info=None, power_on=True, accel_info=None):  # fmt: skip
        """Makes a container of a Glance image and starts it."""
        if (block_device_info or {}).get("block_device_mapping"):
            raise exception.BuildAbortException(
                instance_uuid=instance.uuid, reason="a container cannot have volumes of Cinder"
            )
        if injected_files:
            raise exception.BuildAbortException(instance_uuid=instance.uuid, reason="files are not injected")
        self._instances.spawn(context, instance, image_meta, network_info, power_on=power_on)

    def destroy(self, context, instance, network_info, block_device_info=None, destroy_disks=True, destroy_secrets=True):
        """Removes its container and what only it has needed."""
        self._instances.destroy(instance, network_info)

    def cleanup(self, context, instance, network_info, block_device_info=None, destroy_disks=True,
                migrate_data=None, destroy_vifs=True, destroy_secrets=True):  # fmt: skip
        """Removes what a failed `destroy` has left. After a migration there is nothing: the agent has removed its own."""
        if migrate_data is None:
            self._instances.destroy(instance, network_info)

    def reboot(self, context, instance, network_info, reboot_type, block_device_info=None,
               bad_volumes_callback=None, accel_info=None, share_info=None):  # fmt: skip
        """Stops and starts it."""
        self._vifs.plug(instance.uuid, network_info)
        self._instances.reboot(instance, hard=reboot_type == "HARD")

    def power_on(self, context, instance, network_info, block_device_info=None, accel_info=None, share_info=None):
        """Starts it."""
        self._vifs.plug(instance.uuid, network_info)
        self._instances.power_on(instance)

    def power_off(self, instance, timeout=0, retry_interval=0):
        """Stops it."""
        self._instances.power_off(instance, timeout)

    def pause(self, instance):
        """Lets it stand still."""
        self._instances.pause(instance)

    def unpause(self, instance):
        """Lets it go on."""
        self._instances.unpause(instance)

    def suspend(self, context, instance):
        """Writes it to this host's disk."""
        self._instances.suspend(instance)

    def resume(self, context, instance, network_info, block_device_info=None, share_info=None):
        """Reads it back."""
        self._vifs.plug(instance.uuid, network_info)
        self._instances.resume(instance)

    def resume_state_on_host_boot(self, context, instance, network_info, share_info, block_device_info=None):
        """Starts it if it ran when the host went down."""
        self._vifs.plug(instance.uuid, network_info)
        self._instances.resume_on_boot(instance)

    def get_console_output(self, context, instance):
        """The end of its log."""
        return self._instances.console(instance)

    def snapshot(self, context, instance, image_id, update_task_state):
        """Uploads its file system as an image that containers can be made of."""
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)

        def before_upload():
            update_task_state(
                task_state=task_states.IMAGE_UPLOADING, expected_state=task_states.IMAGE_PENDING_UPLOAD
            )

        container = self._instances.container(instance)
        self._images.upload(context, container["Id"], image_id, before_upload)

    def migrate_disk_and_power_off(self, context, instance, dest, flavor, network_info,
                                   block_device_info=None, timeout=0, retry_interval=0):  # fmt: skip
        """Refuses a resize or cold migration before anything is touched; the instance is as it was."""
        why = NotImplementedError("a container is not resized; it is moved by `openstack server migrate --live-migration`")
        raise exception.InstanceFaultRollback(why)

    # -- networks ------------------------------------------------------------------------------------------------------

    def plug_vifs(self, instance, network_info):
        """Nova asks for it at each start of its service."""
        self._vifs.plug(instance.uuid, network_info)

    def unplug_vifs(self, instance, network_info):
        """The undo of it."""
        self._vifs.unplug(instance.uuid, network_info)

    # -- live migration ------------------------------------------------------------------------------------------------

    def get_instance_disk_info(self, instance, block_device_info=None):
        """Nothing that a destination would have to make beforehand."""
        return "[]"

    def check_can_live_migrate_destination(self, context, instance, src_compute_info, dst_compute_info,
                                           block_migration=False, disk_over_commit=False):  # fmt: skip
        """At the destination: whether its agent answers."""
        return self._migrations.check_destination(instance)

    def cleanup_live_migration_destination_check(self, context, dest_check_data):
        """At the destination, however the checks have ended."""
        self._migrations.cleanup_check(dest_check_data)

    def check_can_live_migrate_source(self, context, instance, dest_check_data, block_device_info=None):
        """At the source: `godwit plan`."""
        return self._migrations.check_source(instance, dest_check_data, block_device_info)

    def check_source_migrate_data_at_dest(self, ctxt, instance, migrate_data, migration, limits, allocs):
        """At the destination: nothing is left to be said."""
        return migrate_data

    def pre_live_migration(self, context, instance, block_device_info, network_info, disk_info, migrate_data):
        """At the destination: networks and image."""
        return self._migrations.prepare(context, instance, network_info, migrate_data)

    def live_migration(self, context, instance, dest, post_method, recover_method,
                       block_migration=False, migrate_data=None):  # fmt: skip
        """At the source: the move, and its ending, which Nova is told once."""
        self._migrations.run(context, instance, dest, post_method, recover_method, block_migration, migrate_data)

    def live_migration_force_complete(self, instance):
        """Ends the rounds of a move."""
        self._migrations.force_complete(instance)

    def live_migration_abort(self, instance):
        """Gives a move up."""
        self._migrations.abort(instance)

    def rollback_live_migration_at_source(self, context, instance, migrate_data):
        """Nothing: the agent has undone its part before Nova heard of the failure."""

    def rollback_live_migration_at_destination(self, context, instance, network_info, block_device_info,
                                               destroy_disks=True, migrate_data=None):  # fmt: skip
        """The undo of `pre_live_migration`; the image stays, as after a pull."""
        self._vifs.unplug(instance.uuid, network_info)

    def post_live_migration(self, context, instance, block_device_info, migrate_data=None):
        """At the source, nothing: the agent has removed the container."""

    def post_live_migration_at_source(self, context, instance, network_info):
        """Networks that nobody else is on."""
        self._vifs.unplug(instance.uuid, network_info)

    def post_live_migration_at_destination(self, context, instance, network_info, block_migration=False,
                                           block_device_info=None):  # fmt: skip
        """Only a look: whatever fails here puts the instance into ERROR."""
        LOG.info("container %s is here", self._instances.container(instance)["Id"], instance=instance)

