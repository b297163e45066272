"""`godwit doctor`: what is wrong with a host is told with its remedy, from here, from the other host, and without an agent."""

import json
from contextlib import contextmanager
from pathlib import Path

from lab.hosts import Host
from lab.layout import DISK_DIR
from tests.moving import MoveTest

HEALTHY, SICK, FAILED = 0, 1, 1
TLS = "/etc/godwit/tls"
# A certificate for the host's own key, of the lab's authority, which ended yesterday.
EXPIRED = f"""
set -e
cd {TLS}
openssl req -new -key host.key -subj /CN=ha -addext subjectAltName=DNS:ha -addext extendedKeyUsage=serverAuth,clientAuth -out /run/csr
openssl x509 -req -in /run/csr -CA ca.pem -CAkey /run/ca.key -copy_extensions copy \
    -not_before 20200101000000Z -not_after 20200201000000Z -out host.pem
rm /run/csr /run/ca.key
"""


class Doctor(MoveTest):
    """Each test breaks one thing and looks for it in the findings."""

    def doctor(self, *options: str, host: Host | None = None) -> tuple[int, list[dict]]:
        """The exit status and the findings."""
        done = (host or self.ha).run("godwit", "doctor", "--json", *options, check=False)
        self.assertIn(done.returncode, (HEALTHY, SICK), done.stderr)
        diagnosis = json.loads(done.stdout)
        self.assertEqual(done.returncode == HEALTHY, diagnosis["healthy"], diagnosis)
        return done.returncode, diagnosis["findings"]

    def problems(self, *options: str) -> dict[tuple[str, str], str]:
        """What a sick host says: host and code, text and remedy."""
        code, findings = self.doctor(*options)
        self.assertEqual(SICK, code, findings)
        return {(one["host"], one["code"]): f"{one['text']} -> {one['remedy']}" for one in findings if one["level"] == "problem"}

    @contextmanager
    def away(self, host: Host, path: str):
        """A file that is not there inside the context."""
        host.run("mv", path, f"{path}.away")
        try:
            yield
        finally:
            host.run("mv", f"{path}.away", path)

    def test_hosts_as_they_should_be(self) -> None:
        self.needs_moves()
        code, findings = self.doctor("--peer", "hb")
        self.assertEqual(HEALTHY, code, findings)
        seen = {(one["host"], one["code"]) for one in findings}
        every = ("kernel", "criu", "criu-features", "runc", "nft", "engine", "containerd", "storage-driver", "experimental", "shim",
                 "sysctl", "capabilities", "image-room", "memory", "certificates")  # fmt: skip
        self.assertLessEqual({(host, code) for host in ("ha", "hb") for code in every}, seen)
        self.assertLessEqual({("ha", code) for code in ("agent", "architecture", "cpu-flags", "cgroups", "clock")}, seen)

    def test_a_host_without_nft(self) -> None:
        with self.away(self.ha, "/usr/sbin/nft"):
            self.assertIn("install nftables", self.problems().get(("ha", "nft"), ""))

    def test_another_host_without_nft_and_with_another_processor(self) -> None:
        text = self.hb.run("cat", "/proc/cpuinfo").stdout
        self.hb.write("/run/cpuinfo", text.replace(" sse4_2", ""))
        self.hb.run("mount", "--bind", "/run/cpuinfo", "/proc/cpuinfo")
        self.addCleanup(self.hb.run, "umount", "/proc/cpuinfo")
        with self.away(self.hb, "/usr/sbin/nft"):
            code, findings = self.doctor("--peer", "hb")
        self.assertEqual(SICK, code, findings)
        told = {(one["host"], one["code"], one["level"]): one["text"] for one in findings}
        self.assertIn(("hb", "nft", "problem"), told)
        self.assertIn(("ha", "nft", "ok"), told)
        self.assertIn("hb's processor lacks what this host's has: sse4_2", told.get(("ha", "cpu-flags", "warning"), ""), told)

    def test_a_shim_that_containerd_does_not_find(self) -> None:
        with self.away(self.ha, "/usr/local/bin/containerd-shim-godwit-v2"):
            self.assertIn("on containerd's PATH", self.problems().get(("ha", "shim"), ""))

    def test_another_host_that_does_not_answer(self) -> None:
        self.kill_agent(self.hb)
        self.assertIn("hb", self.problems("--peer", "hb").get(("ha", "peer"), ""))

    def test_a_host_that_nobody_knows(self) -> None:
        done = self.ha.run("godwit", "doctor", "--peer", "hc", check=False)
        self.assertEqual(FAILED, done.returncode)
        self.assertIn("unknown host hc", done.stderr)

    def test_no_agent_and_an_expired_certificate(self) -> None:
        certificate = self.ha.path(f"{TLS}/host.pem")
        before = certificate.read_bytes()
        self.kill_agent(self.ha)
        # The agent is started again behind this, by the cleanup above.
        self.addCleanup(lambda: certificate.write_bytes(before))
        self.ha.write("/run/ca.key", Path(DISK_DIR, "ca/ca.key").read_text())
        self.ha.run("sh", "-c", EXPIRED)
        problems = self.problems("--peer", "hb")
        self.assertIn("does not answer", problems.get(("ha", "agent"), ""), problems)
        self.assertIn("host.pem has expired -> issue it again", problems.get(("ha", "certificates"), ""), problems)
        self.assertIn("cannot be asked without an agent here", problems.get(("ha", "peer"), ""), problems)

    def test_no_configuration(self) -> None:
        self.kill_agent(self.ha)
        problems = self.problems("--config", "/nonexistent.toml")
        self.assertIn("cannot read the configuration /nonexistent.toml", problems.get(("this host", "configuration"), ""), problems)

    def test_what_a_person_reads(self) -> None:
        with self.away(self.ha, "/usr/sbin/nft"):
            done = self.ha.run("godwit", "doctor", check=False)
        self.assertEqual(SICK, done.returncode)
        self.assertRegex(done.stdout, r"problem  ha: nft is missing \(.*\n +-> install nftables\n")
