"""The list of a host's containers: of both engines, in any state, with the moves they are in."""

from lab.hosts import Host
from tests.moving import FORGETFUL_REDIS
from tests.support import STOCK_RUNTIME
from tests.test_migrations import IMAGE_BYTES, SLOW_MEGABITS, SOME_OF_IT, ApiTest
from tests.test_move_containerd import BUSYBOX, COUNTER, CtrMoveTest


class Containers(CtrMoveTest, ApiTest):
    def listed(self, host: Host) -> dict[str, dict]:
        """The list's entries, by the names of their containers."""
        answer = self.ask(host, "/v1/containers", "/v1/containers")
        self.assertEqual([], answer["silent"])
        return {entry["name"]: entry for entry in answer["containers"]}

    def test_containers_of_both_engines_are_listed_in_whatever_state(self) -> None:
        docker = self.start("busybox", "sh", "-c", "while :; do sleep 1; done")
        ended = self.new_name()
        self.docker("run", "--name", ended, "--runtime", STOCK_RUNTIME, "busybox", "true")
        counter = self.run_ctr(*COUNTER)
        elsewhere = f"birds/{self.run_ctr(*COUNTER, namespace='birds')}"
        self.ctr("task", "pause", counter)

        listed = self.listed(self.ha)
        ours = {"runtime": self.runtime, "under_godwit": True, "migration": None}
        of_docker = {"engine": "docker", "image": "busybox"}
        self.assertEqual(
            {**ours, **of_docker, "id": self.inspect(docker, "{{.Id}}"), "name": docker, "state": "running"}, listed[docker]
        )
        theirs = {"runtime": STOCK_RUNTIME, "under_godwit": False, "migration": None}
        self.assertEqual(
            {**theirs, **of_docker, "id": self.inspect(ended, "{{.Id}}"), "name": ended, "state": "exited"}, listed[ended]
        )
        of_ctr = {**ours, "engine": "containerd", "image": BUSYBOX}
        self.assertEqual({**of_ctr, "id": counter, "name": counter, "state": "paused"}, listed[counter])
        id_there = elsewhere.removeprefix("birds/")
        self.assertEqual({**of_ctr, "id": id_there, "name": elsewhere, "state": "running"}, listed[elsewhere])
        self.assertEqual(1, sum(entry["id"] == listed[docker]["id"] for entry in listed.values()), "once, though of containerd too")

        table = self.ha.run("godwit", "containers").stdout
        self.assertRegex(table, rf"{listed[docker]['id'][:12]} +{docker} +docker +running +yes +{self.runtime} +- +busybox")
        self.assertRegex(table, rf"{id_there} +{elsewhere} +containerd +running +yes ")
        self.ctr("task", "resume", counter)
        self.ctr("task", "kill", "--signal", "SIGKILL", counter)
        self.soon("its end to be told", lambda: self.listed(self.ha)[counter]["state"] == "exited")

    def test_a_container_is_listed_with_its_move_on_both_hosts(self) -> None:
        self.mode = "stop"
        name = self.start_redis(command=FORGETFUL_REDIS)
        counter = self.run_ctr(*COUNTER)
        self.fill(IMAGE_BYTES)
        self.slow_link(SLOW_MEGABITS)
        move = self.begin_move(name)
        move.until("freeze")
        move.until_sent(SOME_OF_IT)
        migration = move.events[0]["migration"]
        here, there = self.listed(self.ha), self.listed(self.hb)
        self.assertEqual((migration, "redis:8"), (here[name]["migration"], here[name]["image"]))
        self.assertEqual(None, here[counter]["migration"])
        self.assertEqual((migration, True), (there[name]["migration"], there[name]["under_godwit"]))
        self.assertNotEqual(here[name]["id"], there[name]["id"])
        self.free_link()
        self.assertEqual(0, move.end().code, move.said)
        self.soon("the move to be over", lambda: self.listed(self.hb)[name]["migration"] is None)
        self.assertEqual("running", self.listed(self.hb)[name]["state"])
        self.assertNotIn(name, self.listed(self.ha))

    def test_an_engine_that_is_away_is_named_and_the_other_listed(self) -> None:
        counter = self.run_ctr(*COUNTER)
        away = 'docker_socket = "/nonexistent/docker.sock"\n'
        with self.agent_file(self.ha, "/etc/godwit/agent.toml", lambda text: away + text):
            done = self.ha.run("godwit", "containers")
        self.assertIn("not listed: docker does not answer", done.stderr)
        self.assertRegex(done.stdout, rf"{counter} +containerd +running")
