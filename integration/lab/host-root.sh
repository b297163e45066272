#!/bin/sh
# The first process of a host, in fresh mount, pid, uts, ipc and cgroup namespaces: builds the host's root and becomes its
# init. Says `ready` on descriptor 3. What it mounts lives in its own mount namespace only and ends with it.
#
# host-root.sh NAME BASE DISK CGROUP_MOUNT...      (CGROUP_MOUNT is DIRECTORY:TYPE:OPTIONS)
set -eu
name=$1 base=$2 disk=$3
shift 3
root=$disk/root

hostname "$name"
mount -t overlay -o "lowerdir=$base,upperdir=$disk/upper,workdir=$disk/work" overlay "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
for wanted in "$@"; do
    directory=${wanted%%:*}
    rest=${wanted#*:}
    options=${rest#*:}
    mkdir -p "$root/sys/fs/cgroup/$directory"
    mount -t "${rest%%:*}" ${options:+-o "$options"} cgroup "$root/sys/fs/cgroup/$directory"
done

# An own /dev: terminals of this host's containers must not be the machine's.
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/dev/net"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
    numbers=${node#*:}
    mknod -m 666 "$root/dev/${node%%:*}" c "${numbers%:*}" "${numbers#*:}"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root/run/lock" "$root/run/lab" "$root/var/lib/docker" "$root/var/lib/containerd" "$root/var/lib/containers" \
    "$root/var/log/lab"
# The engines keep overlays there (podman in the last), so it must be the real disk.
mount --bind "$disk/docker" "$root/var/lib/docker"
mount --bind "$disk/containerd" "$root/var/lib/containerd"
mount --bind "$disk/containers" "$root/var/lib/containers"
mount --bind "$disk/log" "$root/var/log/lab"

mkdir -p "$root/.old"
cd "$root"
pivot_root . .old
busybox umount -l /.old
rmdir /.old
echo ready >&3
exec 3>&-
# It reaps what daemons leave behind; the sleep keeps the host up.
exec /usr/bin/tini-static -- sleep infinity </dev/null
