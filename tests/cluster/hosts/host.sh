#!/usr/bin/env bash
# One machine: host.sh FOLDER ADDRESS, in namespaces of its own (network, mounts, processes, name).
# FOLDER, seen as /mnt, is its home and its temporary files; sshd is its first process, so that the
# machine is lost with it.
set -euo pipefail
mount --bind "$1" /mnt
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
name="host-${2##*.}"
hostname "$name"
printf '127.0.0.1 localhost\n%s %s\n' "$2" "$name" > /mnt/hosts
sed 's#^\(root:[^:]*:[^:]*:[^:]*:[^:]*:\)[^:]*#\1/mnt#' /etc/passwd > /mnt/passwd
mount --bind /mnt/passwd /etc/passwd # where ssh looks for `~`, whatever HOME says
mount --bind /mnt/hosts /etc/hosts # gloo binds to what the machine's own name resolves to
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done # its end of the cable
ip addr add "$2/24" dev eth0
ip link set eth0 up
ip route add default via "${2%.*}.1" # leads nowhere; Ray asks by it for its own address
exec /usr/sbin/sshd -D -e -f /mnt/sshd_config
