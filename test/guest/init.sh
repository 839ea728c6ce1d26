#!/bin/busybox sh
# The first and only program of the test guest: a small server at work on one ext4 disk.
# Kernel arguments: data=vda (the disk to work on, "none" for none), tick=0.1 (seconds between two steps).
# It prints READY and WORK lines on the serial port and obeys requests from there: "<id> <command>" is answered
# by lines "R <id> <text>" and one "END <id> <exit status>".
. /start.sh
mkdir /data
echo "HELLO $(uname -r)"

data=$(argument data vda)
tick=$(argument tick 0.1)

open_data() {
  wait_for_disk "$data"
  mount -t ext4 -o discard "/dev/$data" /data || { echo "PROBLEM mount $data"; return 1; }
  mkdir -p /data/state /data/spool /data/log
  [ -e /data/state/counter ] || echo 0 >/data/state/counter
  [ -e /data/state/database ] || dd if=/dev/urandom of=/data/state/database bs=1M count=8 2>/dev/null
  count=$(cat /data/state/counter)
}

# make PATH BLOCKS: a file of that many 4 KiB blocks, text or noise
make() {
  if [ $((count % 3)) -eq 0 ]; then
    yes "record $count of the day, with a body that compresses well" | head -c $(($2 * 4096)) >"$1"
  else
    head -c $(($2 * 4096)) /dev/urandom >"$1"
  fi
}

# One turn: a log line, a new file, an old one removed, a database page changed in place, a report replaced.
step() {
  count=$((count + 1))
  echo "$count $(cut -d' ' -f1 /proc/uptime) request served" >>/data/log/server.log
  blocks=$((1 + count * 7 % 16))
  [ $((count % 20)) -eq 0 ] && blocks=$((256 + count * 13 % 512))
  make "/data/spool/item-$count" "$blocks"
  rm -f "/data/spool/item-$((count - 40))"
  [ $((count % 5)) -eq 0 ] && durably=,fsync || durably=
  dd if=/dev/urandom of=/data/state/database bs=4k count=1 seek=$((count * 37 % 2048)) conv=notrunc$durably 2>/dev/null
  echo "$count" >/data/state/counter.new && mv /data/state/counter.new /data/state/counter
  set -- /data/spool/*
  echo "WORK $count files=$#"
}

# Sorted digests of all files, with paths relative to the disk.
sums() { (cd /data && find . -type f -exec sha256sum {} + | sort -k 2); }

end() {
  sync
  [ "$data" = none ] || umount /data || echo "PROBLEM umount $data"
  echo "END $1 0"
  poweroff -f
}

# pause and resume must run in this shell; the rest is a command whose output is the answer.
obey() {
  id=$1
  shift
  case $1 in
    pause) paused=yes; status=0 ;;
    resume) paused=no; status=0 ;;
    poweroff) end "$id" ;;
    *) eval "$*" >/tmp/answer 2>&1; status=$?; sed "s/^/R $id /" /tmp/answer ;;
  esac
  echo "END $id $status"
}

count=0
paused=no
if [ "$data" = none ]; then paused=yes; else open_data || paused=yes; fi
echo "READY work=$count up=$(cut -d' ' -f1 /proc/uptime)"
while :; do
  if [ $paused = yes ]; then
    read -r line && obey $line
  elif read -t 0; then
    # Only when a line is there: a read that times out may drop what it has of one.
    read -r line && obey $line
  else
    sleep "$tick"
    step
  fi
done
