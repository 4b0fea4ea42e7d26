#!/usr/bin/env bash
# Proves docker-compose.yml with the real Docker engine, without a network: brings it up, upgrades inside the container
# under traffic, asks Prometheus, takes it down.
#
#   cargo build --release && deploy/try-compose.sh
#
# Public images are not pulled. Stand-ins take their place through the variables of docker-compose.yml:
#   base        a Debian made by debootstrap; the runtime of every other image
#   builder     base, the release binaries of this tree, and a `cargo` that hands them out: an image with a Rust compiler
#               cannot be had offline, so the Dockerfile runs as it is, but compiles nothing
#   legacy      deploy/standins/legacy.py on base
#   prometheus  the files of the Debian package on base
# Grafana has no such stand-in; it is brought up only if its image is here already.
#
# Needs root, and the packages docker.io, docker-compose, debootstrap, prometheus. If no engine answers, one is started
# with directories of its own and without touching the firewall, and ended at the end.
# BIN_DIR: where the release binaries are (default: target/release). KEEP=1: leave all up when something fails.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin_dir=${BIN_DIR:-$root/target/release}
project=proxyd-try
network=${project}_front
proxy=172.30.77.10
prometheus=172.30.77.20
work=
engine=
. "$root/deploy/standins/engine.sh"

compose() { "${compose[@]}" --project-name "$project" --file "$root/docker-compose.yml" "$@"; }

# http HOST PORT PATH: the answer with its head; fails if nobody answers.
http() {
    timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" "$2" "$0" >&3 && cat <&3' \
        "$1" "$2" "$3" 2>/dev/null
}

needs() {
    ((EUID == 0)) || fail "needs root: debootstrap and the engine do"
    local tool
    for tool in docker debootstrap dpkg tar; do
        command -v "$tool" >/dev/null || fail "$tool is not installed"
    done
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
    elif command -v docker-compose >/dev/null; then
        compose=(docker-compose)
    else
        fail "neither docker compose nor docker-compose is installed"
    fi
    dpkg -s prometheus >/dev/null 2>&1 || fail "the Debian package prometheus is not installed"
    [[ -x $bin_dir/proxyd && -x $bin_dir/proxyctl ]] || fail "no binaries in $bin_dir: cargo build --release"
}

# Runs however the script ends.
clean_up() {
    local status=$?
    trap - EXIT
    if ((status != 0)); then
        say "failed; the last lines of every service:"
        compose logs --tail 20 2>/dev/null || true
        if [[ ${KEEP:-} == 1 ]]; then
            printf 'left up: DOCKER_HOST=%s, files in %s\n' "${DOCKER_HOST:-the default}" "$work"
            exit "$status"
        fi
    fi
    docker rm --force "$project-traffic" >/dev/null 2>&1 || true
    compose down --volumes --timeout 5 >/dev/null 2>&1 || true
    if [[ -n $engine ]]; then
        end_engine
    else
        docker image rm --force "$project"/{base,builder,legacy,prometheus,proxyd} >/dev/null 2>&1 || true
    fi
    rm -rf --one-file-system "$work"
    exit "$status"
}

build_stand_ins() {
    say "stand-in images"
    build_base
    build_builder
    build_legacy
    build_prometheus
}

build_builder() {
    mkdir -p "$work/builder"
    cp "$bin_dir/proxyd" "$bin_dir/proxyctl" "$work/builder/"
    cat >"$work/builder/cargo" <<'CARGO'
#!/bin/sh
# Hands out binaries that were built outside.
mkdir -p target/release && cp /prebuilt/proxyd /prebuilt/proxyctl target/release/
CARGO
    chmod +x "$work/builder/cargo"
    cat >"$work/builder/Dockerfile" <<DOCKERFILE
FROM $project/base
COPY proxyd proxyctl /prebuilt/
COPY cargo /usr/local/bin/
DOCKERFILE
    build builder "$work/builder"
}

build_prometheus() {
    mkdir -p "$work/prometheus/files"
    dpkg -L prometheus | grep -E '^/usr/(bin|share/prometheus)/' | while read -r file; do
        # Some entries are links into other packages: what they name is not needed.
        if [[ -f $file ]]; then printf '%s\n' "${file#/}"; fi
    done | tar --create --dereference --directory / --files-from - | tar --directory "$work/prometheus/files" --extract
    cat >"$work/prometheus/Dockerfile" <<DOCKERFILE
FROM $project/base
COPY files/ /
RUN mkdir -p /prometheus && chown 65534 /prometheus
USER 65534
ENTRYPOINT ["/usr/bin/prometheus"]
DOCKERFILE
    build prometheus "$work/prometheus"
}

build_proxyd() {
    say "image of proxyd, by the Dockerfile of the repository"
    build proxyd "$root" --build-arg "BUILDER_IMAGE=$project/builder" --build-arg "RUNTIME_IMAGE=$project/base"
}

