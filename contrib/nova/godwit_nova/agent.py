"""A client of the agent's local API: HTTP and JSON on a unix socket, as docs/openapi.json describes it.

It asks and passes answers on. It refuses to decide anything, and to wait without a deadline: for an answer, and for the
next line of a running move.
"""

import json
import re
from collections.abc import Iterator
from urllib.parse import quote

import requests
from docker.transport import UnixHTTPAdapter

# An answer needs the agent, its engine and, for a plan, the other agent, whose own deadlines are shorter. A move that
# waits for its peer may be silent for longer: whoever follows it asks then.
ANSWER_SECONDS = 60
# Moves and their aborts that are asked for at once: Nova has one thread for each.
CONNECTIONS = 16
# The first release with all that is asked for here.
OLDEST = (0, 1, 0)


class AgentError(Exception):
    """The agent was asked and something was wrong; the text is for the operator."""


class AgentMissing(AgentError):
    """Nobody answers, or not in time: what was asked for may have been done or not."""


class AgentRefused(AgentError):
    """The agent answered that it will not, and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Agent:
    """The agent of this host."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._base = "http+unix://godwit"
        self._session = requests.Session()
        self._session.trust_env = False
        adapter = UnixHTTPAdapter(f"http+unix://{socket_path}", timeout=ANSWER_SECONDS, pool_connections=CONNECTIONS)
        self._session.mount("http+unix://", adapter)

    def check(self) -> dict:
        """The agent's version, if it is one that can be used; AgentError says what is wrong with it."""
        try:
            told = self._ask("GET", "/v1/version").json()
            release = tuple(int(number) for number in re.match(r"(\d+)\.(\d+)\.(\d+)", told["version"]).groups())
            complete = {"host", "peers", "protocol"} <= told.keys()
        except AgentRefused as refused:
            raise AgentError(f"what answers on {self._path} is no agent of Godwit: {refused}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AgentError(f"what answers on {self._path} is no agent of Godwit: its version is {error!r}") from None
        if release < OLDEST or not complete:
            wanted = ".".join(map(str, OLDEST))
            raise AgentError(
                f"the agent on {self._path} is of release {told['version']}, and {wanted} is needed: update godwit"
            )
        return told

    def plan(self, container: str, destination: str, options: dict) -> dict:
        """What a move would find; nothing is touched."""
        wanted = {"container": container, "destination": destination, "engine": "docker", "options": options}
        return self._ask("POST", "/v1/plan", wanted).json()

    def migrate(self, container: str, destination: str, options: dict) -> Iterator[dict]:
        """Begins a move and yields its events, the first of which names it.

        AgentMissing after that says only that nobody tells any more: the move goes on, or an agent recovers it.
        """
        wanted = {"container": container, "destination": destination, "engine": "docker", "options": options}
        answer = self._ask("POST", "/v1/migrations", wanted, stream=True)
        try:
            # A larger piece would be waited for until it is full.
            for line in answer.iter_lines(chunk_size=1):
                yield json.loads(line)
        except (requests.RequestException, OSError) as error:
            raise AgentMissing(f"the agent on {self._path} tells no more of the move of {container}: {error}") from None
        finally:
            answer.close()

    def migrations(self) -> list[dict]:
        """Moves under way, and the last that are over."""
        return self._ask("GET", "/v1/migrations").json()

    def migration(self, migration: str) -> dict:
        """All that is known of one."""
        return self._ask("GET", f"/v1/migrations/{quote(migration, safe='')}").json()

    def abort(self, migration: str) -> None:
        """Asks a move to give up; refused with 409 if it is past its commit, or over."""
        self._ask("DELETE", f"/v1/migrations/{quote(migration, safe='')}")

    def force_complete(self, migration: str) -> None:
        """Has a move freeze its container now."""
        self._ask("POST", f"/v1/migrations/{quote(migration, safe='')}/force-complete")

    def _ask(self, method: str, path: str, body: dict | None = None, *, stream: bool = False) -> requests.Response:
        try:
            answer = self._session.request(method, self._base + path, json=body, stream=stream, timeout=ANSWER_SECONDS)
        except requests.Timeout:
            raise AgentMissing(
                f"the agent on {self._path} did not answer {method} {path} within {ANSWER_SECONDS} s; see its log"
            ) from None
        except (requests.RequestException, OSError) as error:
            raise AgentMissing(
                f"no agent answers on {self._path} ({_cause(error)}): start `godwit agent` on this host"
            ) from None
        if not answer.ok:
            raise AgentRefused(answer.status_code, _sentence(answer))
        return answer


def _sentence(answer: requests.Response) -> str:
    """The agent's own words, or the status of one that has none."""
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.request.method} {answer.request.path_url}: {answer.status_code} {answer.reason}"


def _cause(error: BaseException) -> str:
    """The innermost reason: requests wraps what the socket said several times."""
    while error.__context__ is not None or error.__cause__ is not None:
        error = error.__cause__ or error.__context__
    return str(error)
