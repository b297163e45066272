"""What is done with the cloud and what must be true of it. Each step is a method; a broken promise is a LabError."""

import json
import statistics
import time
from dataclasses import dataclass, field

from lab import images, links
from lab.commands import LabError, run
from lab.hosts import Host, client_command
from lab.load import LoadClient
from lab.moves import containers, holdings

from . import api
from .configuration import NEUTRON_PORT
from .control import Cloud
from .neutron import NETWORK, SECOND_NETWORK
from .servers import Server, boot, make_flavor, upload_image

# To and fro, and four servers at once: twenty migrations in a row.
N_SERVERS, N_ROUNDS = 4, 5
# With so much to send over so narrow a link a migration lasts half a minute: time to do something to it.
BALLAST_MEGABYTES, LINK_MEGABITS = 120, 40
LOAD_SECONDS = 1.0
# Writes in a second, so that the client leaves the two cores to Nova; a gap is measured to two milliseconds.
LOAD_RATE = 500


@dataclass
class Account:
    """What the last line tells."""

    booted: int = 0
    migrations: int = 0
    completed: int = 0
    lost: int = 0
    downtimes_ms: list[int] = field(default_factory=list)
    # From the call to Nova's word that it is over, and the agents' part of that.
    nova_seconds: list[float] = field(default_factory=list)
    move_seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        downtime = round(statistics.median(self.downtimes_ms)) if self.downtimes_ms else 0
        return (
            f"nova: booted={self.booted} migrations={self.migrations} completed={self.completed} lost={self.lost}"
            f" downtime_ms_median={downtime}"
        )


