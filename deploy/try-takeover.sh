#!/usr/bin/env bash
# Proves the take-over with the real Docker engine, without a network: a container of proxyd serves; another one, with the same
# network namespace (that of a third container) and the same volume for state_dir, takes over under traffic; the first one
# ends by itself; nobody was disconnected.
#
#   cargo build --release && deploy/try-takeover.sh
#
# Images are stand-ins as in try-compose.sh. Needs root, and the packages docker.io, debootstrap. If no engine answers, one is
# started and ended. BIN_DIR: where the binaries are (default: target/release). KEEP=1: leave all up when something fails.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin_dir=${BIN_DIR:-$root/target/release}
project=proxyd-takeover
work=
engine=
. "$root/deploy/standins/engine.sh"

containers=("$project-traffic" "$project-new" "$project-old" "$project-legacy" "$project-pause")

needs() {
    ((EUID == 0)) || fail "needs root: debootstrap and the engine do"
    local tool
    for tool in docker debootstrap tar; do
        command -v "$tool" >/dev/null || fail "$tool is not installed"
    done
    [[ -x $bin_dir/proxyd && -x $bin_dir/proxyctl ]] || fail "no binaries in $bin_dir: cargo build --release"
}

# Runs however the script ends.
clean_up() {
    local status=$?
    trap - EXIT
    if ((status != 0)); then
        local container
        for container in "${containers[@]}"; do
            say "failed; the last lines of $container:"
            docker logs --tail 20 "$container" 2>&1 || true
        done
        if [[ ${KEEP:-} == 1 ]]; then
            printf 'left up: DOCKER_HOST=%s, files in %s\n' "${DOCKER_HOST:-the default}" "$work"
            exit "$status"
        fi
    fi
    docker rm --force "${containers[@]}" >/dev/null 2>&1 || true
    docker volume rm "$project-state" >/dev/null 2>&1 || true
    if [[ -n $engine ]]; then
        end_engine
    else
        docker image rm --force "$project"/{base,legacy,proxyd} >/dev/null 2>&1 || true
    fi
    rm -rf --one-file-system "$work"
    exit "$status"
}

build_images() {
    say "stand-in images"
    build_base
    build_legacy
    mkdir -p "$work/proxyd"
    cp "$bin_dir/proxyd" "$bin_dir/proxyctl" "$work/proxyd/"
    cat >"$work/proxyd/proxyd.toml" <<'TOML'
[runtime]
state_dir = "/run/proxyd"

[listeners.front]
bind = "127.0.0.1:7000"
pool = "legacy"

[pools.legacy]
backends = ["127.0.0.1:80"]

[drain]
timeout = "5m"

[upgrade]
probation = "2s"
TOML
    cat >"$work/proxyd/Dockerfile" <<DOCKERFILE
FROM $project/base
COPY proxyd proxyctl /usr/local/bin/
COPY proxyd.toml /etc/proxyd/proxyd.toml
RUN mkdir -p /run/proxyd && chown 65532:65532 /run/proxyd && chmod 0700 /run/proxyd
USER 65532:65532
ENTRYPOINT ["proxyd", "--config", "/etc/proxyd/proxyd.toml"]
DOCKERFILE
    build proxyd "$work/proxyd"
}

# in_pause NAME ARGUMENT...: a container in the namespace of the third one.
in_pause() {
    local name=$1
    shift
    docker run --detach --name "$project-$name" --network "container:$project-pause" "$@" >/dev/null
}

# proxyd NAME ARGUMENT...
start_proxyd() {
    local name=$1
    shift
    in_pause "$name" --read-only --cap-drop ALL --security-opt no-new-privileges \
        --volume "$project-state:/run/proxyd" "$project/proxyd" "$@"
}

ctl() { docker exec "$project-$1" proxyctl "${@:2}"; }
running() { [[ $(docker inspect --format '{{.State.Running}}' "$project-$1") == true ]]; }
ended() { ! running "$1"; }

# serves NAME: the operator's socket in this container answers, and its one keeper is process 1 of it.
serves() {
    running "$1" || fail "the container $1 ended"
    ctl "$1" status >/dev/null 2>&1
}

served() {
    local progress
    progress=$(docker exec "$project-traffic" cat /tmp/progress 2>/dev/null) || return 1
    [[ $progress == *failures=0* ]] || { docker logs "$project-traffic"; fail "clients saw failures: $progress"; }
    progress=${progress#connections=}
    ((${progress%% *} >= $1))
}

bring_up() {
    say "a service, proxyd and clients in one network namespace"
    docker volume create "$project-state" >/dev/null
    docker run --detach --name "$project-pause" --network none "$project/base" sleep infinity >/dev/null
    in_pause legacy "$project/legacy"
    start_proxyd old
    until_ok 30 "proxyd serves" serves old
    in_pause traffic "$project/legacy" python3 /srv/traffic.py 127.0.0.1 7000
    until_ok 30 "200 connections were served" served 200
}

take_over() {
    say "another container takes over"
    start_proxyd new --take-over-from /run/proxyd/handoff.sock
    # Both see the same socket: it is answered by who is the keeper.
    until_ok 30 "the new container is the keeper" took_over
    until_ok 30 "200 more connections were served" served 600
    ctl new status
    running old || fail "the old container ended before its last session"
    [[ $(ctl new metrics | grep '^proxyd_upgrades_total{result="committed"}') == *" 1" ]] || fail "not counted as committed"
}

took_over() {
    running new || fail "the new container ended"
    ctl new events --since 0 --json 2>/dev/null | grep -q '"taken_over"'
}

upgrade() {
    say "upgrade in the new container"
    ctl new upgrade || fail "proxyctl upgrade exits with $?"
    until_ok 30 "200 more connections were served" served 800
}

end_traffic() {
    say "what the clients saw"
    docker stop --time 20 "$project-traffic" >/dev/null
    docker logs "$project-traffic"
    [[ $(docker inspect --format '{{.State.ExitCode}}' "$project-traffic") == 0 ]] || fail "clients saw failures"
    say "the old container ends with its last session"
    until_ok 30 "the old container has ended" ended old
    local code
    code=$(docker inspect --format '{{.State.ExitCode}}' "$project-old")
    [[ $code == 0 ]] || fail "the old container ended with $code"
    serves new || fail "the new container does not answer"
}

needs
work=$(mktemp --directory /var/tmp/proxyd-takeover.XXXXXX)
trap clean_up EXIT
start_engine
build_images
bring_up
take_over
upgrade
end_traffic
say "done: taken over under traffic, nothing failed"
