# Shared by the scripts that prove a deployment with the real Docker engine, without a network; read, not run.
# They set `project` (the prefix of images), `work` (a directory of their own), `root`, and `engine` (empty).

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# until_ok SECONDS WHAT COMMAND...
until_ok() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || fail "waited in vain until $what"
        sleep 0.2
    done
}

start_engine() {
    if docker info >/dev/null 2>&1; then
        say "using the engine that runs"
        return
    fi
    say "starting an engine"
    command -v dockerd >/dev/null || fail "no engine answers and dockerd is not installed"
    local run=$work/engine
    mkdir -p "$run"
    export DOCKER_HOST=unix://$run/docker.sock
    # No rules in the firewall of this machine, no routing, no default bridge: the network of the compose file is a
    # bridge of its own, and published ports go through the engine's user-space proxy.
    dockerd --host "$DOCKER_HOST" --data-root "$run/data" --exec-root "$run/exec" --pidfile "$run/pid" \
        --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --bridge=none \
        >"$run/log" 2>&1 </dev/null &
    engine=$!
    until_ok 60 "the engine answers" engine_answers
}

engine_answers() {
    kill -0 "$engine" 2>/dev/null || { tail -n 20 "$work/engine/log" >&2; fail "the engine ended at once"; }
    docker info >/dev/null 2>&1
}

end_engine() {
    kill "$engine" 2>/dev/null || true
    wait "$engine" 2>/dev/null || true
    # What the engine has mounted for containers and networks.
    awk -v under="$work/" 'index($5, under) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
        while read -r mounted; do umount --lazy "$mounted" || true; done
}

# build NAME CONTEXT [ARGUMENT...], the Dockerfile on standard input or named by --file.
build() {
    local name=$1 context=$2
    shift 2
    # The classic builder: the other one is a plug-in that Debian does not have. Nothing is fetched, so no network.
    DOCKER_BUILDKIT=0 docker build --quiet --network none --tag "$project/$name" "$@" "$context" \
        >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; fail "image $name"; }
}

build_base() {
    debootstrap --variant=minbase --include=python3-minimal "$(. /etc/os-release && echo "$VERSION_CODENAME")" \
        "$work/base" >"$work/debootstrap.log" 2>&1 || { tail "$work/debootstrap.log" >&2; fail "debootstrap"; }
    tar --directory "$work/base" --exclude ./var/cache/apt --exclude ./var/lib/apt/lists --create . |
        docker import - "$project/base" >/dev/null
    rm -rf --one-file-system "$work/base"
}

build_legacy() {
    cat >"$work/legacy.Dockerfile" <<DOCKERFILE
FROM $project/base
COPY legacy.py traffic.py /srv/
CMD ["python3", "/srv/legacy.py"]
DOCKERFILE
    build legacy "$root/deploy/standins" --file "$work/legacy.Dockerfile"
}