class Scenario:
    """One run."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.account = Account()
        self.hosts = {name: Host(name) for name in ("ha", "hb")}
        self.flavor = self.image = ""

    # -- the steps, in their order -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Waits for the services, and uploads the image."""
        services = lambda: {  # noqa: E731
            (it["binary"], it["host"]) for it in api.nova("GET", "/os-services")["services"] if it["state"] == "up"
        }
        computes = {("nova-compute", name) for name in self.hosts}
        api.until("both computes to be up", lambda: computes <= (api.answers(services) or set()))
        providers = lambda: api.placement("/resource_providers?resources=VCPU:1")["resource_providers"]  # noqa: E731
        api.until("both computes in Placement", lambda: len(api.answers(providers) or []) == len(self.hosts))
        self.cloud.map_hosts()
        api.until("Glance", lambda: api.answers(lambda: api.glance("GET", "/images")))
        for node in api.nova("GET", "/os-hypervisors/detail")["hypervisors"]:
            is_told = node["hypervisor_type"] == "docker" and "load average" in (node["uptime"] or "")
            require(is_told, f"a node is shown as {node}")
        self.flavor = make_flavor("small", memory_mb=512)
        self.image = upload_image("redis", self.hosts["ha"], "redis:8")

    def to_and_fro(self) -> None:
        """A Redis from Glance, under load from outside, goes to the other host and back."""
        server = self.boot("redis", "ha", metadata={"FROM_METADATA": "metadata"})
        said = self.inspect(server)["Config"]["Env"]
        require("FROM_METADATA=metadata" in said and "FROM_IMAGE=image" in said, f"its environment is {said}")
        with LoadClient(server.address, rate=LOAD_RATE) as client:
            time.sleep(LOAD_SECONDS)
            for target in ("hb", "ha"):
                client.mark()
                self.migrate(server, target)
                time.sleep(LOAD_SECONDS)
                self.account.downtimes_ms.append(client.mark()["longest_gap_ms"])
            self.settle_load(client, server)
        self.check_bindings(server)
        server.delete()

    def life(self) -> None:
        """All else that can be done with a server."""
        server = self.boot("life", "ha")
        api.until("its console", lambda: "Ready to accept" in server.act("os-getConsoleOutput", {})["output"])
        self.redis(server, "SET", "kept", "yes")
        server.act("pause", until="PAUSED")
        require(containers(self.hosts["ha"])[server.container] == "paused", "pause does not pause")
        server.act("unpause", until="ACTIVE")
        server.act("suspend", until="SUSPENDED")
        require(containers(self.hosts["ha"])[server.container] == "exited", "suspend does not end the tasks")
        server.act("resume", until="ACTIVE")
        require(self.redis(server, "GET", "kept") == "yes", "a resume has lost the memory")
        self.run(server, "sh", "-c", "echo on-disk >/data/mark")
        require(self.marked(server, "ha"), "it cannot write to its disk")
        image = server.act("createImage", {"name": "snapshot"})["image_id"]
        api.until("the snapshot", lambda: api.glance("GET", f"/images/{image}")["status"] == "active")
        server.until("ACTIVE")
        copy = self.boot("copy", "hb", image=image)
        require(self.marked(copy, "hb"), "the snapshot lacks a file")
        copy.delete()
        server.act("os-stop", until="SHUTOFF")
        server.act("os-start", until="ACTIVE")
        require(self.marked(server, "ha"), "a stop has lost a file")
        for kind in ("SOFT", "HARD"):
            before = self.inspect(server)["State"]["StartedAt"]
            server.act("reboot", {"type": kind}, until="ACTIVE")
            require(self.inspect(server)["State"]["StartedAt"] != before, f"a {kind} reboot has not started it")
        server.delete()
        bare = self.boot("bare", "ha", networks="none")
        require(self.inspect(bare)["HostConfig"]["NetworkMode"] == "none", "it has a network")
        bare.delete()

    def two_networks(self) -> None:
        """A server with a port on each kind of network goes along with both addresses and MACs."""
        networks = [{"uuid": NETWORK.id}, {"uuid": SECOND_NETWORK.id}]
        server = self.boot("two_networks", "ha", networks=networks)
        before = self.endpoints(server, "ha")
        ports = api.ask(NEUTRON_PORT, "GET", f"/v2.0/ports?device_id={server.id}")["ports"]
        wanted = {(port["fixed_ips"][0]["ip_address"], port["mac_address"]) for port in ports}
        require({it[:2] for it in before.values()} == wanted, f"Neutron has {wanted}, Docker {before}")
        run(client_command(["ip", "address", "add", f"{SECOND_NETWORK.prefix}.20/24", "dev", "eth0"]))
        second = next(address for address, _ in wanted if address.startswith(SECOND_NETWORK.prefix))
        with LoadClient(second, rate=LOAD_RATE) as client:
            self.migrate(server, "hb")
            self.settle_load(client, server)
        after = self.endpoints(server, "hb")
        require(before == after, f"it had {before} and has {after}")
        server.delete()

    def refused(self) -> None:
        """What stands against a move is Nova's error, and the server as it was."""
        server = self.boot("refused", "ha")
        images.import_image(self.hosts["hb"], "busybox")
        self.hosts["hb"].run("docker", "create", "--name", server.container, images.IMAGES["busybox"].tag)
        server.begin_migration("hb")
        server.until_migration("error")
        server.until("ACTIVE")
        require(any("name" in fault for fault in server.faults()), f"nothing says why: {server.faults()}")
        self.is_on(server, "ha", alone=False)
        self.hosts["hb"].run("docker", "rm", "--force", server.container)
        server.delete()

    def aborted(self) -> None:
        """A running migration is aborted; the next one is told to hurry and completes."""
        server = self.boot("aborted", "ha")
        with LoadClient(server.address, rate=LOAD_RATE) as client:
            with self.slow(server):
                api.nova("DELETE", server.in_progress())
                server.until_migration("cancelled")
                server.until("ACTIVE")
                self.is_on(server, "ha")
            with self.slow(server):
                api.nova("POST", f"{server.in_progress()}/action", {"force_complete": None})
            self.completed(server, "hb")
            self.settle_load(client, server)
        server.delete()

    def failed(self) -> None:
        """The destination's agent dies in a migration."""
        server = self.boot("failed", "ha")
        with LoadClient(server.address, rate=LOAD_RATE) as client:
            with self.slow(server):
                server.in_progress()
                self.hosts["hb"].run("kill", "-9", str(self.hosts["hb"].daemon_pid("agent")))
                server.until_migration("failed")
                server.until("ACTIVE")
            self.hosts["hb"].start_daemon("agent")
            self.is_on(server, "ha")
            self.migrate(server, "hb")
            self.settle_load(client, server)
        server.delete()

    def restarted(self) -> None:
        """nova-compute is killed in a migration and started again, before the move is over and after."""
        server = self.boot("restarted", "ha")
        source = self.hosts["ha"]
        with LoadClient(server.address, rate=LOAD_RATE) as client:
            with self.slow(server):
                server.in_progress()
                self.cloud.kill_compute(source)
                self.cloud.start_compute(source)
                server.until_migration("failed")
            server.until("ACTIVE")
            self.is_on(server, "ha")
            with self.slow(server):
                server.in_progress()
                self.cloud.kill_compute(source)
            api.until("the move to end without Nova", lambda: server.container not in containers(source))
            self.cloud.start_compute(source)
            self.completed(server, "hb")
            self.settle_load(client, server)
        server.delete()

    def soak(self) -> None:
        """Several servers at once, to and fro."""
        servers = [self.boot(f"soak{number}", "ha") for number in range(N_SERVERS)]
        clients = [LoadClient(server.address, rate=LOAD_RATE) for server in servers]
        try:
            for number in range(N_ROUNDS):
                target = "ha" if number % 2 else "hb"
                for client in clients:
                    client.mark()
                began = time.monotonic()
                for server in servers:
                    self.account.migrations += 1
                    server.begin_migration(target)
                for server in servers:
                    self.completed(server, target, began=None if len(servers) > 1 else began)
                self.account.downtimes_ms += [client.mark()["longest_gap_ms"] for client in clients]
            for client, server in zip(clients, servers):
                self.settle_load(client, server)
        finally:
            for client in clients:
                client.__exit__()
        for server in servers:
            server.delete()

    def nothing_left(self) -> None:
        """After the last server no host and no Placement has anything of any."""
        for name, host in self.hosts.items():
            require(not containers(host), f"{name} still has {containers(host)}")
            require(not holdings(host), f"{name} still has {holdings(host)}")
            networks = host.run("docker", "network", "ls", "--quiet", "--filter", "name=nova-").stdout.split()
            require(not networks, f"{name} still has {networks}")
        for provider in api.placement("/resource_providers")["resource_providers"]:
            used = api.placement(f"/resource_providers/{provider['uuid']}/usages")["usages"]
            require(not any(used.values()), f"Placement still has {used} on {provider['name']}")

    # -- parts of them -------------------------------------------------------------------------------------------------

    def boot(self, name: str, host: str, *, image: str | None = None, **more: object) -> Server:
        """Boots a server, and checks where it is."""
        server = boot(name, image or self.image, self.flavor, host=host, **more)
        self.account.booted += 1
        self.is_on(server, host)
        return server

    def migrate(self, server: Server, target: str) -> None:
        """Moves a server, and checks that it has moved."""
        self.account.migrations += 1
        began = time.monotonic()
        server.begin_migration(target)
        self.completed(server, target, began=began)

    def completed(self, server: Server, target: str, *, began: float | None = None) -> None:
        """Waits for the end of a migration, and checks that Nova and the hosts agree."""
        server.until_migration("completed")
        if began is not None:
            self.account.nova_seconds.append(time.monotonic() - began)
            source = self.hosts["ha" if target == "hb" else "hb"]
            moves = json.loads(source.run("godwit", "migrations", "--json").stdout)
            (newest, *_) = [it for it in moves if it["container"] == server.container and it["role"] == "source"]
            shown = json.loads(source.run("godwit", "migrations", "show", newest["migration"], "--json").stdout)
            self.account.move_seconds.append(shown["record"]["total_micros"] / 1e6)
        server.until("ACTIVE")
        self.is_on(server, target)
        self.account.completed += 1

    def is_on(self, server: Server, name: str, *, alone: bool = True) -> None:
        """Nova, Docker and Placement say that it is on this host, and nobody that it is on the other."""
        require(server.host == name, f"Nova has {server.name} on {server.host}, not on {name}")
        for other, host in self.hosts.items():
            if other == name:
                state = containers(host).get(server.container)
                require(state == "running", f"{server.name} is {state} on {other}")
            elif alone:
                # What is left of a move that was given up, that host's agent removes by itself; Nova does not wait for it.
                there = lambda host=host: containers(host).get(server.container)  # noqa: E731
                require(there() != "running", f"{server.name} runs on {other} as well")
                api.until(f"{server.name} to be gone from {other}", lambda: there() is None)
        require(server.allocated_to() == {name}, f"Placement has {server.name} on {server.allocated_to()}, not on {name}")

    def check_bindings(self, server: Server) -> None:
        """Neutron heard of each migration: a second binding, which became the active one, and the end of the first."""
        journal = [json.loads(line) for line in self.cloud.places.bindings.read_text().splitlines()]
        port = api.ask(NEUTRON_PORT, "GET", f"/v2.0/ports?device_id={server.id}")["ports"][0]["id"]
        did = [(line["did"], line["host"]) for line in journal if line["port"] == port]
        moved = lambda source, target: [("add", target), ("activate", target), ("delete", source)]  # noqa: E731
        require(did == [("bind", "ha"), *moved("ha", "hb"), *moved("hb", "ha")], f"Neutron was asked for {did}")

    def settle_load(self, client: LoadClient, server: Server) -> None:
        """Counts what a client has lost; its connection must be the one that it began with."""
        account = client.finish(forget=True)
        self.account.lost += account["lost"]
        require(account["connection"] == "kept", f"the connection to {server.name} broke: {account['broken_by']}")
        require(account["acknowledged"] > 0, f"{server.name} has answered nothing")

    def slow(self, server: Server) -> "Slow":
        """A migration of a server to hb that lasts."""
        self.account.migrations += 1
        return Slow(self, server)

    def inspect(self, server: Server, host: str = "ha") -> dict:
        """Docker's word on a server."""
        return json.loads(self.hosts[host].run("docker", "inspect", server.container).stdout)[0]

    def endpoints(self, server: Server, host: str) -> dict[str, tuple[str, str, int]]:
        """Its addresses and MACs, and which has the default route, by Docker's networks."""
        networks = self.inspect(server, host)["NetworkSettings"]["Networks"]
        return {name: (it["IPAddress"], it["MacAddress"], it["GwPriority"]) for name, it in networks.items()}

    def marked(self, server: Server, host: str) -> bool:
        """Whether the file is on its disk that was written there."""
        # The image has a shell and no other tools.
        return self.run(server, "sh", "-c", "read mark </data/mark && echo $mark", host=host) == "on-disk"

    def run(self, server: Server, *argv: str, host: str = "ha") -> str:
        """Runs something in it."""
        return self.hosts[host].run("docker", "exec", server.container, *argv).stdout.strip()

    def redis(self, server: Server, *words: str) -> str:
        """What its Redis answers."""
        return self.run(server, "redis-cli", *words)


class Slow:
    """A migration over a narrow link, with a large file to send, under way when the block begins."""

    def __init__(self, scenario: Scenario, server: Server) -> None:
        self._scenario, self._server = scenario, server

    def __enter__(self) -> None:
        ballast = f"head -c {BALLAST_MEGABYTES}M /dev/urandom >/tmp/ballast && docker cp /tmp/ballast $0:/data/ballast"
        self._scenario.hosts["ha"].run("sh", "-c", ballast, self._server.container)
        links.shape("hb", LINK_MEGABITS)
        self._server.begin_migration("hb")

    def __exit__(self, *_: object) -> None:
        links.unshape("hb")


def require(fact: bool, otherwise: str) -> None:
    """Ends the run if something is not as promised."""
    if not fact:
        raise LabError(otherwise)
