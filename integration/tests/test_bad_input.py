"""What a broken or hostile client sends to our shim: it is refused with the reason, leaves nothing, and harms no container."""

import json

from tests.task_api import CALLS, OURS, ShimTest
from tests.ttrpc import any_of, number


class BadInput(ShimTest):
    """Each test ends with a call that must still work."""

    def test_a_create_that_failed_leaves_nothing_in_the_way_of_the_next(self) -> None:
        shim = self.shim(OURS)
        for fields in (
            {"rootfs": [{1: "bind", 2: "/no/such/place", 4: ["rbind"]}]}, {"stdout": "/no/such/fifo"},
            {"stdout": "gopher://hole"}, {"checkpoint": "/no/such/image"}, {"bundle": "relative"},
            {"options": any_of("no.such.Options", b"x")},
        ):  # fmt: skip
            with self.subTest(fields=fields):
                self.assertNotEqual("OK", shim.try_create(**fields).code)
                self.assertEqual("NOT_FOUND", shim.call("State").code)
                self.assertNotIn(shim.bundle, self.ha.run("cat", "/proc/self/mountinfo").stdout)
                self.assertFalse(self.ha.path(f"/run/containerd/runc/taskapi/{shim.id}").exists())
        shim.run()

    def test_ids_that_are_no_file_names_are_refused_with_the_rule(self) -> None:
        shim = self.shim(OURS)
        for wrong in ("", ".", "..", "../up", "a/b", "a b", "a\nb", "\u00e4", "x" * 300, "-" * 201):
            with self.subTest(wrong):
                answer = shim.try_create(id=wrong)
                self.assertEqual("INVALID_ARGUMENT", answer.code)
                self.assertIn("cannot be the id of a container", answer.words)
        shim.run()

    def test_a_configuration_that_is_none_is_named(self) -> None:
        shim = self.shim(OURS)
        config = self.ha.path(f"{shim.bundle}/config.json")
        good = config.read_text()
        for bad in ("", "{", "[]", "null", '{"process": 5}', '{"ociVersion": 5}', good[: len(good) // 2], "\x00" * 5000):
            with self.subTest(bad[:20]):
                config.write_text(bad)
                answer = shim.try_create()
                self.assertNotEqual("OK", answer.code)
                # What Godwit does not read itself, runC names by the field.
                self.assertRegex(answer.words, r"config|Spec\.(process|ociVersion)")
        config.write_text(good)
        shim.run()

    def test_bytes_that_are_no_message_harm_nobody(self) -> None:
        shim = self.shim(OURS)
        shim.run()
        for method in CALLS:
            with shim.connection() as connection:
                answer = connection.call(shim.service, method, b"\x0a\xff\xff\xff\xff\xff")
                self.assertNotEqual("OK", answer.code, method)
        shim.ok("State")

    def test_an_exec_of_what_is_no_process_harms_nobody(self) -> None:
        shim = self.shim(OURS)
        shim.run()
        for spec in (b"", b"[]", b"5", b"null", b'"x"', b"{", b"\xff"):
            with self.subTest(spec):
                self.assertEqual("INVALID_ARGUMENT", shim.call("Exec", exec_id="e", spec=any_of("x", spec)).code)
        self.assertEqual("INVALID_ARGUMENT", shim.call("Exec", exec_id="e").code)
        self.assertEqual("INVALID_ARGUMENT", shim.exec("", "true").code)
        for spec in ({}, {"args": []}, {"args": 5}, {"args": ["true"], "cwd": 7}):
            with self.subTest(spec):
                shim.ok("Exec", exec_id="f", spec=any_of("x", json.dumps(spec).encode()))
                self.assertEqual("UNKNOWN", shim.call("Start", exec_id="f").code)
                shim.ok("Delete", exec_id="f")
        shim.ok("State")

    def test_resources_that_are_none_harm_nobody(self) -> None:
        shim = self.shim(OURS)
        shim.run()
        shim.ok("Update")
        for resources in (b"", b"[]", b"5", b"null", b"{", b"\xff"):
            with self.subTest(resources):
                self.assertEqual("INVALID_ARGUMENT", shim.call("Update", resources=any_of("x", resources)).code)
        shim.ok("State")

    def test_an_exec_may_have_any_id(self) -> None:
        shim = self.shim(OURS)
        shim.run()
        for exec_id in ("../../etc/passwd", "a b", "\u00e4", "x" * 5000):
            shim.exec(exec_id, "sh", "-c", "exit 4")
            shim.ok("Start", exec_id=exec_id)
            self.assertEqual(4, number(shim.ok("Wait", exec_id=exec_id).payload, 1))
            shim.ok("Delete", exec_id=exec_id)
