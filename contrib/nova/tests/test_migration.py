"""A move's ending, and that Nova hears it once. The agent is a fake on a real socket; Nova's methods are recorded."""

import threading
import unittest
from types import SimpleNamespace
from unittest import mock

import requests
from docker.errors import DockerException
from godwit_nova import migration as module
from godwit_nova.agent import Agent
from godwit_nova.migration import Ending, Migrations, new_data
from nova import exception

from .fakes import FakeAgent, FakeEngine, Lines

MOVE = "0123456789abcdef"
LISTED = {"migration": MOVE, "role": "source", "container": "nova-u"}
STARTED = {"migration": MOVE, "container": "nova-u", "destination": "there"}
MIGRATE, SHOW, ABORT = "POST /v1/migrations", f"GET /v1/migrations/{MOVE}", f"DELETE /v1/migrations/{MOVE}"


def shown(state: str) -> tuple[int, dict]:
    """The agent's answer about the move."""
    return 200, {"migration": {"migration": MOVE, "state": state}, "journal": None, "record": None}


class MigrationTest(unittest.TestCase):
    def setUp(self) -> None:
        self.fake = self.enterContext(FakeAgent())
        self.enterContext(mock.patch.object(module, "ASK_SECONDS", 0.01))
        self.engine = FakeEngine("u")
        self.vifs, self.images, self.events = mock.Mock(), mock.Mock(), []
        self.migrations = Migrations(
            Agent(self.fake.socket), self.engine, self.images, self.vifs, {"mode": "auto"}, self.events.append
        )
        self.instance = SimpleNamespace(uuid="u", progress=0, save=lambda: None)
        self.heard: list[str] = []

    def run_move(self) -> list[str]:
        """Runs Nova's thread to its end; returns which of Nova's methods were called."""
        data = SimpleNamespace(filename=new_data("u", "there").filename, migration=mock.Mock(status="running"))
        self.migrations.run(
            None, self.instance, "there",
            lambda *_: self.heard.append("post"),
            lambda *_, migration_status: self.heard.append(migration_status),
            True, data,
        )  # fmt: skip
        return self.heard

    def moved(self) -> tuple[int, dict]:
        """The agent removes the container before it says that it has moved."""
        self.engine.here.clear()
        return shown("moved")

    def test_a_move_that_succeeds_is_told_by_post_alone(self) -> None:
        self.fake.answers |= {MIGRATE: (200, Lines([STARTED, {"report": {}}])), SHOW: self.moved}
        self.assertEqual(["post"], self.run_move())

    def test_each_other_ending_is_told_by_recover_alone(self) -> None:
        for state, status in (("failed", "failed"), ("refused", "failed"), ("aborted", "cancelled")):
            self.heard = []
            self.fake.answers |= {MIGRATE: (200, Lines([STARTED, {"error": {}, "message": state}])), SHOW: shown(state)}
            self.assertEqual([status], self.run_move())

    def test_a_move_that_does_not_begin_is_told_by_recover(self) -> None:
        self.fake.answers[MIGRATE] = (409, {"error": "the container has a move already"})
        self.assertEqual(["failed"], self.run_move())

    def test_a_container_that_is_not_there_is_told_by_recover(self) -> None:
        self.engine.here.clear()
        self.assertEqual(["failed"], self.run_move())

    def test_a_stream_that_breaks_does_not_end_the_move(self) -> None:
        states = iter([shown("running"), shown("recovering"), shown("unconfirmed")])
        self.fake.answers |= {MIGRATE: (200, Lines([STARTED, None])), SHOW: lambda: next(states, None) or self.moved()}
        self.assertEqual(["post"], self.run_move())

    def test_what_recovery_has_decided_is_seen_where_the_container_is(self) -> None:
        self.fake.answers |= {
            MIGRATE: (200, Lines([STARTED, None])), SHOW: shown("recovered"),
            "GET /v1/migrations": (200, [{**LISTED, "state": "recovered"}]),
        }  # fmt: skip
        self.assertEqual(["failed"], self.run_move())
        self.heard = []
        self.fake.answers[MIGRATE] = lambda: self.engine.here.clear() or (200, Lines([STARTED, None]))
        self.assertEqual(["post"], self.run_move())

    def test_an_agent_that_forgot_the_move_before_its_journal_has_left_the_container_here(self) -> None:
        self.fake.answers |= {MIGRATE: (200, Lines([STARTED, None])), "GET /v1/migrations": (200, [])}
        self.assertEqual(["failed"], self.run_move())

    def test_an_agent_that_is_away_is_waited_for(self) -> None:
        asked = []

        def agent_comes_back():
            asked.append(1)
            return (500, {"error": "starting"}) if len(asked) < 4 else shown("failed")

        self.fake.answers |= {MIGRATE: (200, Lines([STARTED, None])), SHOW: agent_comes_back}
        with self.assertLogs("godwit_nova.migration", "INFO") as logs:
            self.assertEqual(["failed"], self.run_move())
        told = [line for line in logs.output if "waiting for the ending" in line]
        self.assertEqual(1, len(told), "the same reason is told once")
        self.assertIn("starting", told[0])

    def test_a_docker_that_is_away_does_not_decide(self) -> None:
        finds = iter([requests.ConnectionError("no socket"), DockerException("starting")])

        def find(_uuid: str) -> dict | None:
            if error := next(finds, None):
                raise error
            return {"Id": "id-u", "Name": "/nova-u"}

        self.fake.answers |= {SHOW: shown("recovered")}
        with mock.patch.object(self.engine, "find", find):
            self.assertIs(Ending.STAYED, self.migrations.settle(self.instance, MOVE))

    def test_if_nobody_knows_nova_hears_neither(self) -> None:
        self.fake.answers |= {MIGRATE: (200, Lines([STARTED, None])), SHOW: shown("recovering")}
        with mock.patch.object(module, "SETTLE_SECONDS", 0.05), self.assertRaisesRegex(
            exception.MigrationError, f"godwit migrations show {MOVE}"
        ):
            self.run_move()
        self.assertEqual([], self.heard)

    def test_what_post_raises_is_novas_and_recover_is_not_called(self) -> None:
        self.fake.answers |= {MIGRATE: (200, Lines([STARTED])), SHOW: self.moved}
        with mock.patch.object(self, "heard", mock.Mock(append=mock.Mock(side_effect=ZeroDivisionError))) as heard:
            with self.assertRaises(ZeroDivisionError):
                self.run_move()
            heard.append.assert_called_once_with("post")

    def test_progress_that_cannot_be_told_does_not_harm_the_move(self) -> None:
        self.instance.save = mock.Mock(side_effect=RuntimeError("the conductor is away"))
        lines = Lines([STARTED, {"transferred": 5, "expected": 10}])
        self.fake.answers |= {MIGRATE: (200, lines), SHOW: self.moved}
        with self.assertLogs("godwit_nova.progress"):
            self.assertEqual(["post"], self.run_move())

    def test_memory_that_follows_for_long_is_told_as_post_copy(self) -> None:
        commit = {"phase": "commit", "state": "end", "ms": 1, "bytes": 9}
        lines = Lines([STARTED, commit, {"transferred": 9, "expected": 99}])
        self.fake.answers |= {MIGRATE: (200, lines), SHOW: self.moved}
        with mock.patch.object(module, "POST_COPY_SECONDS", -1):
            self.assertEqual(["post"], self.run_move())
        self.assertEqual(["u"], [event.get_instance_uuid() for event in self.events])

    # -- what others want of it ----------------------------------------------------------------------------------------

    def test_an_abort_before_the_move_has_a_name_is_kept_for_it(self) -> None:
        begin = threading.Event()
        self.fake.answers |= {MIGRATE: (200, Lines([begin, STARTED])), ABORT: (202, None), SHOW: shown("aborted")}
        thread = threading.Thread(target=self.run_move)
        thread.start()
        while MIGRATE not in self.fake.asked:
            thread.join(0.01)
        self.migrations.abort(self.instance)
        begin.set()
        thread.join(10)
        self.assertIn(ABORT, self.fake.asked)
        self.assertEqual(["cancelled"], self.heard)

    def test_an_abort_that_comes_too_late_says_so(self) -> None:
        self.fake.answers |= {
            "GET /v1/migrations": (200, [{**LISTED, "state": "running"}]), ABORT: (409, {"error": "too late: redis was committed"}),
        }  # fmt: skip
        with self.assertRaisesRegex(exception.MigrationError, "too late: redis was committed"):
            self.migrations.abort(self.instance)

    # -- the checks ----------------------------------------------------------------------------------------------------

    def test_the_findings_of_a_plan_become_the_reason(self) -> None:
        self.fake.answers["POST /v1/plan"] = (200, {"findings": [
            {"code": "name", "level": "problem", "host": "there", "text": "the name is taken", "remedy": "rename it"},
            {"code": "kernel", "level": "warning", "host": "there", "text": "older kernel", "remedy": ""},
            {"code": "port", "level": "problem", "host": "there", "text": "port 80 is taken", "remedy": ""},
        ]})  # fmt: skip
        with self.assertRaises(exception.MigrationPreCheckError) as raised:
            self.migrations.check_source(self.instance, new_data("u", "there"), None)
        self.assertIn("there: the name is taken (rename it); there: port 80 is taken", str(raised.exception))
        self.assertNotIn("older kernel", str(raised.exception))

    def test_a_plan_without_problems_lets_it_pass(self) -> None:
        self.fake.answers["POST /v1/plan"] = (200, {"findings": []})
        data = new_data("u", "there")
        self.assertIs(data, self.migrations.check_source(self.instance, data, None))

    def test_a_missing_agent_stops_the_check_at_either_end(self) -> None:
        self.fake.answers.clear()
        self.instance.get_network_info = list
        with self.assertRaises(exception.MigrationPreCheckError):
            self.migrations.check_destination(self.instance)
        with self.assertRaises(exception.MigrationPreCheckError):
            self.migrations.check_source(self.instance, new_data("u", "there"), None)

    def test_an_image_that_glance_has_no_more_does_not_stop_the_preparation(self) -> None:
        self.images.ensure.side_effect = exception.ImageNotFound(image_id="i")
        self.instance.image_ref = "i"
        self.migrations.prepare(None, self.instance, [], new_data("u", "there"))
        self.vifs.plug.assert_called_once_with("u", [])
