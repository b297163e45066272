"""What an agent tells of its moves: the list, one of them, its picture, the metrics; and that all of it is as `docs/openapi.json`
says."""

import http.client
import json
import socket
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
from lab.hosts import Host
from tests.moving import FORGETFUL_REDIS, MoveTest

OPENAPI = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
IMAGE_BYTES = 24 << 20
SLOW_MEGABITS = 80
SOME_OF_IT = 4 << 20
SVG = "{http://www.w3.org/2000/svg}"


class Local(http.client.HTTPConnection):
    """A connection to a host's agent."""

    def __init__(self, host: Host) -> None:
        super().__init__("godwit", timeout=30)
        self._path = str(host.path("/run/godwit/agent.sock"))

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ApiTest(MoveTest):
    """Asks agents, and holds each answer against the description."""

    def ask(self, host: Host, path: str, described: str, method: str = "get", body: dict | None = None, status: int = 200):
        """An answer of the local API; JSON is checked and decoded."""
        connection = Local(host)
        self.addCleanup(connection.close)
        payload = None if body is None else json.dumps(body)
        connection.request(method.upper(), path, payload, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        self.assertEqual(status, response.status, text)
        operation = OPENAPI["paths"][described][method]
        content = operation["responses"][str(status)].get("content", {})
        kind = (response.headers["content-type"] or "").split(";")[0]
        if not content:
            self.assertEqual("", text)
            return None
        self.assertIn(kind, content)
        schema = {**content[kind]["schema"], "components": OPENAPI["components"]}
        if kind not in ("application/json", "application/x-ndjson"):
            return text
        answers = [json.loads(line) for line in text.splitlines()] if kind.endswith("ndjson") else [json.loads(text)]
        for answer in answers:
            jsonschema.Draft202012Validator(schema).validate(answer)
        return answers if kind.endswith("ndjson") else answers[0]

    def detail(self, host: Host, migration: str) -> dict:
        return self.ask(host, f"/v1/migrations/{migration}", "/v1/migrations/{id}")

    def state(self, host: Host, migration: str) -> str | None:
        """What the list says of a move; nothing while its journal is gone and its report not written yet."""
        listed = self.ask(host, "/v1/migrations", "/v1/migrations")
        return next((view["state"] for view in listed if view["migration"] == migration), None)

    def picture(self, host: Host, migration: str) -> tuple[set[str], str]:
        """The kinds of bars in a move's picture, and all its text; drawn by the command."""
        file = f"/tmp/{migration}.svg"
        host.run("godwit", "migrations", "show", migration, "--svg", file)
        drawn = ElementTree.fromstring(host.path(file).read_text())
        bars = {bar.get("class") for bar in drawn.iter(f"{SVG}rect") if bar.get("class")}
        return bars, " ".join(text.text or "" for text in drawn.iter(f"{SVG}text"))


class Migrations(ApiTest):
    def test_a_move_in_each_mode_is_remembered_on_both_hosts_and_drawn(self) -> None:
        self.needs_moves()
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(IMAGE_BYTES)
        here, there = self.ha, self.hb
        for mode, kind in (("stop", "send"), ("post", "drain")):
            with self.subTest(mode=mode):
                self.mode = mode
                migration = self.move(name, here, there).events[0]["migration"]
                self.soon("hb to be done", lambda: self.detail(there, migration)["record"])
                for host, role in ((here, "source"), (there, "destination")):
                    detail = self.detail(host, migration)
                    view = detail["migration"]
                    self.assertEqual((role, name, "moved"), (view["role"], view["container"], view["state"]))
                    self.assertIsNone(detail["journal"])
                    self.assertEqual("release", detail["record"]["phases"][-1]["phase"])
                    listed = host.run("godwit", "migrations").stdout
                    self.assertRegex(listed, rf"{migration} +{role} +{name} +\S+ +moved ")
                bars, text = self.picture(here, migration)
                self.assertLessEqual({"prepare", "freeze", "restore", "resume", kind}, bars)
                for words in (f"{name} from {here.name} to {there.name}: moved", "the freeze", "dump-held", "resume"):
                    self.assertIn(words, text)
                self.assertIn("moved", self.picture(there, migration)[1])
                here, there = there, here

    def test_a_move_is_aborted_by_its_name_and_not_past_its_commit(self) -> None:
        self.needs_moves()
        self.mode = "stop"
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(IMAGE_BYTES)
        unmoved = self.unmoved(name)
        self.slow_link(SLOW_MEGABITS)
        move = self.begin_move(name)
        move.until("freeze")
        move.until_sent(SOME_OF_IT)
        migration = move.events[0]["migration"]
        self.assertEqual("running", self.detail(self.ha, migration)["migration"]["state"])
        picture = f"/v1/migrations/{migration}/timeline.svg"
        self.ask(self.ha, picture, "/v1/migrations/{id}/timeline.svg", status=409)
        said = self.ha.run("godwit", "migrations", "abort", migration)
        self.assertEqual("aborted", said.stdout.strip())
        self.assertEqual(130, move.end().code, move.said)
        unmoved(layers_may_stay=True)
        bars, text = self.picture(self.ha, migration)
        self.assertIn("failed", bars)
        self.assertIn("aborted on request", text)
        error = self.ask(self.ha, f"/v1/migrations/{migration}", "/v1/migrations/{id}", "delete", status=409)
        self.assertIn("is over: aborted", error["error"])
        self.free_link()

        self.mode = "post"
        self.slow_link(SLOW_MEGABITS)
        move = self.begin_move(name)
        move.until("drain")
        migration = move.events[0]["migration"]
        refused = self.ha.run("godwit", "migrations", "abort", migration, check=False)
        self.assertEqual(1, refused.returncode)
        self.assertIn("too late", refused.stderr)
        self.free_link()
        self.assertEqual(0, move.end().code, move.said)

    def test_what_recovery_has_finished_is_remembered(self) -> None:
        self.needs_moves()
        self.mode = "post"
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.fill(IMAGE_BYTES)
        self.slow_link(SLOW_MEGABITS)
        move = self.begin_move(name)
        move.until("drain")
        self.kill_agent(self.ha)
        self.assertEqual(3, move.end().code, move.said)
        self.start_agent(self.ha)
        migration = move.events[0]["migration"]
        detail = self.detail(self.ha, migration)
        self.assertEqual("recovering", detail["migration"]["state"])
        self.assertEqual("committed", detail["journal"]["verdict"])
        self.free_link()
        self.soon("recovery", lambda: self.state(self.ha, migration) == "recovered")
        self.assertIn("at the destination", self.detail(self.ha, migration)["record"]["note"])
        self.holds_nothing(self.ha)

    def test_metrics_count_what_has_ended(self) -> None:
        self.needs_moves()

        def count(host: Host, line: str) -> float:
            found = [told for told in self.ask(host, "/metrics", "/metrics").splitlines() if told.startswith(line + " ")]
            return float(found[0].split()[-1]) if found else 0.0

        moved = 'godwit_moves_total{role="source",ending="moved"}'
        arrived = 'godwit_moves_total{role="destination",ending="moved"}'
        images = 'godwit_sent_bytes_total{kind="image"}'
        before = [count(self.ha, moved), count(self.hb, arrived), count(self.ha, images)]
        name = self.start_redis(command=FORGETFUL_REDIS)
        report = self.move(name).events[-1]["report"]
        self.soon("hb to count", lambda: count(self.hb, arrived) == before[1] + 1)
        self.assertEqual(before[0] + 1, count(self.ha, moved))
        self.assertEqual(before[2] + report["bytes"]["image"], count(self.ha, images))
        self.assertGreaterEqual(count(self.ha, "godwit_downtime_seconds_count"), 1)

    def test_metrics_are_served_where_the_configuration_says(self) -> None:
        listen = f'metrics_listen = "{self.ha.address}:9469"\n'
        with self.agent_file(self.ha, "/etc/godwit/agent.toml", lambda text: listen + text):
            read = ("import socket; agent = socket.create_connection((%r, 9469)); agent.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n');"
                    "print(agent.makefile().read())" % self.ha.address)  # fmt: skip
            self.assertIn("godwit_moves_under_way 0", self.ha.run("python3", "-c", read).stdout)

    def test_other_answers_are_as_described(self) -> None:
        name = self.start_redis(command=FORGETFUL_REDIS)
        self.ask(self.ha, "/v1/version", "/v1/version")
        self.ask(self.ha, f"/v1/containers/{name}", "/v1/containers/{name}")
        self.ask(self.ha, "/v1/containers/nobody", "/v1/containers/{name}", status=404)
        self.ask(self.ha, "/v1/migrations", "/v1/migrations")
        self.ask(self.ha, "/v1/migrations/0123456789abcdef", "/v1/migrations/{id}", status=404)
        self.ask(self.ha, "/v1/migrations/nonsense", "/v1/migrations/{id}", status=404)
        self.ask(self.ha, "/v1/doctor", "/v1/doctor")
        self.ask(self.ha, "/v1/doctor/hb", "/v1/doctor/{peer}")
        wanted = {"container": name, "destination": "hb"}
        self.ask(self.ha, "/v1/plan", "/v1/plan", "post", wanted)
        self.ask(self.ha, "/v1/plan", "/v1/plan", "post", {**wanted, "destination": "nowhere"}, status=404)
        self.ask(self.ha, "/v1/migrations", "/v1/migrations", "post", {**wanted, "destination": "ha"}, status=409)
        self.needs_moves()
        events = self.ask(self.ha, "/v1/migrations", "/v1/migrations", "post", wanted)
        self.assertIn("report", events[-1])


class Recover(ApiTest):
    """What only a human can decide; whatever he decides, there is one copy."""

    mode = "post"

    def setUp(self) -> None:
        super().setUp()
        self.needs_moves()
        self.name = self.start_redis("--restart", "always", command=FORGETFUL_REDIS)
        self.fill(IMAGE_BYTES)
        self.slow_link(SLOW_MEGABITS)
        self.begun = self.begin_move(self.name)
        self.begun.until("drain")
        self.migration = self.begun.events[0]["migration"]

    def recover(self, host: Host, *choice: str) -> str:
        """What the command says; it must succeed."""
        done = host.run("godwit", "migrations", "recover", self.migration, *choice, check=False)
        self.assertEqual(0, done.returncode, done.stderr)
        return done.stdout

    def refused(self, host: Host, *choice: str) -> str:
        """What it says where it must not."""
        done = host.run("godwit", "migrations", "recover", self.migration, *choice, check=False)
        self.assertEqual(1, done.returncode, done.stdout)
        return done.stderr

    def runs_afresh(self, host: Host, other: Host) -> None:
        """One copy runs, without its memory, and nothing of the move is left."""
        self.soon("it to run", lambda: "PONG" in self.redis(self.name, "PING", host=host, check=False))
        self.soon("the other to be gone", lambda: self.name not in self.containers(other))
        self.assertEqual("0", self.redis(self.name, "DBSIZE", host=host))
        # Docker changes no policy while it starts the container: the agent tries again, and is done when it has.
        self.holds_nothing(host)
        self.holds_nothing(other)
        policy = self.docker("inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", self.name, host=host)
        self.assertEqual("always", policy.stdout.strip())

    def test_a_destination_gives_up_whose_source_is_away(self) -> None:
        self.kill_agent(self.ha)
        self.assertEqual(3, self.begun.end().code, self.begun.said)
        path = f"/v1/migrations/{self.migration}/recover"
        advice = self.ask(self.hb, path, "/v1/migrations/{id}/recover")
        self.assertEqual(["give-up"], [remedy["choice"] for remedy in advice["remedies"]])
        self.assertIn("the agent on ha does not answer", self.recover(self.hb))
        self.assertIn("does not help", self.refused(self.hb, "--run-here"))
        self.recover(self.hb, "--give-up")
        self.soon("it to be removed", lambda: self.name not in self.containers(self.hb))
        self.start_agent(self.ha)
        self.runs_afresh(self.ha, self.hb)
        note = self.detail(self.ha, self.migration)["record"]["note"]
        self.assertIn("started afresh here", note)

    def test_a_source_takes_back_what_went_to_a_host_that_is_lost(self) -> None:
        self.kill_agent(self.hb)
        self.docker("rm", "--force", self.name, host=self.hb)
        self.assertEqual(3, self.begun.end().code, self.begun.said)
        self.assertIn("--run-here", self.recover(self.ha))
        self.assertIn("--destination-is-lost", self.refused(self.ha, "--run-here"))
        self.recover(self.ha, "--run-here", "--destination-is-lost")
        self.soon("it to run", lambda: "PONG" in self.redis(self.name, "PING", host=self.ha, check=False))
        self.start_agent(self.hb)
        self.soon("hb to see it", lambda: self.state(self.hb, self.migration) == "broken")
        self.recover(self.hb, "--give-up")
        self.assertNotEqual("broken", self.state(self.hb, self.migration), "nobody has to decide any more")
        self.runs_afresh(self.ha, self.hb)

    def test_a_broken_container_is_started_afresh_where_it_is(self) -> None:
        self.kill_agent(self.hb)
        self.docker("update", "--restart", "no", self.name, host=self.hb)
        self.docker("kill", self.name, host=self.hb)
        self.assertEqual(3, self.begun.end().code, self.begun.said)
        self.start_agent(self.hb)
        self.soon("hb to see it", lambda: self.state(self.hb, self.migration) == "broken")
        self.assertIn("the agent on hb answers", self.refused(self.ha, "--run-here", "--destination-is-lost"))
        self.assertIn("started afresh", self.recover(self.hb, "--run-here"))
        self.runs_afresh(self.hb, self.ha)
