"""A shim does not grow by what it has done. Sizes are bounded generously: what counts is that a leak is seen."""

from bench.shims import footprint, shim_of

from tests.support import EngineTest

N_WARM_UP, N_EXECS = 20, 100
AT_ONCE = 4
# What an allocator may keep of a burst; a leak of 10 KiB for each exec is more. The stock shim keeps some 2 MiB.
PRIVATE_KIB = 1000 if EngineTest.runtime == "io.containerd.godwit.v2" else 8000
DEADLINE_SECONDS = 120.0


class ShimGrowthTest(EngineTest):
    """One container and many execs."""

    def test_a_hundred_execs_leave_no_descriptor_and_no_memory_behind(self) -> None:
        name = self.start("busybox", "sh", "-c", "while :; do sleep 1000; done")
        shim = shim_of(self.ha, self.inspect(name, "{{.Id}}"))
        self.exec_many(name, N_WARM_UP)
        before = footprint(self.ha, shim)
        self.exec_many(name, N_EXECS)
        # The last exec's fifos are let go of when the engine deletes it, which it does not wait for.
        self.soon(
            f"the shim to have no more than its {before.descriptors} descriptors",
            lambda: footprint(self.ha, shim).descriptors <= before.descriptors,
        )
        after = footprint(self.ha, shim)
        self.assertLess(after.private_kib, before.private_kib + PRIVATE_KIB)

    def exec_many(self, name: str, n_execs: int) -> None:
        """Runs a command in a container so many times, a few at once."""
        numbers = "\n".join(map(str, range(n_execs)))
        command = ("docker", "exec", name, "sh", "-c", "echo {}")
        self.ha.run("xargs", "-P", str(AT_ONCE), "-I{}", *command, stdin=numbers.encode(), deadline=DEADLINE_SECONDS)
