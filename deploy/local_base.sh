#!/bin/sh
# Make a base image for deploy/docker/Dockerfile where no image registry is in reach: Debian's own
# Python from Debian's own mirror (debootstrap), as one layer.
#
#   deploy/local_base.sh [NAME]        default: localhost/perennial-base:bookworm
#
# Needs root, debootstrap and buildah. MIRROR names another Debian mirror, WORK another folder.
set -eu
name=${1:-localhost/perennial-base:bookworm}
work=${WORK:-$(mktemp -d)}
root=$work/rootfs
if [ ! -x "$root/usr/bin/python3" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$root" ${MIRROR:-}
fi
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* \
    "$root"/etc/apt/sources.list "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/var/log/*.log
container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
buildah add --quiet "$container" "$root" / >/dev/null
buildah config --env PATH=/usr/local/bin:/usr/bin:/bin --cmd python3 "$container"
buildah commit --quiet --format docker "$container" "$name"
[ -n "${WORK:-}" ] || rm -rf "$work"
echo "$name"
