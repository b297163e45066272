"""Ten containers move at once, in both directions, under one rate; and no container moves twice at a time."""

import json

from lab.hosts import Host
from tests.moving import MoveTest
from tests.test_move_containerd import COUNTER
from tests.test_move_refusals import FAILED, REFUSED

N_EACH_WAY = 5
RATE = 50_000_000
BALLAST_BYTES = 6 << 20


class Many(MoveTest):
    """Small containers, each with a counter in its memory and a file of its own."""

    def start_counter(self, host: Host) -> str:
        """A container that counts, with a word of its own; it has a file that nothing compresses."""
        self.image("busybox", host)
        name = self.start("busybox", *COUNTER, options=("--network", "none", "--restart", "always"), host=host)
        for other in self.hosts:
            self.addCleanup(self.docker, "rm", "--force", name, host=other, check=False)
        self.docker("exec", name, "sh", "-c", f"head -c {BALLAST_BYTES} /dev/urandom >/ballast", host=host)
        self.soon("the counter", lambda: len(self.said(name, host)[0].split()) == 2)
        return name

    def said(self, name: str, host: Host) -> tuple[str, str]:
        """The counter's word and number, and the digest of the file."""
        count = self.docker("exec", name, "cat", "/count", host=host, check=False).stdout
        return count, self.docker("exec", name, "sha256sum", "/ballast", host=host, check=False).stdout

    def is_the_same(self, name: str, before: tuple[str, str], host: Host) -> None:
        """It is the same process with the same file, and it counts on."""
        word, number = before[0].split()
        self.soon("it to count on", lambda: int((self.said(name, host)[0].split() or [0])[-1]) > int(number) + 5)
        count, digest = self.said(name, host)
        self.assertEqual((word, before[1]), (count.split()[0], digest))
        self.assertEqual("running 0", self.inspect(name, "{{.State.Status}} {{.RestartCount}}", host))

    def test_ten_containers_move_at_once_in_both_directions_under_one_rate_and_none_of_them_twice(self) -> None:
        self.needs_moves()

        def bounded(text: str) -> str:
            return f'bandwidth = "{RATE // 1_000_000}M"\n{text}'

        path = "/etc/godwit/agent.toml"
        with self.agent_file(self.ha, path, bounded), self.agent_file(self.hb, path, bounded):
            ways = [(self.ha, self.hb), (self.hb, self.ha)] * N_EACH_WAY
            names = [self.start_counter(source) for source, _ in ways]
            before = [self.said(name, source) for name, (source, _) in zip(names, ways)]
            moves = [self.begin_move(name, *way) for name, way in zip(names, ways)]
            self.a_second_is_refused(names[0])
            for name, way, move in zip(names, ways, moves):
                move.end()
                self.assertEqual(0, move.code, f"{name} from {way[0].name}: {move.said}")
                self.assertEqual([], move.events[-1]["report"]["remarks"])
            for name, (source, target), was in zip(names, ways, before):
                self.is_the_same(name, was, target)
                self.assertNotIn(name, self.containers(source))
            for source in self.hosts:
                self.below_the_rate([move for move, way in zip(moves, ways) if way[0] is source])
                self.holds_nothing(source)

    def a_second_is_refused(self, name: str) -> None:
        """A container of ha whose move is under way has no second, and a plan says so."""
        self.soon("the move", lambda: name in self.ha.run("godwit", "migrations").stdout)
        second = self.begin_move(name).end()
        self.assertEqual(FAILED, second.code, second.said)
        self.assertIn(f"{name}: a migration of this container is under way already", second.stderr)
        plan = self.ha.run("godwit", "plan", name, "hb", "--json", check=False)
        self.assertEqual(REFUSED, plan.returncode, plan.stdout + plan.stderr)
        self.assertIn("busy", [one["code"] for one in json.loads(plan.stdout)["findings"]])

    def below_the_rate(self, moves: list) -> None:
        """What one agent sent in the time from the first to the last event of its moves."""
        seconds = max(move.seen_at[-1] for move in moves) - min(move.seen_at[0] for move in moves)
        reports = [move.events[-1]["report"] for move in moves]
        sent = sum(sum(report["bytes"].values()) + (report["memory"] or {"wire": 0})["wire"] for report in reports)
        self.assertGreater(sent, N_EACH_WAY * BALLAST_BYTES)
        self.assertLess(sent * 8 / seconds, RATE * 1.05)
