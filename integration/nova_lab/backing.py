"""What the services stand on: RabbitMQ and MariaDB.

They are the base's own, run in the root of a host and reached at the wire: the machine's packages are left alone. Their files
lie in that host's memory, and go with the lab. SQLite would not do in MariaDB's place: Placement and conductor write from
several processes at once, and under load one of them was told that the file is locked.
"""

from lab import links
from lab.hosts import Host
from lab.layout import WIRE, WIRE_ADDRESS

RABBITMQ_PORT, MARIADB_PORT = 5672, 3306
# Of the databases.
USER = "lab"
DATABASES = ("nova_api", "nova_cell0", "nova", "placement", "glance")
# Each service keeps some dozen connections. What has been written need not outlast the server.
MARIADB_SETTINGS = ("max-connections=500", "innodb-buffer-pool-size=64M", "innodb-flush-log-at-trx-commit=0",
                    "innodb-doublewrite=0", "skip-name-resolve", "skip-log-bin")  # fmt: skip
MARIADB_DEADLINE_SECONDS = 120.0


def rabbitmq(host: Host) -> list[str]:
    """The command that runs it."""
    settings = ("loopback_users = none", f"listeners.tcp.1 = {WIRE_ADDRESS}:{RABBITMQ_PORT}", "log.console = true")
    host.write("/run/rabbitmq/rabbitmq.conf", "\n".join(settings) + "\n")
    environment = [
        "HOME=/run/rabbitmq", "RABBITMQ_NODENAME=rabbit@localhost", "RABBITMQ_CONFIG_FILE=/run/rabbitmq/rabbitmq.conf",
        "RABBITMQ_MNESIA_BASE=/run/rabbitmq/data", "RABBITMQ_LOG_BASE=/run/rabbitmq/log",
        "RABBITMQ_ENABLED_PLUGINS_FILE=/run/rabbitmq/plugins", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +sbwt none",
    ]  # fmt: skip
    return _in_root(host, "/usr/lib/rabbitmq/bin/rabbitmq-server", environment=environment)


def mariadb(host: Host) -> list[str]:
    """Makes its files, without content; the command that runs it and makes all databases."""
    directory = "/run/mariadb"
    data = f"{directory}/data"
    host.run("mkdir", "-p", directory)
    host.run(
        "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
        "--auth-root-authentication-method=normal", deadline=MARIADB_DEADLINE_SECONDS,
    )  # fmt: skip
    statements = [f"CREATE DATABASE {name} CHARACTER SET utf8mb4;" for name in DATABASES]
    statements += [f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{USER}';", f"GRANT ALL ON *.* TO '{USER}'@'%';"]
    host.write(f"{directory}/init.sql", "\n".join(statements) + "\n")
    options = ("user=root", f"datadir={data}", f"socket={directory}/socket", f"init-file={directory}/init.sql",
               f"bind-address={WIRE_ADDRESS}", f"port={MARIADB_PORT}", *MARIADB_SETTINGS)  # fmt: skip
    return _in_root(host, "mariadbd", "--no-defaults", *(f"--{option}" for option in options))


def database(name: str) -> str:
    """The URL of one."""
    return f"mysql+pymysql://{USER}:{USER}@{WIRE_ADDRESS}:{MARIADB_PORT}/{name}?charset=utf8mb4"


def _in_root(host: Host, *argv: str, environment: list[str] | None = None) -> list[str]:
    """The command that runs a program in a host's root, and in the wire's network."""
    common = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
    return [
        "nsenter", f"--net={links.namespace_path(WIRE)}", "-t", str(host.init()), "--mount", "--uts", "--ipc", "--pid",
        "--", "env", "-i", *common, *(environment or []), *argv,
    ]  # fmt: skip
