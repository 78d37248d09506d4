#!/bin/sh
# Build images with buildah, print their sizes:
#
#   deploy/build.sh [TARGET …]         default: server client-cpu client-gpu
#
# BASE      another base image, such as deploy/local_base.sh makes
# PIP_CONF  pip's configuration while building (default: what `pip config list` says here)
# TORCH     what server and client-cpu install, such as torch==2.13.0+cpu where pip knows where that is
# TORCH_GPU what client-gpu installs
# VOLUMES   folders that PIP_CONF points to, such as /opt/wheels:/opt/wheels:ro
# TAG       of the images (default: the version in pyproject.toml)
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -1)
tag=${TAG:-$version}
conf=${PIP_CONF:-}
if [ -z "$conf" ]; then
    conf=$(mktemp)
    trap 'rm -f "$conf"' EXIT
    # global.index-url='…' becomes index-url = …; what the environment says goes last and wins
    { echo '[global]'; python3 -m pip config list |
        sed -n "s/^\(global\|:env:\)\.\([a-z-]*\)='\(.*\)'\$/\2 = \3/p" |
        awk -F' = ' '{ last[$1] = $0 } END { for (key in last) print last[key] }'; } > "$conf"
fi
volumes=
for volume in ${VOLUMES:-}; do volumes="$volumes --volume $volume"; done
for target in ${*:-server client-cpu client-gpu}; do
    case $target in *-gpu) torch=${TORCH_GPU:-} ;; *) torch=${TORCH:-} ;; esac
    # shellcheck disable=SC2086 # words on purpose
    buildah bud --isolation chroot --format docker --layers --target "$target" \
        ${BASE:+--build-arg BASE="$BASE"} ${torch:+--build-arg TORCH="$torch"} $volumes \
        --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
        --secret id=pip,src="$conf" --ignorefile .dockerignore \
        --file deploy/docker/Dockerfile --tag "perennial/$target:$tag" .
done
for target in ${*:-server client-cpu client-gpu}; do
    buildah images --format "{{.Name}}:{{.Tag}} {{.Size}}" "perennial/$target:$tag"
done
