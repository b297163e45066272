#!/bin/sh
# Boots systemd in a root that `Root` has made, as the first process of fresh namespaces: its own cgroups (version 2, which
# systemd asks for), terminals, and /run. What it mounts ends with it.
#
# boot.sh BASE DISK NAME
set -eu
base=$1 disk=$2 name=$3
root=$disk/root

hostname "$name"
mount -t overlay -o "lowerdir=$base,upperdir=$disk/upper,workdir=$disk/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    numbers=${node#*:}
    mknod -m 666 "$root/dev/${node%%:*}" c "${numbers%:*}" "${numbers#*:}"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 run "$root/run"
# The engines keep overlays there, so it must be the real disk.
for engine in docker containerd; do
    mkdir -p "$disk/$engine" "$root/var/lib/$engine"
    mount --bind "$disk/$engine" "$root/var/lib/$engine"
done

cd "$root"
mkdir -p .old
pivot_root . .old
umount -l /.old
rmdir /.old
exec env -i container=godwit PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd systemd.unit=multi-user.target
