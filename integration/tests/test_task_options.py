"""The options that an engine sends for a container's runtime: what each changes, with our shim as with the stock one.

The types that the stock shim does not take are tried with ours alone.
"""

import os
import unittest
from pathlib import Path

from tests.task_api import DIRECTORY, FOREVER, OURS, RUNC_OPTIONS, STOCK, STATUS, Shim, ShimTest, runc_options
from tests.ttrpc import any_of, encode, number

LEGACY_OPTIONS = "containerd.linux.runc.CreateOptions"
GENERIC_OPTIONS = "runtimeoptions.v1.Options"
CHECKPOINT_OPTIONS = "containerd.runc.v1.CheckpointOptions"
LEGACY_CHECKPOINT_OPTIONS = "containerd.linux.runc.CheckpointOptions"


class Options(ShimTest):
    """What an option does, seen from outside."""

    def setUp(self) -> None:
        super().setUp()
        # It stands for runC and keeps what it was called with.
        self.wrapper = f"{DIRECTORY}/runc-that-tells"
        self.calls = self.ha.path(f"{DIRECTORY}/calls")
        self.ha.write(self.wrapper, f'#!/bin/sh\necho "$@" >>{DIRECTORY}/calls\nexec runc "$@"\n')
        self.ha.path(self.wrapper).chmod(0o755)
        self.forget()

    def forget(self) -> None:
        """Forgets the calls so far."""
        self.calls.write_text("")

    def called(self, subcommand: str) -> list[str]:
        """The words of the one call of a subcommand."""
        (line,) = [line for line in self.calls.read_text().splitlines() if subcommand in line.split()]
        return line.split()

    def test_those_for_runc_reach_it(self) -> None:
        options = runc_options(
            binary_name=self.wrapper, root=f"{DIRECTORY}/runc root".replace(" ", "-"), no_pivot_root=True,
            no_new_keyring=True,
        )  # fmt: skip
        words = []
        for binary in (STOCK, OURS):
            self.forget()
            with Shim(self.ha, binary, options=options) as shim:
                shim.run()
                create = self.called("create")
                self.assertEqual(f"{DIRECTORY}/runc-root/taskapi", create[create.index("--root") + 1])
                self.assertTrue(self.ha.path(f"{DIRECTORY}/runc-root/taskapi/{shim.id}").exists())
                words.append({word for word in create if word.startswith("--no-") or word == "--systemd-cgroup"})
                shim.end()
                shim.ok("Delete")
        self.assertEqual([{"--no-pivot", "--no-new-keyring"}] * 2, words)

    def test_a_paused_container_is_killed_where_runc_waits_for_the_freezer_without_end(self) -> None:
        with Shim(self.ha, OURS, options=runc_options(binary_name=self.wrapper)) as shim:
            # As runC does on cgroup v1 while the freezer hangs, which no test can bring about.
            frozen = f"find /sys/fs/cgroup/ -path '*/{shim.id}/freezer.state' -exec grep -L THAWED {{}} +; " \
                f"find /sys/fs/cgroup/ -path '*/{shim.id}/cgroup.freeze' -exec grep -L 0 {{}} +"  # fmt: skip
            wait = f'until [ -z "$({frozen})" ]; do sleep 0.1; done'
            self.ha.write(self.wrapper, f'#!/bin/sh\ncase " $* " in *" kill "*) {wait} ;; esac\nexec runc "$@"\n')
            shim.run()
            shim.ok("Pause")
            shim.ok("Kill", signal=9)
            self.assertEqual(137, number(shim.ok("Wait").payload, 1))

    def test_without_any_runc_is_called_without_flags(self) -> None:
        with Shim(self.ha, OURS, options=runc_options(binary_name=self.wrapper)) as shim:
            shim.run()
            self.assertFalse([word for word in self.called("create") if word.startswith("--no-")])

    def test_systemd_cgroup_is_passed_on_and_what_runc_says_to_it_comes_back(self) -> None:
        said = []
        for binary in (STOCK, OURS):
            self.forget()
            with Shim(self.ha, binary, options=runc_options(binary_name=self.wrapper, systemd_cgroup=True)) as shim:
                answer = shim.try_create()
                self.assertIn("--systemd-cgroup", self.called("create"))
                self.assertEqual("UNKNOWN", answer.code)
                said.append(answer.words)
        self.assertEqual(*said)
        self.assertIn("systemd", said[0])

    def test_a_binary_that_is_not_there_is_named(self) -> None:
        for binary in (STOCK, OURS):
            with Shim(self.ha, binary, options=runc_options(binary_name="/no/such/runc")) as shim:
                answer = shim.try_create()
                self.assertEqual("UNKNOWN", answer.code)
                self.assertIn("/no/such/runc", answer.words)

    def test_the_pipes_belong_to_whom_it_says(self) -> None:
        owners = []
        for binary in (STOCK, OURS):
            tell = ("stat", "-L", "-c", "%u:%g", "/proc/self/fd/1")
            with Shim(self.ha, binary, *tell, options=runc_options(io_uid=1234, io_gid=56)) as shim:
                streams = shim.streams("stdout", "stderr")
                shim.create(**streams.paths)
                shim.ok("Start")
                owners.append(streams.read("stdout", b"\n"))
                shim.ok("Wait")
                shim.ok("Delete")
        # runC gives them to the program's own user after that, and leaves the group.
        self.assertEqual([b"0:56\n"] * 2, owners)

    def test_the_shim_is_in_the_cgroup_that_it_says(self) -> None:
        name = "taskapi-shims"
        flavour = self.ha.state()["cgroups"]
        parents = "/sys/fs/cgroup" if flavour == "v2" else "/sys/fs/cgroup/*"
        # A cpuset is of no use before it has processors.
        make = f'''
            for d in {parents}; do
                [ -L $d ] || mkdir -p $d/{name}
                for f in cpuset.cpus cpuset.mems; do [ -L $d ] || [ ! -f $d/{name}/$f ] || cat $d/$f >$d/{name}/$f; done
            done
        '''
        if flavour == "v1":
            self.ha.run("sh", "-c", make)
        else:
            self.ha.run("mkdir", "-p", f"{parents}/{name}")
        self.addCleanup(self.ha.run, "sh", "-c", f"rmdir {parents}/{name}", check=False)
        for binary in (STOCK, OURS):
            with Shim(self.ha, binary, options=runc_options(shim_cgroup=f"/{name}")) as shim:
                memberships = self.ha.run("cat", f"/proc/{shim.pid}/cgroup").stdout.splitlines()
                inside = [line.split(":")[1] for line in memberships if line.endswith(f"/{name}")]
                if flavour == "v2":
                    self.assertEqual([""], inside, memberships)
                else:
                    for controller in ("memory", "pids", "freezer"):
                        self.assertIn(controller, inside, f"{binary}: {memberships}")
                shim.run()
                shim.kill_shim()

    def test_a_cgroup_for_the_shim_that_is_not_there_fails_its_start(self) -> None:
        for binary in (STOCK, OURS):
            shim = self.placed(binary, options=runc_options(shim_cgroup="/no/such/cgroup"))
            done = shim.action("start")
            self.assertNotEqual(0, done.returncode, binary)
            self.assertIn(b"/no/such/cgroup", done.stderr)
            self.assertEqual("", self.ha.run("sh", "-c", f"ps ax -o args | grep '[-]id {shim.id} '; true").stdout)

    def test_the_types_that_others_than_the_stock_shim_are_sent(self) -> None:
        table = f'BinaryName = "{self.wrapper}"\nNoPivotRoot = true\n'
        self.ha.write(f"{DIRECTORY}/runc.toml", table)
        runc = encode({6: self.wrapper, 1: True})
        for what, options in (
            ("a table in the body", any_of(GENERIC_OPTIONS, encode({3: table}))),
            ("a table with its type", any_of(GENERIC_OPTIONS, encode({1: RUNC_OPTIONS, 3: table}))),
            ("a message in the body", any_of(GENERIC_OPTIONS, encode({1: RUNC_OPTIONS, 3: runc}))),
            ("a file", any_of(GENERIC_OPTIONS, encode({2: f"{DIRECTORY}/runc.toml"}))),
            ("with a host", any_of(f"type.googleapis.com/{RUNC_OPTIONS}", runc)),
        ):
            self.forget()
            with self.subTest(what), Shim(self.ha, OURS, options=encode(options)) as shim:
                shim.create()
                self.assertIn("--no-pivot", self.called("create"))
        with Shim(self.ha, OURS, options=encode(any_of(LEGACY_OPTIONS, encode({1: True, 10: 3})))) as shim:
            shim.run()

    def test_one_that_cannot_be_honoured_is_refused_by_its_name(self) -> None:
        shim = self.shim(OURS)
        for name, options in (
            ("criu_path", any_of(RUNC_OPTIONS, encode({8: "/usr/sbin/criu"}))),
            ("number 77", any_of(RUNC_OPTIONS, encode({77: 1}))),
            ("cgroups_mode", any_of(LEGACY_OPTIONS, encode({7: "strict"}))),
            ("BinaryNames", any_of(GENERIC_OPTIONS, encode({3: 'BinaryNames = "runc"'}))),
            ("/no/such/file", any_of(GENERIC_OPTIONS, encode({2: "/no/such/file"}))),
            ("no.such.Options", any_of("no.such.Options", b"")),
        ):
            with self.subTest(name):
                answer = shim.try_create(options=options)
                self.assertEqual("INVALID_ARGUMENT", answer.code)
                self.assertIn(name, answer.words)
        shim.run()

    def test_the_start_of_a_shim_refuses_what_its_create_would(self) -> None:
        shim = self.placed(OURS, options=encode(any_of(GENERIC_OPTIONS, encode({3: 'BinaryNames = "runc"'}))))
        done = shim.action("start")
        self.assertEqual(1, done.returncode)
        self.assertIn(b"BinaryNames", done.stderr)

    def test_a_container_is_restored_from_the_image_that_the_options_name(self) -> None:
        image, work = f"{DIRECTORY}/image", f"{DIRECTORY}/work"
        self.ha.run("mkdir", "-p", work)
        self.addCleanup(self.ha.run, "rm", "-rf", image, work)
        program = ("sh", "-c", "while :; do sleep 1; done")
        with Shim(self.ha, OURS, *program, task_id="restored") as shim:
            shim.run()
            # exit; this type has the image's path as its ninth field
            options = any_of(LEGACY_CHECKPOINT_OPTIONS, encode({1: True, 9: image}))
            shim.ok("Checkpoint", path="/no/such/place", options=options)
            shim.ok("Wait")
            shim.ok("Delete")
        self.assertTrue(list(self.ha.path(image).glob("pages-*.img")))
        options = runc_options(criu_image_path=image, criu_work_path=work)
        with Shim(self.ha, OURS, *program, task_id="restored", options=options) as shim:
            shim.run()
            self.assertEqual("RUNNING", STATUS[number(shim.ok("State").payload, 4)])
            self.assertTrue(list(self.ha.path(work).glob("*restore*.log")), list(self.ha.path(work).iterdir()))
            shim.end()
            shim.ok("Delete")


