#!/bin/busybox sh
# The first and only program of the counter guest: a number in RAM and on every disk, which tell whether they are of one moment.
# Kernel arguments: disks=vda,vdb (empty for none), tick=0.05 (seconds between two turns), ballast=8 (MiB of noise in RAM).
# Each turn compares what is on the disks with RAM ("MISMATCH vda ram=6 disk=26"), counts, writes the number to
# every disk at 1 MiB past the page cache, and prints "T <number>". Requests are those of init.sh; CHECK digests the ballast.
. /start.sh

disks=$(argument disks '' | tr , ' ')
tick=$(argument tick 0.05)
ballast=$(argument ballast 0)

for disk in $disks; do wait_for_disk "$disk"; done

digest() { sha1sum </tmp/ballast | cut -c1-40; }
dd if=/dev/urandom of=/tmp/ballast bs=1M count="$ballast" 2>/dev/null
sum=$(digest)

CHECK() {
  now=$(digest)
  [ "$now" = "$sum" ] && echo "ok $now" && return 0
  echo "BAD $now expected $sum"
  return 1
}

# One sector, 1 MiB into the disk.
load() { dd if="/dev/$1" bs=512 skip=2048 count=1 iflag=direct 2>/dev/null | tr -d ' \0'; }
save() { dd if=/tmp/sector of="/dev/$1" bs=512 seek=2048 oflag=direct conv=notrunc,fsync 2>/dev/null || echo "PROBLEM write $1"; }

compare() {
  for disk in $disks; do
    found=$(load "$disk")
    [ "$found" = "count=$count" ] || echo "MISMATCH $disk ram=$count disk=${found#count=}"
  done
}

turn() {
  compare
  count=$((count + 1))
  printf '%-511s\n' "count=$count" >/tmp/sector
  for disk in $disks; do save "$disk"; done
  echo "T $count"
}

end() {
  echo "END $1 0"
  poweroff -f
}

obey() {
  id=$1
  shift
  case $1 in
    poweroff) end "$id" ;;
    *) eval "$*" >/tmp/answer 2>&1; status=$?; sed "s/^/R $id /" /tmp/answer ;;
  esac
  echo "END $id $status"
}

# Disks from a former start go on; new ones begin at 0.
count=0
for disk in $disks; do
  found=$(load "$disk")
  case $found in count=*) count=${found#count=} ;; *) printf '%-511s\n' "count=$count" >/tmp/sector; save "$disk" ;; esac
done
echo "READY count=$count up=$(cut -d' ' -f1 /proc/uptime)"
while :; do
  # Only when a line is there: a read that times out may drop what it has of one.
  if read -t 0; then
    read -r line && obey $line
  else
    sleep "$tick"
    turn
  fi
done
