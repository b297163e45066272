"""What becomes of TCP connections: kept where the address goes along, else closed, and told either way.

Servers echo lines with the number of the connection, so that an answer tells whether the listener and its memory came along.
"""

import subprocess
import sys

from lab.hosts import Host, client_command
from tests.moving import ADDRESS, ADDRESS6, CLIENT_ADDRESS6, MAC_ADDRESS, ON_LAN, MoveTest
from tests.support import SOON_SECONDS
from tests.test_move_refusals import REFUSED

PORT = 8090
# Takes one connection after another, and says how each ended.
ECHO = """
import socket
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("up", flush=True)
count = 0
while True:
    connection, _ = server.accept()
    count += 1
    with connection:
        try:
            while line := connection.recv(100):
                connection.sendall(b"%d " % count + line)
            print("ended", count, flush=True)
        except OSError as error:
            print("lost", count, error, flush=True)
"""
# Asks for each line of its input and prints the answer, on one connection; prints what ended that.
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as server:
    print(server.getsockname()[1], flush=True)
    for line in sys.stdin:
        try:
            server.sendall(line.encode())
            print(server.recv(100).decode().strip() or "ended", flush=True)
        except OSError as error:
            print("lost:", error, flush=True)
"""
# Addresses that stay behind: given to one end by hand, unknown to the engine.
HERE, INSIDE = "fd00:99::1", "fd00:99::2"


class Client:
    """A client on one connection."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._process.stdout.readline())

    def ask(self, line: str) -> str:
        """What the server says to a line."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """Closes the connection."""
        self._process.communicate(timeout=SOON_SECONDS)


class Connections(MoveTest):
    """A container with a connected client moves, or does not."""

    def start_echo(self, *options: str) -> str:
        """A server, by default on Docker's own bridge, behind a published port."""
        name = self.start("python:3", "python3", "-c", ECHO, options=options or ("--publish", f"{PORT}:80"))
        self.addCleanup(lambda: self.docker("rm", "--force", name, host=self.hb, check=False))
        self.soon("the server", lambda: "up" in self.logs(name))
        return name

    def client_of(self, address: str, port: int = PORT, host: Host | None = None) -> Client:
        """A client that has been answered, at the clients' place or on a host."""
        argv = [sys.executable if host is None else "python3", "-c", CLIENT, address, str(port)]
        client = Client(client_command(argv) if host is None else host.command(argv))
        self.addCleanup(client.end)
        self.assertRegex(client.ask("a"), r"^\d+ a$")
        return client

    def moved(self, name: str, *options: str) -> dict:
        """The report's account of connections, of a move that must succeed."""
        move = self.begin_move(name, options=options).end()
        self.assertEqual(0, move.code, move.said)
        self.holds_nothing(self.ha)
        self.holds_nothing(self.hb)
        return move.events[-1]["report"]["connections"]

    def refused(self, name: str, *options: str) -> str:
        """Why a move is refused; nothing has changed."""
        unmoved = self.unmoved(name)
        move = self.begin_move(name, options=options).end()
        self.assertEqual(REFUSED, move.code, move.said)
        unmoved()
        return move.message

    def closed(self, name: str, account: dict, *clients: tuple[str, int]) -> None:
        """The connections of these clients, and no others, were closed; the program has seen it and serves the next."""
        self.assertEqual((0, len(clients)), (account["kept"], account["closed"]))
        self.assertEqual(["closed"] * len(clients), [one["fate"] for one in account["list"]])
        remote = {tuple(one["remote"].rsplit(":", 1)) for one in account["list"]}
        self.assertEqual({(address, str(port)) for address, port in clients}, remote)
        self.soon("the program to see it", lambda: self.logs(name, self.hb).count("ended") >= len(clients))
        self.assertNotIn("lost", self.logs(name, self.hb))

    # -- the address stays behind ----------------------------------------------------------------------------------------

    def test_auto_closes_a_connection_on_the_default_bridge_and_lists_it(self) -> None:
        self.needs_moves()
        for mode in ("stop", "post"):
            with self.subTest(mode=mode):
                name = self.start_echo()
                client = self.client_of(self.ha.address)
                plan = self.ha.run("godwit", "plan", name, "hb").stdout
                self.assertIn(f"10.77.0.20:{client.port}", plan)
                self.assertIn("are going to be closed", plan)
                account = self.moved(name, "--mode", mode)
                self.closed(name, account, ("10.77.0.20", client.port))
                self.assertIn("reset", client.ask("b"), "the other end hears of it when it sends next")
                self.assertRegex(account["list"][0]["local"], r"^172\.17\.0\.\d+:80$")
                self.assertEqual("2 b", self.client_of(self.hb.address).ask("b"), "the listener and its memory are there")
                self.docker("rm", "--force", name, host=self.hb)

    def test_without_json_each_connection_is_a_line(self) -> None:
        self.needs_moves()
        name = self.start_echo()
        client = self.client_of(self.ha.address)
        said = self.ha.run("godwit", "migrate", name, "hb").stdout
        self.assertIn("TCP connections: 0 kept, 1 closed", said)
        self.assertRegex(said, rf"closed: 172\.17\.0\.\d+:80 with 10\.77\.0\.20:{client.port}")

    def test_keep_refuses_what_cannot_be_kept_and_names_it(self) -> None:
        name = self.start_echo()
        client = self.client_of(self.ha.address)
        message = self.refused(name, "--tcp", "keep")
        self.assertIn(f"10.77.0.20:{client.port}", message)
        self.assertIn("--tcp close", message)
        self.assertEqual("1 b", client.ask("b"))

    def test_without_connections_a_container_on_the_default_bridge_moves_in_every_way(self) -> None:
        self.needs_moves()
        for choice in ("auto", "keep", "close"):
            with self.subTest(choice=choice):
                name = self.start_echo()
                account = self.moved(name, "--tcp", choice)
                self.assertEqual({"kept": 0, "closed": 0, "list": []}, account)
                self.assertEqual("1 b", self.client_of(self.hb.address).ask("b"))
                self.docker("rm", "--force", name, host=self.hb)

    def test_an_ipv6_connection_is_closed_or_refused_as_one_of_ipv4(self) -> None:
        self.needs_moves()
        name = self.start_echo()
        # the engine knows neither of these addresses
        self.ha.run("ip", "address", "add", f"{HERE}/64", "dev", "docker0", "nodad")
        self.addCleanup(self.ha.run, "ip", "address", "del", f"{HERE}/64", "dev", "docker0")
        inside = ("nsenter", "-t", self.inspect(name, "{{.State.Pid}}"), "-n")
        self.ha.run(*inside, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.eth0.disable_ipv6=0")
        self.ha.run(*inside, "ip", "address", "add", f"{INSIDE}/64", "dev", "eth0", "nodad")
        client = self.client_of(INSIDE, 80, self.ha)
        self.assertIn(f"[{HERE}]:{client.port}", self.refused(name, "--tcp", "keep"))
        self.assertEqual("1 b", client.ask("b"))
        account = self.moved(name)
        self.closed(name, account, (f"[{HERE}]", client.port))
        self.assertEqual(f"[{INSIDE}]:80", account["list"][0]["local"])

    # -- the address goes along ------------------------------------------------------------------------------------------

    def test_auto_and_keep_keep_a_connection_whose_address_goes_along(self) -> None:
        self.needs_moves()
        name = self.start_echo(*ON_LAN)
        client = self.client_of(ADDRESS, 80)
        end = {"local": f"{ADDRESS}:80", "remote": f"10.77.0.20:{client.port}", "fate": "kept"}
        for choice, source, target in (("auto", self.ha, self.hb), ("keep", self.hb, self.ha)):
            move = self.begin_move(name, source, target, options=("--tcp", choice)).end()
            self.assertEqual(0, move.code, move.said)
            self.assertEqual({"kept": 1, "closed": 0, "list": [end]}, move.events[-1]["report"]["connections"])
            self.assertEqual(f"1 {choice}", client.ask(choice))

    def test_close_closes_even_what_could_be_kept(self) -> None:
        self.needs_moves()
        name = self.start_echo(*ON_LAN)
        client = self.client_of(ADDRESS, 80)
        self.closed(name, self.moved(name, "--tcp", "close"), ("10.77.0.20", client.port))
        self.assertIn("reset", client.ask("b"))
        self.assertEqual("2 b", self.client_of(ADDRESS, 80).ask("b"))

    def test_an_ipv6_connection_is_kept_where_its_network_goes_along(self) -> None:
        self.needs_moves()
        self.put_ipv6_on_lan()
        name = self.start_echo("--network", "lan", "--ip6", ADDRESS6, "--mac-address", MAC_ADDRESS)
        client = self.client_of(ADDRESS6, 80)
        account = self.moved(name)
        end = {"local": f"[{ADDRESS6}]:80", "remote": f"[{CLIENT_ADDRESS6}]:{client.port}", "fate": "kept"}
        self.assertEqual({"kept": 1, "closed": 0, "list": [end]}, account)
        self.assertEqual("1 b", client.ask("b"))

    # -- who has the word ------------------------------------------------------------------------------------------------

    def test_the_containers_word_is_stronger_than_auto_and_the_flag_than_both(self) -> None:
        self.needs_moves()
        kept = ("--annotation", "io.godwit.checkpoint.tcp=established")
        name = self.start_echo("--publish", f"{PORT}:80", *kept)
        client = self.client_of(self.ha.address)
        self.assertIn(f"10.77.0.20:{client.port}", self.refused(name))
        self.closed(name, self.moved(name, "--tcp", "close"), ("10.77.0.20", client.port))
        closed = ("--annotation", "io.godwit.checkpoint.tcp=close")
        name = self.start_echo(*ON_LAN, *closed)
        client = self.client_of(ADDRESS, 80)
        account = self.moved(name, "--tcp", "keep")
        self.assertEqual((1, 0), (account["kept"], account["closed"]))
        self.assertEqual("1 b", client.ask("b"))
        move = self.begin_move(name, self.hb, self.ha).end()
        self.assertEqual(0, move.code, move.said)
        self.assertEqual((0, 1), tuple(move.events[-1]["report"]["connections"][key] for key in ("kept", "closed")))
