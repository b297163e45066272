"""The disk and the kernel of the virtual machines: the lab's base with a kernel that tells which pages were written to.

Both are made once and cached outside the checkout, under a name that is a hash of all that decides them, as a base is. The
kernel is that of a Debian that CRIU is known to work with, taken apart and never installed; nothing of it is started here.
"""

import hashlib
import lzma
import os
import shutil
import stat
import subprocess
from pathlib import Path

from lab.base import BUILD_DEADLINE_SECONDS, ensure_base
from lab.commands import LabError, run
from lab.layout import CACHE_DIR

SUITE = "forky"
KERNEL_SUITE = "trixie"
KERNEL = "linux-image-cloud-amd64"
# Raise it when the steps below change what they produce.
RECIPE_VERSION = 1
DISK_BYTES = "3G"
# What the disk's own driver needs; everything else is loaded by name once the root is there.
BOOT_MODULES = ("virtio_mmio", "virtio_blk")

FIRST_PROGRAM = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys /root
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module; done
while [ ! -b /dev/vda ] || [ ! -b /dev/vdb ]; do /bin/busybox sleep 0.05; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || exec /bin/busybox sh
/bin/busybox mount --move /dev /root/dev
/bin/busybox mkdir -p /root/srv/lab
/bin/busybox mount -t ext4 -o ro /root/dev/vdb /root/srv/lab
exec /bin/busybox switch_root /root /bin/sh /srv/lab/guest-init.sh
"""

# Run in namespaces of its own: the base is only read.
BUILD = r"""
set -eu
base=$1 work=$2 suite=$3 kernel=$4 disk=$5
root=$work/root
mkdir -p "$work/upper" "$work/work" "$root"
mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" overlay "$root"
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
sed "s/ [a-z]* main/ $suite main/" "$root/etc/apt/sources.list" >"$root/etc/apt/sources.list.d/kernel.list"
export DEBIAN_FRONTEND=noninteractive
chroot "$root" apt-get -o Acquire::Check-Valid-Until=false update -qq
chroot "$root" apt-get -o Dpkg::Use-Pty=0 install -qq --yes --no-install-recommends kmod
# The newest of the suite; that of the base's own suite is another.
version=$(chroot "$root" apt-cache madison "$kernel" | awk -v suite="$suite/main" '$6 ~ suite { print $3; exit }')
image=$(chroot "$root" apt-cache depends "$kernel=$version" | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)/\1/p' | head -n 1)
(cd "$root/tmp" && chroot "$root" sh -c "cd /tmp && apt-get download -qq $image")
chroot "$root" sh -c 'dpkg-deb -x /tmp/linux-image-*.deb / && rm /tmp/linux-image-*.deb'
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root/etc/apt/sources.list.d/kernel.list"
release=$(ls "$root/lib/modules")
chroot "$root" depmod "$release"
umount "$root/proc"
: >"$root/etc/resolv.conf"
cp "$root/boot/vmlinuz-$release" "$work/kernel"
mkdir -p "$work/modules"
cp "$root/lib/modules/$release/modules.dep" "$work/modules.dep"
(cd "$root/lib/modules/$release" && find . -name '*.ko*' -path '*virtio*' -exec cp --parents {} "$work/modules" \;)
cp "$root/usr/bin/busybox" "$work/busybox"
mke2fs -q -t ext4 -O ^has_journal -d "$root" "$work/disk" "$disk"
"""


def ensure_image() -> Path:
    """Returns the directory with `disk`, `kernel` and what an initramfs is made of; makes it first when it is missing."""
    base = ensure_base(SUITE)
    recipe = "\n".join([base.name, KERNEL_SUITE, KERNEL, str(RECIPE_VERSION), DISK_BYTES, BUILD])
    wanted = CACHE_DIR / f"vm-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if wanted.is_dir():
        return wanted
    print(f"vm: building {wanted} (a minute)", flush=True)
    for stale in CACHE_DIR.glob("vm-*"):
        shutil.rmtree(stale)
    partial = wanted.with_name(wanted.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", BUILD, "build", str(base), str(partial), KERNEL_SUITE,
         KERNEL, DISK_BYTES],
        deadline=BUILD_DEADLINE_SECONDS, shown_as="building the virtual machines' disk",
    )  # fmt: skip
    for passing in ("upper", "work", "root"):
        shutil.rmtree(partial / passing)
    partial.rename(wanted)
    return wanted


def initramfs(image: Path) -> bytes:
    """A first root file system in memory: busybox, the modules in the order in which they need each other, and `init`."""
    needs = {}
    for line in (image / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in BOOT_MODULES:
        if name not in by_name:
            continue  # it is part of the kernel
        for path in [*reversed(needs[by_name[name]]), by_name[name]]:
            if path not in order:
                order.append(path)
    archive = bytearray()
    files = [("bin", b"", stat.S_IFDIR | 0o755), ("modules", b"", stat.S_IFDIR | 0o755),
             ("bin/busybox", (image / "busybox").read_bytes(), stat.S_IFREG | 0o755),
             ("init", FIRST_PROGRAM.encode(), stat.S_IFREG | 0o755)]  # fmt: skip
    for number, path in enumerate(order):
        content = (image / "modules" / path).read_bytes()
        if path.endswith(".xz"):
            content = lzma.decompress(content)
        files.append((f"modules/{number:02}", content, stat.S_IFREG | 0o644))
    for number, (name, content, mode) in enumerate([*files, ("TRAILER!!!", b"", 0)], 1):
        archive += _cpio_entry(number, name, content, mode)
    return bytes(archive)


def _cpio_entry(number: int, name: str, content: bytes, mode: int) -> bytes:
    """One file in the form that the kernel unpacks (`newc`)."""
    fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def make_disk(directory: Path, target: Path) -> None:
    """A small disk with the content of a directory."""
    target.unlink(missing_ok=True)
    n_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    n_mib = n_bytes * 5 // 4 // (1 << 20) + 16
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(directory), str(target), f"{n_mib}M"])


def strip_into(program: Path, directory: Path) -> None:
    """Copies a program without what only a debugger reads."""
    if not program.is_file():
        raise LabError(f"{program} is not built; run `make build`")
    target = directory / program.name
    stripped = subprocess.run(["strip", "-o", str(target), str(program)], capture_output=True)
    if stripped.returncode != 0:
        shutil.copyfile(program, target)
    os.chmod(target, 0o755)
