# Boots a tree's systemd as PID 1 of namespaces of its own: TREE WORK CGROUP [inner]
# WORK is an empty folder, CGROUP a path below the root of the unified hierarchy.
set -e
tree=$1 work=$2 cgroup=$3
if [ "$4" != inner ]; then
    # In its own mount namespace. systemd takes over the root of its cgroup namespace, so that
    # must be a new group.
    mount -t tmpfs -o mode=0755 tmpfs "$work"
    mkdir "$work/upper" "$work/work" "$work/root" "$work/cgroup"
    mount -t cgroup2 cgroup2 "$work/cgroup"
    mkdir -p "$work/cgroup/$cgroup"
    echo $$ >"$work/cgroup/$cgroup/cgroup.procs"
    umount "$work/cgroup"
    mount -t overlay overlay -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/work" "$work/root"
    exec unshare --fork --kill-child=KILL --pid --mount --uts --ipc --net --cgroup \
        --propagation private sh "$0" "$tree" "$work" "$cgroup" inner
fi
root=$work/root
mount -t proc proc "$root/proc"
# systemd must not change the host's settings.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
hostname rig
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
# As ca-certificates' maintainer script does; pip does not start without it.
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
# No first boot, no network, nothing of the host's kernel.
for unit in systemd-modules-load.service systemd-networkd.service systemd-udevd.service \
    systemd-sysctl.service getty.target console-getty.service systemd-firstboot.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
exec chroot "$root" env -i container=other PATH=/usr/sbin:/usr/bin /lib/systemd/systemd \
    systemd.unit=multi-user.target
