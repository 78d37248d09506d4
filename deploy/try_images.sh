#!/bin/sh
# Start the product in the images that deploy/build.sh made, as their user, and print their sizes:
# `perennial doctor`, a run of a minute, a server and a trainer that answer their health checks.
set -eu
cd "$(dirname "$0")/.."
tag=${TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -1)}

inside() { # IMAGE, and a script for sh in it
    container=$(buildah from --pull-never "localhost/perennial/$1:$tag")
    status=0
    buildah run --isolation chroot "$container" -- sh -euc "$2" || status=$?
    buildah rm "$container" >/dev/null
    return "$status"
}

# shellcheck disable=SC2016 # expanded inside
inside server '
    test "$(id -u)" = 10001
    for tool in gcc cc make pip; do ! command -v "$tool" >/dev/null; done
    ! touch /opt/perennial/x 2>/dev/null
    perennial doctor
    cd /tmp && perennial init digits
    perennial run digits.toml --set federation.transport=in-process --set federation.clients=2 \
        --set stream.classes_per_task=5 --set learning.rounds_per_task=1 --set learning.local_steps=2 \
        --set model.pretext.steps=5
    port=$(python -c "import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 0)); print(s.getsockname()[1])")
    perennial certs --to /tmp/certs --host localhost --nodes 1
    perennial server --certs /tmp/certs --host 127.0.0.1 --port "$port" &
    server=$!
    for _ in $(seq 90); do
        python -m orchestrator.deployment.health "https://127.0.0.1:$port/health" 2>/dev/null && well=yes && break
        sleep 1
    done
    kill "$server" && wait "$server"
    test "${well:-no}" = yes && echo "server: healthy, and ended when told"
'
inside client-cpu '
    test "$(id -u)" = 10001
    cd /tmp
    echo "{\"cache_folder\": \"/tmp/cache\", \"state_folder\": \"/tmp/clients\"}" > settings.json
    python -m clients.trainer_service --address unix:/var/lib/perennial/node/trainer.sock --settings settings.json &
    trainer=$!
    for _ in $(seq 90); do
        python -m orchestrator.deployment.health unix:/var/lib/perennial/node/trainer.sock 2>/dev/null && well=yes && break
        sleep 1
    done
    kill "$trainer" && wait "$trainer"
    test "${well:-no}" = yes && echo "trainer: healthy, and ended when told"
'
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' | grep '/perennial/'