bring_up() {
    say "compose up"
    export PROXYD_IMAGE=$project/proxyd LEGACY_IMAGE=$project/legacy PROMETHEUS_IMAGE=$project/prometheus
    export PROXY_PORT=${PROXY_PORT:-17000} PROMETHEUS_PORT=${PROMETHEUS_PORT:-19090} GRAFANA_PORT=${GRAFANA_PORT:-13000}
    local services=(proxyd legacy-1 legacy-2 prometheus)
    local grafana
    grafana=$(compose config | sed -n 's/^ *image: *\(.*grafana[^ ]*\)$/\1/p' | tr -d '"')
    if docker image inspect "$grafana" >/dev/null 2>&1; then
        services+=(grafana)
    else
        echo "grafana is left out: its image $grafana is not on this machine and cannot be built offline"
    fi
    compose up -d --no-build "${services[@]}"
    # Engine and compose file say when a container has started, not when its service listens.
    until_ok 30 "legacy-1 answers" http 172.30.77.11 80 / >/dev/null
    until_ok 30 "legacy-2 answers" http 172.30.77.12 80 / >/dev/null
    until_ok 30 "proxyd is ready" proxy_is_ready
    # By the published port, as a user would.
    http 127.0.0.1 "$PROXY_PORT" / | grep -q 'served by' || fail "no answer through 127.0.0.1:$PROXY_PORT"
}

proxy_is_ready() {
    [[ $(container_state proxyd Running) == true ]] || fail "the container of proxyd ended"
    http "$proxy" 9900 /readyz | head -n 1 | grep -q ' 200 '
}

# container_state SERVICE FIELD
container_state() { docker inspect --format "{{.State.$2}}" "$(compose ps --all --quiet "$1" 2>/dev/null || compose ps --quiet "$1")"; }

check_confinement() {
    say "user, root file system, capabilities"
    [[ $(compose exec -T proxyd id -u) == 65532 ]] || fail "proxyd does not run as 65532"
    compose exec -T proxyd sh -c 'touch /try 2>/dev/null' && fail "the root file system can be written"
    compose exec -T proxyd sh -c 'grep -q "^CapEff:[[:space:]]*0*$" /proc/1/status' || fail "proxyd has capabilities"
}

upgrade_under_traffic() {
    say "traffic"
    docker run --detach --name "$project-traffic" --network "$network" "$project/legacy" \
        python3 /srv/traffic.py "$proxy" 7000 >/dev/null
    until_ok 30 "200 connections were served" served 200
    local round
    for round in 1 2 3; do
        say "upgrade $round"
        compose exec -T proxyd proxyctl upgrade || fail "proxyctl upgrade exits with $?"
        until_ok 30 "200 more connections were served" served "$((round * 200 + 200))"
    done
    say "what the clients saw"
    docker stop --time 20 "$project-traffic" >/dev/null
    docker logs "$project-traffic"
    [[ $(docker inspect --format '{{.State.ExitCode}}' "$project-traffic") == 0 ]] || fail "clients saw failures"
}

# served COUNT: so many short connections so far; a failure ends the script at once.
served() {
    local progress
    progress=$(docker exec "$project-traffic" cat /tmp/progress 2>/dev/null) || return 1
    [[ $progress == *failures=0* ]] || { docker stop --time 20 "$project-traffic" >/dev/null; docker logs "$project-traffic"; fail "clients saw failures"; }
    progress=${progress#connections=}
    ((${progress%% *} >= $1))
}

ask_prometheus() {
    say "Prometheus"
    until_ok 60 'Prometheus has proxyd_upgrades_total{result="committed"} of at least 1' committed_upgrades
    http "$prometheus" 9090 '/api/v1/query?query=proxyd_upgrades_total' | tail -n 1
    echo
    http 127.0.0.1 "$PROMETHEUS_PORT" /-/ready | grep -q ' 200 ' || fail "no answer through 127.0.0.1:$PROMETHEUS_PORT"
}

committed_upgrades() {
    http "$prometheus" 9090 '/api/v1/query?query=sum(proxyd_upgrades_total%7Bresult=%22committed%22%7D)%20%3E=%201' |
        grep -q '"value":\['
}

shut_down() {
    say "shutdown"
    local container
    container=$(compose ps --quiet proxyd)
    compose stop --timeout 30 proxyd
    local code
    code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
    [[ $code == 0 ]] || fail "proxyd ended with $code at TERM"
}

needs
work=$(mktemp --directory /var/tmp/proxyd-try.XXXXXX)
trap clean_up EXIT
start_engine
build_stand_ins
build_proxyd
bring_up
check_confinement
upgrade_under_traffic
ask_prometheus
shut_down
say "done: upgraded three times under traffic, nothing failed"
