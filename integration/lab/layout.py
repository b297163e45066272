"""Names, addresses and places of the lab.

Everything that a lab leaves in the machine carries its name (GODWIT_LAB, `gwl` unless told): network namespaces,
cgroups and directories. So several labs can stand side by side, and taking one down never touches another.
"""

import os
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

NAME = os.environ.get("GODWIT_LAB", "gwl")
if not re.fullmatch(r"[a-z]{1,8}", NAME):  # it is part of link names, which end at 15 bytes
    raise SystemExit(f"GODWIT_LAB={NAME!r}: a lab's name is one to eight letters a to z")

# The Debian suite both hosts stand on, unless told by `--base`; see base.py.
DEFAULT_BASE = os.environ.get("GODWIT_BASE", "forky")

HOST_ADDRESSES = {"ha": "10.77.0.11", "hb": "10.77.0.12"}
CLIENT = "client"
CLIENT_ADDRESS = "10.77.0.20"
# The switch between them has a network namespace of its own, so that the machine's network never sees the lab.
WIRE = "wire"
WIRE_ADDRESS = "10.77.0.1"
SUBNET = "10.77.0.0/24"
PREFIX_LENGTH = 24

# Addresses which Docker gives away by itself on the network `lan`; distinct, since two engines share one segment.
LAN_RANGES = {"ha": "10.77.0.128/27", "hb": "10.77.0.160/27"}
LAN_NETWORK = "lan"

AGENT_PORT = 7433

CACHE_DIR = Path("/var/cache/godwit")
# The hosts' disks. On a real file system: an overlay cannot lie on an overlay.
DISK_DIR = Path("/var/lib/godwit-lab") / NAME
STATE_DIR = Path("/run/godwit-lab") / NAME

PLACES = [*HOST_ADDRESSES, CLIENT]


def qualified(name: str) -> str:
    """The name under which a part of this lab is known to the machine."""
    return f"{NAME}-{name}"


def binaries_dir() -> Path:
    """Where freshly built binaries lie: GODWIT_BINARIES, or cargo's target directory of this checkout."""
    told = os.environ.get("GODWIT_BINARIES")
    if told:
        return Path(told)
    return Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "debug"
