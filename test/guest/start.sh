# What the programs of both guests begin with; they run it in their own shell.
/bin/busybox mkdir -p /dev /proc /sys /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
exec </dev/ttyS0 >/dev/ttyS0 2>&1
# The terminal hands over whole lines.
stty -echo -onlcr

while read -r module; do insmod "/modules/$module.ko" || echo "PROBLEM insmod $module"; done </modules/order

# argument NAME DEFAULT: of the kernel
argument() {
  value=$2
  for word in $(cat /proc/cmdline); do case $word in "$1"=*) value=${word#*=} ;; esac; done
  echo "$value"
}

# Disks on SCSI are found in the background.
wait_for_disk() {
  tries=100
  while [ ! -b "/dev/$1" ] && [ "$tries" -gt 0 ]; do tries=$((tries - 1)); sleep 0.05; done
}
