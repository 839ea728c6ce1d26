#!/bin/busybox sh
# The first program of the guest with LVM: it makes the host's files its own, which it cannot change, and runs one command of theirs.
# Disks: the first is LVM's. The command is in /command; its end is printed as "EXIT <status>".
/bin/busybox mkdir -p /dev /proc /sys /host /changes /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/null >/dev/ttyS0 2>&1
stty -onlcr </dev/ttyS0
while read -r module; do insmod "/modules/$module.ko" || echo "PROBLEM insmod $module"; done </modules/order

mount -t virtiofs -o ro host /host || echo "PROBLEM mount of the host's files"
mount -t tmpfs -o size=50% changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work root /root
for name in proc sys dev; do mount -o bind "/$name" "/root/$name"; done
mkdir -p /dev/pts /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o size=50% tmp /root/tmp
mount -t tmpfs run /root/run
ifconfig lo 127.0.0.1 up 2>/dev/null

cp -r /lvm-etc /root/tmp/lvm-etc
cp /command /root/tmp/command
# Not to the terminal itself: programs would draw on it.
{ chroot /root /bin/sh /tmp/command; echo "EXIT $?"; } 2>&1 | cat
sync
poweroff -f
