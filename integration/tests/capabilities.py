"""What the lab's hosts can do. A test that needs more is skipped, and says why.

What can be tried is tried, once in each lab. A version decides only over what a program is known to refuse, or not yet to.
"""

import functools
import re

from lab.hosts import Host

# A process with nothing but a listening socket; the dump ends it, or the script does.
SOCKET_PROBE = r"""
directory=$(mktemp -d)
setsid python3 -c '
import os, socket, sys, time
os.closerange(3, 64)
listener = socket.create_server(("127.0.0.1", 0))
open(sys.argv[1], "w").close()
time.sleep(60)' "$directory/up" </dev/null >/dev/null 2>&1 &
for _ in $(seq 1000); do [ -e "$directory/up" ] && break; sleep 0.01; done
criu dump --tree $! --images-dir "$directory" --log-file dump.log >&2
code=$?
kill -KILL $! 2>/dev/null
sed -n 's/.*Error ([^)]*): //p' "$directory/dump.log"
rm -rf "$directory"
exit $code
"""


def why_no_sockets(host: Host) -> str:
    """Why CRIU cannot dump a network socket on this host; empty if it can."""
    return _why_no_sockets(host.name, host.init())


@functools.cache
def _why_no_sockets(name: str, _init: int) -> str:
    done = Host(name).run("sh", "-c", SOCKET_PROBE, check=False)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stdout.splitlines() if "RLIMIT_NOFILE" not in line]
    return f"this host's CRIU cannot dump network sockets: {errors[0] if errors else done.stderr.strip()}"


def version(host: Host, program: str) -> tuple[int, ...]:
    """The version a program of the host gives itself, its first two numbers."""
    said = host.run(program, "--version").stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None:
        raise AssertionError(f"{program} --version says no version: {said!r}")
    return tuple(map(int, found.groups()))
