#!/bin/sh
# The first program of a virtual machine once its root is mounted: makes a host of it, then hands over to guest.py.
# guest-init.sh: the host's name and address come by the kernel's command line, as lab.name= and lab.address=.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -e /dev/null ] || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755,size=600m run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
for controller in cpu memory pids io cpuset; do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null; done
for word in $(cat /proc/cmdline); do
    case $word in lab.name=*) name=${word#*=} ;; lab.address=*) address=${word#*=} ;; esac
done
hostname "$name"
for module in virtio_net overlay veth bridge br_netfilter unix_diag inet_diag tcp_diag udp_diag netlink_diag nf_tables nft_ct; do
    modprobe "$module" || echo "no module $module"
done
ip link set lo up
ip link set eth0 up
ip address add "$address/24" dev eth0
mkdir -p /var/log/lab
cp -r "/srv/lab/$name/etc/." /etc/
for program in /srv/lab/bin/*; do ln -sf "$program" /usr/local/bin/; done
modprobe virtio_console 2>/dev/null
port=$(ls /dev/vport*p1)
exec /usr/bin/tini-static -- python3 -B /srv/lab/guest.py "$port"
