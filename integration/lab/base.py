"""The root file systems under the hosts: one Debian per suite, made by debootstrap, cached outside the checkout.

A directory's name holds a hash of all that decides its content, so that it is rebuilt when that changes. It is built
under a temporary name and renamed when complete: an interrupted build is never used.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .commands import LabError, run
from .layout import CACHE_DIR

# CRIU 4.2 and Docker 28; CRIU 4.1, which cannot dump a TCP socket on kernels from 6.16 on, and Docker 26.
SUITES = ("forky", "trixie")
ENGINE = [
    "ca-certificates", "containerd", "criu", "crun", "docker-cli", "docker.io", "busybox-static", "iproute2", "iptables",
    "iputils-arping", "libcriu2", "nftables", "openssl", "procps", "runc",
]  # fmt: skip
# What the images hold: a Java runtime and a compiler in one jar, a server written in Go, and others that people run.
PROGRAMS = [
    "default-jre-headless", "libeclipse-jdt-core-compiler-batch-java", "memcached", "nginx-light", "postgresql",
    "prometheus-pushgateway", "python3-minimal", "redis-server",
]  # fmt: skip
PACKAGES = ENGINE + PROGRAMS
# What archives of ours and theirs cross to, and what `make bench-move` and `make bench-archive` measure us beside.
PEER = ["checkpointctl", "conmon", "netavark", "podman", "socat", "zstd"]
# What a Nova stands on, and an interpreter that makes virtual environments for it.
CLOUD = ["mariadb-server", "python3-venv", "rabbitmq-server"]
# For whoever wants some of both: one base, because each takes minutes to build.
GUESTS = [*PEER, *CLOUD]
# Raise it when the steps below change what they produce.
RECIPE_VERSION = 2
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Older debootstraps have no script named after a new suite; all of Debian's suites share this one.
SCRIPT = "/usr/share/debootstrap/scripts/sid"
FALLBACK_MIRROR = "http://deb.debian.org/debian"
# 80 s on an idle machine of two cores with a near mirror.
BUILD_DEADLINE_SECONDS = 1200.0
# Checkouts side by side may want different recipes; one that nobody has asked for as long as this is removed.
KEEP_SECONDS = 3 * 24 * 3600.0


def base_directory(suite: str, extra: Sequence[str] = ()) -> Path:
    """Where the base that the present recipe makes of a suite lies, whether it exists or not; with further packages if told."""
    recipe = "\n".join([suite, str(RECIPE_VERSION), *_packages(extra)])
    return CACHE_DIR / f"base-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def base_with(suite: str, extra: Sequence[str] = ()) -> Path:
    """Returns a base that has these packages at least: the one with all of GUESTS if it is there, else exactly these."""
    full = base_directory(suite, GUESTS)
    return ensure_base(suite, GUESTS if full.is_dir() and set(extra) <= set(GUESTS) else extra)


def ensure_base(suite: str, extra: Sequence[str] = ()) -> Path:
    """Returns the base of a suite, with further packages if told; builds it first when it is missing."""
    if suite not in SUITES:
        raise LabError(f"no base {suite!r}; there are {', '.join(SUITES)}")
    wanted = base_directory(suite, extra)
    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    try:
        os.utime(wanted)  # one that is there does not wait until another checkout has built its own
    except FileNotFoundError:
        with _build_lock():
            if not wanted.is_dir():
                print(f"lab: building {wanted} (a minute or two)", flush=True)
                _build(suite, wanted, _packages(extra))
            _remove_stale()
    return wanted


def _packages(extra: Sequence[str]) -> list[str]:
    return sorted({*PACKAGES, *extra})


def _build(suite: str, wanted: Path, packages: list[str]) -> None:
    partial = wanted.with_name(wanted.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # It lets no package start a daemon meanwhile.
    run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", f"--keyring={KEYRING}", suite,
         str(partial), _mirror(), SCRIPT],
        deadline=BUILD_DEADLINE_SECONDS,
    )  # fmt: skip
    # the last is a database which the package makes at once
    for waste in ["var/cache/apt", "var/lib/apt/lists", "var/lib/postgresql"]:
        shutil.rmtree(partial / waste)
        (partial / waste).mkdir()
    partial.rename(wanted)


def _mirror() -> str:
    """The mirror that the machine itself uses for Debian."""
    try:
        listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]).stdout.split()
    except LabError:
        listed = []
    archives = [uri.rstrip("/") for uri in listed if uri.startswith("http") and uri.rstrip("/").endswith("/debian")]
    return archives[0] if archives else FALLBACK_MIRROR


def _remove_stale() -> None:
    for other in CACHE_DIR.glob("base-*"):
        if time.time() - other.stat().st_mtime > KEEP_SECONDS and not _in_use(other):
            shutil.rmtree(other)


def _in_use(base: Path) -> bool:
    """Whether a host of some lab stands on this base: pulling it away would break that host."""
    for mountinfo in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if f"lowerdir={base}," in mountinfo.read_text():
                return True
        except OSError:
            continue  # the process has ended meanwhile
    return False


@contextmanager
def _build_lock() -> Iterator[None]:
    with open(CACHE_DIR / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
