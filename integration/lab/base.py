"""The root file system under both hosts: a Debian made by debootstrap, cached outside the checkout.

The directory's name holds a hash of all that decides its content, so that it is rebuilt when that changes. It is built
under a temporary name and renamed when complete: an interrupted build is never used.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .commands import LabError, run
from .layout import CACHE_DIR

SUITE = "forky"  # CRIU 4.2: older ones cannot dump a TCP socket on kernels from 6.16 on
PACKAGES = [
    "ca-certificates", "containerd", "criu", "docker-cli", "docker.io", "busybox-static", "iproute2", "iptables",
    "iputils-arping", "nftables", "openssl", "procps", "python3-minimal", "redis-server", "runc",
]  # fmt: skip
# Raise it when the steps below change what they produce.
RECIPE_VERSION = 1
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Older debootstraps have no script named after a new suite; all of Debian's suites share this one.
SCRIPT = "/usr/share/debootstrap/scripts/sid"
FALLBACK_MIRROR = "http://deb.debian.org/debian"
# 50 s on an idle machine of two cores with a near mirror.
BUILD_DEADLINE_SECONDS = 1200.0


def base_directory() -> Path:
    """Where the base that the present recipe makes lies, whether it exists or not."""
    recipe = "\n".join([SUITE, str(RECIPE_VERSION), *sorted(PACKAGES)])
    return CACHE_DIR / f"base-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def ensure_base() -> Path:
    """Returns the base, building it first when it is missing."""
    wanted = base_directory()
    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    with _build_lock():
        if not wanted.is_dir():
            print(f"lab: building {wanted} (about a minute)", flush=True)
            _build(wanted)
        _remove_others(wanted)
    return wanted


def _build(wanted: Path) -> None:
    partial = wanted.with_name(wanted.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(sorted(PACKAGES))}", f"--keyring={KEYRING}", SUITE,
         str(partial), _mirror(), SCRIPT],
        deadline=BUILD_DEADLINE_SECONDS,
    )  # fmt: skip
    for waste in ["var/cache/apt", "var/lib/apt/lists"]:
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


def _remove_others(wanted: Path) -> None:
    for other in CACHE_DIR.glob(f"base-{SUITE}-*"):
        if other != wanted and not _in_use(other):
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
