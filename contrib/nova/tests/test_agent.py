"""The client of the agent: what it says when the agent is missing, old, or stops in the middle."""

import threading
import unittest
from unittest import mock

from godwit_nova import agent as module
from godwit_nova.agent import Agent, AgentError, AgentMissing, AgentRefused

from .fakes import VERSION, FakeAgent, Lines


class AgentTest(unittest.TestCase):
    def setUp(self) -> None:
        self.fake = self.enterContext(FakeAgent())
        self.agent = Agent(self.fake.socket)

    def test_says_who_it_is(self) -> None:
        self.assertEqual("here", self.agent.check()["host"])

    def test_a_missing_agent_is_an_error_that_says_what_to_start(self) -> None:
        with self.assertRaisesRegex(AgentMissing, "/nowhere/agent.sock .*No such file.*start `godwit agent`"):
            Agent("/nowhere/agent.sock").check()

    def test_an_older_agent_is_an_error_that_says_what_to_do(self) -> None:
        self.fake.answers["GET /v1/version"] = (200, {**VERSION, "version": "0.0.9"})
        with self.assertRaisesRegex(AgentError, "0.0.9, and 0.1.0 is needed: update"):
            self.agent.check()

    def test_something_else_on_the_socket_is_no_agent(self) -> None:
        for status, body in ((404, {}), (200, {"version": 7}), (200, {"version": "new"}), (200, [])):
            self.fake.answers["GET /v1/version"] = (status, body)
            with self.assertRaises(AgentError):
                self.agent.check()

    def test_a_refusal_has_the_agents_own_words(self) -> None:
        self.fake.answers["POST /v1/plan"] = (502, {"error": "hb does not answer"})
        with self.assertRaisesRegex(AgentRefused, "^hb does not answer$") as raised:
            self.agent.plan("redis", "there", {})
        self.assertEqual(502, raised.exception.status)

    def test_a_move_is_told_line_by_line(self) -> None:
        lines = [{"migration": "m"}, {"phase": "plan", "state": "begin"}]
        self.fake.answers["POST /v1/migrations"] = (200, Lines(lines))
        self.assertEqual(lines, list(self.agent.migrate("redis", "there", {})))

    def test_an_agent_that_falls_silent_is_missing_after_the_deadline(self) -> None:
        self.fake.answers["POST /v1/migrations"] = (200, Lines([{"migration": "m"}, threading.Event()]))
        with mock.patch.object(module, "ANSWER_SECONDS", 0.2):
            events = self.agent.migrate("redis", "there", {})
            self.assertEqual({"migration": "m"}, next(events))
            with self.assertRaises(AgentMissing):
                next(events)