class Crun(ShimTest):
    """Another runtime than runC, by its name."""

    def setUp(self) -> None:
        super().setUp()
        if not Path(f"/proc/{self.ha.init()}/root/usr/bin/crun").exists():
            self.skipTest("crun is not installed in the lab's base")

    def test_it_runs_a_container_through_its_life(self) -> None:
        noted = []
        for binary in (STOCK, OURS):
            # crun refuses a host that has both versions of cgroups, so the shim's own mounts have only one.
            with Shim(self.ha, binary, *FOREVER, options=runc_options(binary_name="crun"), one_cgroup_version=True) as shim:
                shim.create()
                # crun's own file: runC has none of that name
                self.assertTrue(self.ha.path(f"/run/containerd/runc/taskapi/{shim.id}/status").exists())
                shim.call("Start")
                shim.exec("e", "sh", "-c", "exit 3")
                shim.call("Start", exec_id="e")
                shim.call("Wait", exec_id="e")
                shim.call("Delete", exec_id="e")
                for method in ("State", "Pids", "Pause", "State", "Resume", "Stats"):
                    shim.call(method)
                shim.call("Update", resources=any_of("x", b"{}"))
                shim.call("Kill", signal=9)
                shim.call("Wait")
                shim.call("Kill", signal=9)
                shim.call("State")
                shim.call("Delete")
                shim.exec("f", "true")
                noted.append(shim.calls)
        self.assertEqual(*noted)
        self.assertIn("Wait exec_id=e -> OK exit_status=3 exited_at=now", noted[0])

    def test_a_shim_that_died_leaves_nothing_of_it(self) -> None:
        with Shim(self.ha, OURS, *FOREVER, options=runc_options(binary_name="crun"), one_cgroup_version=True) as shim:
            pid = shim.run()
            shim.kill_shim()
            done = shim.delete()
            self.assertEqual((pid, 137), (number(done, 1), number(done, 2)))
            self.assertFalse(self.ha.path(f"/proc/{pid}").exists())


