"""A plugin of SQLAlchemy's that lets several processes write to one SQLite file: named by `plugin=immediate` in the URL.

oslo.db begins transactions that take the lock for writing only when they write. Two that have read before then cannot go
on, and SQLite says "database is locked" at once, whatever its timeout. One that takes the lock at its begin waits for it.
"""

import sqlalchemy
from sqlalchemy.engine import CreateEnginePlugin


class Immediate(CreateEnginePlugin):
    """Makes each BEGIN an immediate one."""

    def update_url(self, url):
        """The URL has nothing more of ours."""
        return url

    def engine_created(self, engine):
        """Rewrites the statement on its way."""

        @sqlalchemy.event.listens_for(engine, "before_cursor_execute", retval=True)
        def immediately(connection, cursor, statement, parameters, context, executemany):
            return ("BEGIN IMMEDIATE" if statement == "BEGIN" else statement), parameters
