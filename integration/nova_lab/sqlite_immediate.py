"""A plugin of SQLAlchemy's that lets several processes write to one SQLite file: named by `plugin=immediate` in the URL.

oslo.db begins transactions that take the lock for writing only when they write. Two that have read before then cannot go
on, and SQLite says "database is locked" at once, whatever its timeout. One that takes the lock at its begin waits for it.
Nothing is synced to the disk: the files go with the lab.
"""

import sqlite3
import time

import sqlalchemy
from sqlalchemy.engine import CreateEnginePlugin

# For whoever is the last of many on two busy cores.
LOCK_DEADLINE_SECONDS = 60.0
# SQLite's own waiting gives up early where it fears that two wait for each other; here they cannot.
RETRY_SECONDS = 0.01


class Immediate(CreateEnginePlugin):
    """Makes each BEGIN an immediate one."""

    def update_url(self, url):
        """The URL has nothing more of ours."""
        return url

    def engine_created(self, engine):
        """Listens to the engine's statements and connections."""

        @sqlalchemy.event.listens_for(engine, "connect")
        def without_sync(connection, record):
            connection.execute("PRAGMA synchronous = OFF")

        @sqlalchemy.event.listens_for(engine, "before_cursor_execute", retval=True)
        def immediately(connection, cursor, statement, parameters, context, executemany):
            if statement != "BEGIN":
                return statement, parameters
            begin(cursor)
            return "SELECT 1", parameters


def begin(cursor: sqlite3.Cursor) -> None:
    """Begins a transaction that can write."""
    ends_at = time.monotonic() + LOCK_DEADLINE_SECONDS
    while True:
        try:
            cursor.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(RETRY_SECONDS)
