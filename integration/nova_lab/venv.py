"""A virtual environment with Nova, Placement, Glance and the driver, cached outside the checkout.

It has exactly what constraints.txt lists, and its name says so by a hash. The driver is installed into it as an operator
does it, from this checkout; whoever uses the environment holds a lock on it, so that no other checkout puts its own driver
there meanwhile.
"""

import fcntl
import hashlib
import shutil
import time
from pathlib import Path
from typing import IO

from lab.commands import run, wait_until
from lab.layout import CACHE_DIR, REPOSITORY

from .python import Python

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
DRIVER = REPOSITORY / "contrib" / "nova"
# Raise it when `_build` changes what it produces.
RECIPE_VERSION = 1
# Checkouts side by side may want different ones; one that nobody has used as long as this is removed.
KEEP_SECONDS = 3 * 24 * 3600.0
# 70 s on two idle cores with a near index; the rest is for a busy machine and a far one.
INSTALL_DEADLINE_SECONDS = 1200.0
# Another checkout's tests may run for so long.
LOCK_DEADLINE_SECONDS = 1800.0


class Venv:
    """The environment, from `use` on until the process ends."""

    def __init__(self, python: Python) -> None:
        self._python = python
        recipe = f"{RECIPE_VERSION}\n{python.version()}\n{CONSTRAINTS.read_text()}"
        self.path = CACHE_DIR / f"nova-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        # Touched at each use; what it says is for `_remove_stale`.
        self._complete = self.path / "complete"
        # Which driver is installed.
        self._driver = self.path / "driver"
        self._lock: IO | None = None

    def use(self) -> "Venv":
        """Installs what is missing, and keeps others from changing it."""
        CACHE_DIR.mkdir(parents=True, exist_ok=True)
        self._lock = open(f"{self.path}.lock", "w")
        self._wait_for(fcntl.LOCK_SH)
        if not self._is_ready():
            self._wait_for(fcntl.LOCK_EX)
            if not self._complete.exists():
                print(f"nova: installing Nova into {self.path} (a minute or two)", flush=True)
                self._build()
                _remove_stale()
            self._install_driver()
            self._wait_for(fcntl.LOCK_SH)
        self._complete.touch()
        return self

    def _is_ready(self) -> bool:
        return self._complete.exists() and self._driver.exists() and self._driver.read_text() == _fingerprint()

    def _wait_for(self, lock: int) -> None:
        def taken() -> bool:
            try:
                fcntl.flock(self._lock, lock | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_until(f"another checkout to be done with {self.path}", taken, LOCK_DEADLINE_SECONDS)

    def command(self, program: str, *argv: str) -> list[str]:
        """The command that runs one of its programs."""
        return self._python.command(str(self.path / "bin" / program), *argv)

    def _build(self) -> None:
        # Its scripts name their interpreter by its path, so it is made in its place; an interrupted one lacks the mark.
        shutil.rmtree(self.path, ignore_errors=True)
        run(self._python.command(self._python.path, "-m", "venv", str(self.path)), deadline=INSTALL_DEADLINE_SECONDS)
        self._pip("install", "--requirement", str(CONSTRAINTS))
        # Nova's own tests look for the configuration files beside its modules.
        (site_packages,) = self.path.glob("lib/python*/site-packages")
        (site_packages / "etc").symlink_to(self.path / "etc")
        self._complete.touch()

    def _install_driver(self) -> None:
        self._pip("install", "--no-build-isolation", "--force-reinstall", str(DRIVER))
        self._driver.write_text(_fingerprint())

    def _pip(self, *argv: str) -> None:
        run(
            self.command("python", "-m", "pip", *argv, "--quiet", "--no-deps", "--disable-pip-version-check"),
            deadline=INSTALL_DEADLINE_SECONDS,
        )  # fmt: skip


def _remove_stale() -> None:
    for mark in CACHE_DIR.glob("nova-*/complete"):
        if time.time() - mark.stat().st_mtime > KEEP_SECONDS:
            mark.unlink()
            shutil.rmtree(mark.parent)


def _fingerprint() -> str:
    files = sorted(path for path in DRIVER.rglob("*") if path.suffix in (".py", ".toml"))
    content = b"".join(str(path.relative_to(DRIVER)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()
