"""A move's progress in Nova's terms. Telling it must never harm the move: what cannot be told is logged.

An agent counts the bytes it sends. What goes before the freeze outside the rounds of memory is files, layers and
volumes, and shown as disk; everything else as memory, of which nobody knows the total before its end.
"""

import time

from oslo_log import log as logging

LOG = logging.getLogger(__name__)

# Each report is a call to the conductor and a write to the database.
INTERVAL_SECONDS = 2.0
FREEZE_PHASES = ("freeze", "restore", "commit", "drain", "release")


class Progress:
    """The figures of one move."""

    def __init__(self, instance, migration) -> None:
        self._instance = instance
        self._migration = migration
        self._told_at = 0.0
        self._sent = self._expected = self._in_rounds = self._disk = 0
        self._frozen = False

    def hear(self, event: dict) -> None:
        """Takes in one event of the agent's, and tells Nova if it is time."""
        if "transferred" in event:
            self._sent, self._expected = event["transferred"], event["expected"]
        elif "phase" in event:
            self._sent = event["bytes"]
            self._frozen = self._frozen or event["phase"] in FREEZE_PHASES
        elif "round" in event:
            self._in_rounds += event["round"]["sent"]
        if not self._frozen:
            self._disk = max(self._disk, self._sent - self._in_rounds)
        if "report" in event or time.monotonic() - self._told_at > INTERVAL_SECONDS:
            self._tell()

    def post_copy(self) -> None:
        """The container runs at the destination, and its memory follows."""
        self._migration.status = "running (post-copy)"
        self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        memory = max(self._sent - self._disk, 0)
        left = max(self._expected - self._sent, 0)
        move, before_freeze = self._migration, not self._frozen
        move.disk_processed, move.disk_remaining = self._disk, left if before_freeze else 0
        move.memory_processed, move.memory_remaining = memory, 0 if before_freeze else left
        move.disk_total = move.disk_processed + move.disk_remaining
        move.memory_total = move.memory_processed + move.memory_remaining
        try:
            move.save()
            self._instance.progress = round(100 * self._sent / max(self._expected, self._sent, 1))
            self._instance.save()
        except Exception:
            LOG.exception("its progress is not told", instance=self._instance)
