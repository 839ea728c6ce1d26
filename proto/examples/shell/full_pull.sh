#!/bin/sh
# Pulls all disks of a domain into raw files, with the command line of fleece and nbdcopy: full_pull.sh DOMAIN DIRECTORY
# The directory must not exist. FLEECE is the command, for example `fleece --config /etc/fleece/other.yaml`.
set -eu

if [ $# -ne 2 ]; then
  echo "Usage: full_pull.sh DOMAIN DIRECTORY" >&2
  exit 2
fi
domain=$1
directory=$2
snapshot=full-pull-$$-$(date +%s)
fleece=${FLEECE:-fleece}
renewal=

# Whatever ends this script before the end: the snapshot is given up. If even that fails, its lease ends it.
give_up() {
  status=$?
  trap - EXIT
  [ -z "$renewal" ] || kill "$renewal" 2>/dev/null || true
  $fleece block-snapshot delete "$domain" "$snapshot" --failed >&2 || true
  echo "full_pull.sh: the content of $directory does not count" >&2
  [ "$status" -ne 0 ] || status=1
  exit "$status"
}

umask 077
mkdir "$directory"
trap give_up EXIT
trap 'exit 130' INT TERM
$fleece block-snapshot create "$domain" --name "$snapshot" --lease 10m >/dev/null

# A third of the lease lets two renewals fail.
(
  trap 'kill $!; exit' TERM
  while true; do
    sleep 200 &
    wait $!
    $fleece block-snapshot renew "$domain" "$snapshot" || true
  done
) >/dev/null 2>&1 &
renewal=$!

# One field per line, in the order of the message: first the disk, then its URI.
$fleece --json export start "$domain" --snapshot "$snapshot" >"$directory/exports.json"
sed -n -e 's/^ *"target": "\(.*\)",*$/\1/p' -e 's/^ *"uri": "\(.*\)",*$/\1/p' \
  "$directory/exports.json" >"$directory/exports"
test -s "$directory/exports"
while read -r target && read -r uri; do
  nbdcopy "$uri" "$directory/$target.raw"
  sync "$directory/$target.raw"
  echo "$target: $(nbdinfo --size "$uri") bytes"
done <"$directory/exports"

# Only if this succeeds has the snapshot kept its moment all the while.
$fleece block-snapshot delete "$domain" "$snapshot" >/dev/null
trap - EXIT
kill "$renewal"
