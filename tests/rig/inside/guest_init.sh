#!/bin/sh
# PID 1 of the rig's guest. Kernel arguments it knows:
#   rig.driver=0      leave virtio_balloon unloaded
#   rig.virtio_mem=1  load virtio_mem
#   rig.human=1       an interactive shell on ttyS0 instead of the command loop
export PATH=/bin HOME=/ TERM=linux
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /run
mount -t tmpfs -o size=95% tmp /tmp
mount -t tmpfs run /run
exec </dev/ttyS0 >/dev/ttyS0 2>&1

argument() { grep -qw "$1" /proc/cmdline; }

argument rig.virtio_mem=1 && insmod /lib/modules/virtio_mem.ko
argument rig.driver=0 || insmod /lib/modules/virtio_balloon.ko
# Exempt from the out-of-memory killer; commands drop the exemption.
echo -1000 >/proc/self/oom_score_adj

if argument rig.human=1; then
    # A session leader's first terminal becomes its controlling one: Ctrl-C works.
    while :; do setsid sh -c 'exec sh -l </dev/ttyS0 >/dev/ttyS0 2>&1'; done
fi

# Raw: no echo, no translation of newlines, and no limit on the length of a line.
stty raw -echo
echo @@ready
# Lines of base64 form a command; "run NONCE" starts it. Its end is reported with its status.
serve() {
    command=
    while read -r word nonce; do
        if [ "$word" != run ]; then
            command=$command$word
            continue
        fi
        echo "@@begin $nonce"
        (
            echo 0 >/proc/self/oom_score_adj
            eval "$(echo "$command" | base64 -d)"
        ) </dev/null
        status=$?
        echo
        echo "@@end $nonce $status"
        command=
    done
}
# Not by PID 1 itself: orphans of background jobs become its children, and when a child ends,
# busybox's read forgets the part of a line read so far.
(serve)
poweroff -f
