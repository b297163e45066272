"""What a nova-compute that died amid a live migration finds when it is started again.

The agents have gone on without it. So the move is given up if that can still be done, its ending is heard, and then
Nova does what its dead thread would have done: the manager's own code after a migration, or its rollback. These two are
no public interface of Nova's; they are what it hands to a driver as `post_method` and `recover_method`.
"""

from nova import exception, objects
from nova.compute import task_states
from oslo_log import log as logging

from .migration import Ending, Migrations, new_data

LOG = logging.getLogger(__name__)

# Those of a migration whose thread may have been in the driver, the likeliest first.
STATUSES = ("running", "running (post-copy)", "preparing")


def finish_migrations(context, instances, migrations: Migrations, manager) -> None:
    """Brings each migration of these instances, all of which were on this host, to the end that its move had."""
    migrating = [instance for instance in instances if instance.task_state == task_states.MIGRATING]
    # One that waits in a queue that died with the process has none of these statuses; Nova clears that by itself.
    cut_short = [(instance, found) for instance in migrating if (found := _migration_of(context, instance))]
    if not cut_short:
        return
    # Nova does this after its driver's part of the start; its bookkeeping of a migration needs it before.
    manager.pre_start_hook(objects.Service.get_by_compute_host(context, manager.host))
    for instance, migration in cut_short:
        try:
            _finish(context, instance, migration, migrations, manager)
        except Exception:
            # Nova starts all the same; what it then shows of the instance is as far as its manager came.
            LOG.exception("its migration %s is not finished", migration.uuid, instance=instance)
        instance.refresh()  # what was done to it was done to other copies of its record


def _finish(context, instance, migration, migrations: Migrations, manager) -> None:
    move = migrations.find(instance)
    if move is not None:
        try:
            migrations.abort(instance)
        except exception.MigrationError as refused:
            LOG.info("%s", refused, instance=instance)
    ending = migrations.settle(instance, move)
    data = new_data(instance.uuid, migration.dest_compute)
    data.migration = migration
    bdms = objects.BlockDeviceMappingList.get_by_instance_uuid(context, instance.uuid)
    LOG.info("migration %s was cut short and has ended: %s", migration.uuid, ending.name, instance=instance)
    if ending is Ending.MOVED:
        manager._post_live_migration_update_host(
            context, instance, migration.dest_compute, True, data, source_bdms=bdms
        )
    else:
        manager._rollback_live_migration(context, instance, migration.dest_compute, data, "failed", source_bdms=bdms)


def _migration_of(context, instance):
    for status in STATUSES:
        try:
            return objects.Migration.get_by_instance_and_status(context, instance.uuid, status)
        except exception.MigrationNotFoundByStatus:
            continue
    return None
