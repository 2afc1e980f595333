#!/usr/bin/env bash
# Makes the base image NAME of Debian 12 with its Python 3.11, where no registry can be reached.
#
#   base.sh NAME
#
# Packages come from MIRROR and SECURITY_MIRROR (default: Debian's own), with the security updates of
# today. The image names Debian's own. As root.
set -euo pipefail

name=$1
own=http://deb.debian.org
mirror=${MIRROR:-$own/debian}
security=${SECURITY_MIRROR:-$own/debian-security}
for program in buildah debootstrap; do
  command -v "$program" >/dev/null || {
    echo "$program is not installed: apt-get install --no-install-recommends $program" >&2
    exit 1
  }
done

container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")

debootstrap --variant=minbase \
  --include=ca-certificates,python-is-python3,python3,python3-venv bookworm "$root" "$mirror"
write_sources() {
  cat >"$root/etc/apt/sources.list" <<END
deb $1 bookworm main
deb $1 bookworm-updates main
deb $2 bookworm-security main
END
}
write_sources "$mirror" "$security"
chroot "$root" sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get upgrade --yes'

# Nothing of the machine and network that it was made on, and nothing that can be fetched again.
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
  "$root"/var/log/* "$root"/etc/hostname
write_sources "$own/debian" "$own/debian-security"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"

buildah config --cmd python --label org.opencontainers.image.title="Debian 12 with Python 3.11" "$container"
buildah umount "$container" >/dev/null
buildah commit --format docker "$container" "$name"
