"""What is published of the tests: each promise and each row of a table names tests that exist."""

import importlib
import re
import unittest
from pathlib import Path

from lab.layout import REPOSITORY

# `test_file.Class.test_name`, and `path/of/file.rs#name_of_a_test`.
PYTHON, RUST = r"`(test_\w+)\.(\w+)\.(test_\w+)`", r"`([\w/]+\.rs)#(\w+)`"


class Published(unittest.TestCase):
    def test_each_program_and_object_names_a_test_that_exists(self) -> None:
        self.check("docs/checkpointed.md", r"\|(?! *(-|program |object ))")

    def test_each_promise_names_a_test_that_exists(self) -> None:
        self.check("docs/specification.md", r"\| \d")

    def check(self, document: str, beginning: str) -> None:
        """Looks at all rows of a document's tables that begin so."""
        rows = [line for line in Path(REPOSITORY, document).read_text().splitlines() if re.match(beginning, line)]
        self.assertGreater(len(rows), 8)
        for row in rows:
            with self.subTest(row=row):
                python, rust = re.findall(PYTHON, row), re.findall(RUST, row)
                self.assertTrue(python or rust, "the row names no test")
                for module, kind, function in python:
                    found = getattr(importlib.import_module(f"tests.{module}"), kind, None)
                    self.assertTrue(hasattr(found, function), f"there is no {module}.{kind}.{function}")
                for path, function in rust:
                    source = Path(REPOSITORY, path).read_text()
                    is_test = re.search(rf"test\b[^{{]*\n\s*(async )?fn {function}\(", source)
                    self.assertTrue(is_test, f"{path} has no test {function}")
