#!/usr/bin/env bash
# Builds the Dockerfile as it is with podman, and runs what came out: by hand, as compose.yaml says, as edgeAgent would, and by
# Testcontainers as the book says.
# Needs root, for the base systems and the network of containers. About four minutes at first.
#
#   scripts/test-container.sh [PROFILE]    PROFILE of cargo, such as dev, instead of release
#
# The base images are made here, under the names that the Dockerfile has: Debian by debootstrap; for Rust the same with a C
# compiler, and this machine's Rust and its downloaded crates mounted. They stay in target/container, with what cargo compiled.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:/usr/lib/podman"
. scripts/packages.sh

profile=${1:-release}
[ "$(id -u)" = 0 ] || {
    say "run this as root: it makes base systems, and networks for containers"
    exit 1
}
scripts/setup.sh
require_packages podman:podman runc:runc conmon:conmon netavark:netavark aardvark-dns:aardvark-dns catatonit:catatonit \
    debootstrap:debootstrap docker-compose:docker-compose iptables:iptables jq:jq || exit 1

work=$PWD/target/container
mkdir -p "$work/storage" "$work/cargo"
revision=$(git rev-parse HEAD)

# --- An engine of our own: nothing of this machine's images and containers is touched -----------------------------

# Limits below what any machine allows; runc, because crun 1.8 refuses machines with both kinds of cgroups.
cat >"$work/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
# As Docker does: port 443 is for everybody.
default_sysctls = ["net.ipv4.ip_unprivileged_port_start=0"]
init_path = "/usr/bin/catatonit"
[network]
network_backend = "netavark"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["/usr/lib/podman", "/usr/libexec/podman"]
END
export CONTAINERS_CONF=$work/containers.conf
# podman would leave the beat of health checks to systemd, which need not run here.
export DISABLE_HC_SYSTEMD=true
unset DOCKER_HOST "${!C2D_@}" # no engine and no device of the caller
run_dir=$(mktemp -d)
store=(--root "$work/storage" --runroot "$work/run" --tmpdir "$work/tmp")
engine() { podman "${store[@]}" "$@"; }

service_pid="" heart_pid=""
clean_up() {
    local result=$?
    trap - EXIT
    if [ $result != 0 ]; then
        local name
        for name in $(engine ps --all --format '{{.Names}}'); do
            echo "--- the log of $name"
            engine logs --tail 30 "$name" || true
        done >&2
    fi
    # End what this script has started, in whatever state it is.
    for pid in $heart_pid $service_pid; do
        kill "$pid" 2>/dev/null || continue
        # An engine that is asked in the middle of a request may not hear it.
        for _ in {1..50}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
    engine rm --all --force --time 1 >/dev/null 2>&1 || true
    engine volume rm --all --force >/dev/null 2>&1 || true
    engine network prune --force >/dev/null 2>&1 || true
    # So that target can be removed; the images stay for the next time.
    umount "$work/storage/overlay" 2>/dev/null || true
    rm -rf "$run_dir"
    exit $result
}
trap clean_up EXIT

ok() { say "ok: $*"; }
fail() {
    say "FAILED: $*" >&2
    exit 1
}
# wait_for SECONDS WHAT COMMAND...: polls, because an engine has no event that a script could wait for.
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "waited too long for $what"
        sleep 0.2
    done
}
# No `grep -q` behind a pipe: it ends at the first hit, and with `pipefail` the writer's broken pipe would count as a failure.
logged() { engine logs "$1" 2>&1 | grep -- "$2" >/dev/null; }
expect() { # expect WHAT WANTED GOT
    [ "$2" = "$3" ] || fail "$1: expected \"$2\", got \"$3\""
    ok "$1: $3"
}

# --- The base images ----------------------------------------------------------------------------------------------

import() { # import NAME < TAR
    engine image exists "$1" || engine import --quiet - "$1" >/dev/null
}
mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
if [ ! -e "$work/debian.tar" ]; then
    say "making a Debian 12 with debootstrap"
    rm -rf "$work/root"
    debootstrap --variant=minbase bookworm "$work/root" ${mirror:+"$mirror"} >"$work/debootstrap.log" || {
        tail -n 5 "$work/debootstrap.log"
        fail "debootstrap"
    }
    rm -rf "$work/root/var/cache/apt/archives"/*.deb "$work/root/var/lib/apt/lists"/* # as in the real image
    tar --numeric-owner -C "$work/root" -cf "$work/debian.tar.new" .
    mv "$work/debian.tar.new" "$work/debian.tar"
    rm -rf "$work/root"
fi
if [ ! -e "$work/rust.tar" ]; then
    say "making one with a C compiler"
    rm -rf "$work/root"
    debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates bookworm "$work/root" ${mirror:+"$mirror"} \
        >"$work/debootstrap.log" || {
        tail -n 5 "$work/debootstrap.log"
        fail "debootstrap"
    }
    mkdir -p "$work/root/usr/local/cargo/bin"
    for tool in cargo rustc; do ln -s "/opt/rust/bin/$tool" "$work/root/usr/local/cargo/bin/$tool"; done
    tar --numeric-owner -C "$work/root" -cf "$work/rust.tar.new" .
    mv "$work/rust.tar.new" "$work/rust.tar"
    rm -rf "$work/root"
fi
debian=docker.io/library/debian:bookworm-slim
rust=$(sed -n 's/^FROM .* \(.*rust:[^ ]*\) AS build$/\1/p' Dockerfile)
[ -n "$rust" ] || fail "the Dockerfile names no image of Rust"
import "$debian" <"$work/debian.tar"
engine image exists "$rust" || engine import --quiet --change 'ENV PATH=/usr/local/cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV CARGO_HOME=/usr/local/cargo' - "$rust" <"$work/rust.tar" >/dev/null

# --- Build --------------------------------------------------------------------------------------------------------

say "building the image, with cargo's profile $profile and $(rustc --version)"
cargo fetch --locked --quiet
started=$SECONDS
# Nothing from earlier images: podman 4.3 takes labels of other build arguments from there.
build() { # build IMAGE [OPTION]...
    engine build --pull-never --format docker --no-cache --tag "$1" --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
        --volume "$(rustc --print sysroot):/opt/rust:ro" \
        --volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry" \
        --volume "$work/cargo:/build/target" \
        --build-arg PROFILE="$profile" --build-arg REVISION="$revision" "${@:2}" . >"$work/build.log" 2>&1 || {
        tail -n 30 "$work/build.log"
        fail "the image $1 does not build"
    }
}
build c2d-agent
ok "built in $((SECONDS - started)) s"

image_says() { engine image inspect --format "$1" c2d-agent; }
label() { image_says "{{index .Labels \"org.opencontainers.image.$1\"}}"; }
mega() { awk -v bytes="$1" 'BEGIN { printf "%.1f MB", bytes / 1e6 }'; }
base_size=$(engine image inspect --format '{{.Size}}' "$debian")
say "size of the image: $(mega "$(image_says '{{.Size}}')"), of which $(mega "$base_size") is the base made here (the published" \
    "debian:bookworm-slim is about 75 MB)"
expect "user" 10001:10001 "$(image_says '{{.Config.User}}')"
expect "entry point" '[c2d-agent] [run]' "$(image_says '{{.Config.Entrypoint}} {{.Config.Cmd}}')"
expect "stop signal" SIGTERM "$(image_says '{{.Config.StopSignal}}' | sed 's/^15$/SIGTERM/')"
expect "volumes" 'map[/var/lib/c2d-agent:{}]' "$(image_says '{{.Config.Volumes}}')"
expect "health check" '[CMD c2d-agent healthcheck]' "$(image_says '{{.Config.Healthcheck.Test}}')"
expect "title" c2d-agent "$(label title)"
expect "licences" "$(sed -n 's/^license = "\(.*\)"/\1/p' Cargo.toml)" "$(label licenses)"
expect "version" "$(sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml)" "$(label version)"
expect "revision" "$revision" "$(label revision)"
expect "the state directory" '700 10001:10001' \
    "$(engine run --rm --entrypoint stat c2d-agent -c '%a %u:%g' /var/lib/c2d-agent)"
expect "/var/lib is still root's" '755 0:0' "$(engine run --rm --entrypoint stat c2d-agent -c '%a %u:%g' /var/lib)"
expect "its user" 'c2d-agent' "$(engine run --rm --entrypoint id c2d-agent -un)"

say "building the emulator's image"
started=$SECONDS
build c2d-agent-emulator --target emulator --build-arg FEATURES=emulator
ok "built in $((SECONDS - started)) s"
hub_image_says() { engine image inspect --format "$1" c2d-agent-emulator; }
expect "its user" 10001:10001 "$(hub_image_says '{{.Config.User}}')"
expect "its entry point" '[c2d-agent emulator --bind 0.0.0.0]' "$(hub_image_says '{{.Config.Entrypoint}}')"
expect "its ports" 'map[443/tcp:{} 5671/tcp:{} 8883/tcp:{}]' "$(hub_image_says '{{.Config.ExposedPorts}}')"
expect "its volumes" 'map[/var/lib/c2d-agent:{}]' "$(hub_image_says '{{.Config.Volumes}}')"
expect "its title" c2d-agent-emulator "$(hub_image_says '{{index .Labels "org.opencontainers.image.title"}}')"
expect "its revision" "$revision" "$(hub_image_says '{{index .Labels "org.opencontainers.image.revision"}}')"

# --- compose.yaml -------------------------------------------------------------------------------------------------

say "compose.yaml: emulator and agent"
socket=$run_dir/podman.sock
# Not through the function: the process to end must be the engine itself, not a shell around it.
podman "${store[@]}" system service --time 0 "unix://$socket" >"$work/service.log" 2>&1 &
service_pid=$!
wait_for 10 "the engine's socket" test -S "$socket"
compose() { DOCKER_HOST=unix://$socket timeout 120 docker-compose --project-name c2d "$@"; }
# The beat of health checks, in place of systemd's.
while sleep 1; do
    for name in $(engine ps --format '{{.Names}}'); do engine healthcheck run "$name" || true; done
done >/dev/null 2>&1 &
heart_pid=$!
compose up --no-build --detach >"$work/compose.log" 2>&1 || {
    cat "$work/compose.log"
    fail "docker-compose up"
}
agent=$(engine ps --format '{{.Names}}' | grep agent)
emulator=$(engine ps --format '{{.Names}}' | grep emulator)
wait_for 20 "the subscription" logged "$agent" subscribed
ok "the agent starts when the emulator is healthy, and subscribes"
code() { # code COMMAND...: its exit code
    local code=0
    "$@" >"$work/last.log" 2>&1 || code=$?
    echo "$code"
}
expect "healthcheck" 0 "$(code engine exec "$agent" c2d-agent healthcheck)"
say "it said: $(cat "$work/last.log")"
send() { compose run --rm send "$@" >"$work/send.log" 2>&1 || fail "send: $(cat "$work/send.log")"; }
send
grep -q Success "$work/send.log" || fail "there is no Success: $(cat "$work/send.log")"
engine exec "$agent" c2d-agent status >"$work/status.log"
grep -q 'pump on' "$work/status.log" || fail "the pump is not on: $(cat "$work/status.log")"
ok "a message that compose sends switches the pump, and its feedback is Success"
expect "the emulator's health" healthy "$(engine inspect --format '{{.State.Health.Status}}' "$emulator")"
logged "$emulator" 'ready mqtt=0.0.0.0:8883 amqp=0.0.0.0:5671 https=0.0.0.0:443 ' || fail "the emulator's ports are others"
engine exec "$emulator" c2d-agent emulator faults --device pi-01 duplicate=1 >"$work/faults.log"
grep -q 'pi-01  duplicate=1' "$work/faults.log" || fail "faults: $(cat "$work/faults.log")"
ok "a subcommand of the emulator needs no option in its container"
expect "processes of root in the agent's container" 0 "$(engine exec "$agent" sh -c 'stat -c %u /proc/[0-9]*' | grep -c '^0$' || true)"

engine stop --time 10 "$agent" >/dev/null
expect "exit code after stop" 0 "$(engine wait "$agent")"

# --- docker run, stop, kill ------------------------------------------------------------------------------------------

# The device of a fresh agent, which is process 1 here: without --init.
device=$(engine exec "$emulator" cat /var/lib/c2d-agent/devices/pi-01.connection-string)
run=(run --network c2d_default --volume c2d_hub:/hub:ro --env C2D_CA_FILE=/hub/ca.pem)

say "configured by the environment only"
engine "${run[@]}" --detach --name bare --env C2D_DEVICE_CONNECTION_STRING="$device" c2d-agent >/dev/null
wait_for 20 "the subscription" logged bare subscribed
expect "healthcheck" 0 "$(code engine exec bare c2d-agent healthcheck)"
engine stop --time 10 bare >/dev/null
expect "exit code after stop" 0 "$(engine wait bare)"
expect "healthcheck without an agent" 1 "$(code engine run --rm c2d-agent healthcheck)"
say "it said: $(cat "$work/last.log")"

say "a configuration and a secret as files; reload; stop during an action"
mkdir "$run_dir/etc"
printf '%s\n' "$device" >"$run_dir/etc/device.connection-string"
chmod 400 "$run_dir/etc/device.connection-string"
chown 10001 "$run_dir/etc/device.connection-string"
cat >"$run_dir/etc/config.toml" <<'END'
[device]
connection_string_file = "device.connection-string"
[gpio]
backend = "simulated"
state_file = "/var/lib/c2d-agent/pins.json"
[gpio.pins.pump]
line = 17
[[rule]]
name = "pump"
when = { action = "pump", state = "on" }
do = [ { gpio = "pump", set = "on" } ]
END
engine "${run[@]}" --detach --name gateway --memory 64m --cap-drop all --volume "$run_dir/etc:/etc/c2d-agent:ro" \
    --volume gateway:/var/lib/c2d-agent c2d-agent >/dev/null
wait_for 20 "the subscription" logged gateway subscribed
cat >>"$run_dir/etc/config.toml" <<'END'
[[rule]]
name = "long"
when = { action = "long" }
timeout = "40s"
do = [ { shell = "touch /tmp/begun; sleep 30" } ]
END
engine kill --signal HUP gateway >/dev/null
wait_for 20 "the new configuration" logged gateway 'applied the new configuration'
ok "kill --signal HUP reads the configuration again"
pins() { engine run --rm --volume gateway:/state --entrypoint cat c2d-agent /state/pins.json; }
send --property action=pump --property state=on --wait
expect "the pin before the stop" on "$(pins | grep -o '"pump":"[a-z]*"' | cut -d'"' -f4)"
compose run --rm send --property action=long >"$work/send.log" 2>&1 || fail "send: $(cat "$work/send.log")"
wait_for 20 "the action" engine exec gateway test -e /tmp/begun
started=$SECONDS
engine stop --time 10 gateway >/dev/null
took=$((SECONDS - started))
expect "exit code after stop" 0 "$(engine wait gateway)"
[ $took -lt 10 ] || fail "stop took $took s"
ok "SIGTERM with an action in flight: ended after about $took s, not killed"
expect "the pin after the stop" off "$(pins | grep -o '"pump":"[a-z]*"' | cut -d'"' -f4)"
engine run --rm --volume gateway:/var/lib/c2d-agent c2d-agent inbox list >"$work/list.log"
grep -q 'long.*interrupted\|interrupted.*long' "$work/list.log" || fail "not recorded as interrupted: $(cat "$work/list.log")"
ok "the action is recorded as interrupted: $(grep interrupted "$work/list.log")"

# --- As a module of an IoT Edge device ---------------------------------------------------------------------------------

# The emulator is the hub, the gateway of the edge device edge1, and its daemon with the workload socket.
say "as a module, with nothing but the environment and the socket that edgeAgent gives"
mkdir "$run_dir/edged"
chown 10001:10001 "$run_dir/edged"
mapfile -t routes < <(jq -r '.modulesContent["$edgeHub"]["properties.desired"].routes[]' deployment.json)
engine run --detach --name edge --network c2d_default --network-alias hub --network-alias gateway \
    --volume edge:/var/lib/c2d-agent --volume "$run_dir/edged:/run/edged" c2d-agent \
    emulator --state-dir /var/lib/c2d-agent --bind 0.0.0.0 --hostname hub --gateway-hostname gateway --https-port 8443 \
    --device pi-01 --module edge1/c2d-agent --module edge1/sensor --workload-socket /run/edged/c2d-agent.sock \
    "${routes[@]/#/--route=}" >/dev/null
wait_for 20 "the gateway" logged edge 'ready mqtt='
edge_file() { engine exec edge cat "/var/lib/c2d-agent/$1"; }
# One socket, mounted where the variable says, as edgeAgent does.
edge_file modules/edge1/c2d-agent.env | sed 's|^IOTEDGE_WORKLOADURI=.*|IOTEDGE_WORKLOADURI=unix:///run/iotedge/workload.sock|' \
    >"$run_dir/module.env"
mapfile -t manifest_env < <(jq -r '.modulesContent["$edgeAgent"]["properties.desired"].modules["c2d-agent"].env
    | to_entries[] | "--env=\(.key)=\(.value.value)"' deployment.json)
module=(run --detach --init --network c2d_default --cap-drop all --memory 64m --env-file "$run_dir/module.env"
    --volume "$run_dir/edged/c2d-agent.sock:/run/iotedge/workload.sock" "${manifest_env[@]}")
back_end() { # back_end COMMAND [ARGUMENT]...: as a back end of the hub
    engine run --rm --network c2d_default --volume edge:/hub:ro c2d-agent "$@" --connection-string-file /hub/service.connection-string \
        --ca-file /hub/ca.pem --https-port 8443
}

engine "${module[@]}" --name bare-module c2d-agent >/dev/null
wait_for 20 "the subscription" logged bare-module subscribed
expect "healthcheck" 0 "$(code engine exec bare-module c2d-agent healthcheck)"
expect "a method without a rule" 5 "$(code back_end invoke-method --device edge1 --module c2d-agent --method lamp)"
say "it said: $(tail -n 1 "$work/last.log")"
engine stop --time 10 bare-module >/dev/null
expect "exit code after stop" 0 "$(engine wait bare-module)"

say "with its rules, and a device beside it: all four doors"
mkdir "$run_dir/module"
edge_file leaf/pi-01.connection-string >"$run_dir/module/device.connection-string"
edge_file ca.pem >"$run_dir/module/ca.pem"
cat >"$run_dir/module/config.toml" <<'END'
[device]
connection_string_file = "device.connection-string"
ca_file = "ca.pem"
[gpio]
backend = "simulated"
state_file = "/var/lib/c2d-agent/pins.json"
[gpio.pins.c2d]
line = 1
[gpio.pins.input]
line = 2
[gpio.pins.method]
line = 3
[gpio.pins.twin]
line = 4
[twin]
accept = ["rules"]
[allow]
pins = ["twin"]
[[rule]]
name = "c2d"
when = { "$.source" = "c2d", action = "on" }
do = [ { gpio = "c2d", set = "on" } ]
[[rule]]
name = "input"
when = { "$.input" = "commands", action = "on" }
do = [ { gpio = "input", set = "on" } ]
[[rule]]
name = "method"
when = { "$.method" = "switch", "body.state" = { one_of = ["on", "off"] } }
do = [ { gpio = "method", set = "{body.state}" } ]
END
chown -R 10001:10001 "$run_dir/module"
chmod 400 "$run_dir/module/device.connection-string"
engine "${module[@]}" --name module --volume "$run_dir/module:/etc/c2d-agent:ro" --volume module:/var/lib/c2d-agent c2d-agent >/dev/null
subscriptions() { [ "$(engine logs "$1" 2>&1 | grep -c subscribed)" -ge "$2" ]; }
wait_for 20 "both subscriptions" subscriptions module 2
module_pin() { engine run --rm --volume module:/state --entrypoint cat c2d-agent /state/pins.json | jq -r ".[\"$1\"]"; }

back_end c2d-send --device pi-01 --property action=on --wait >"$work/send.log" 2>&1 || fail "send: $(cat "$work/send.log")"
grep -q Success "$work/send.log" || fail "there is no Success: $(cat "$work/send.log")"
expect "the pin of the C2D message, by the device behind the gateway" on "$(module_pin c2d)"

expect "exit code of the method" 0 "$(code back_end invoke-method --device edge1 --module c2d-agent --method switch --data '{"state":"on"}')"
say "it said: $(tail -n 1 "$work/last.log")"
expect "the pin of the method" on "$(module_pin method)"
expect "exit code of a method with another value" 5 \
    "$(code back_end invoke-method --device edge1 --module c2d-agent --method switch --data '{"state":"dim"}')"

# To the input that the manifest's route leads to.
engine exec edge c2d-agent emulator send-input --state-dir /var/lib/c2d-agent --device edge1 --module c2d-agent \
    --input commands --message-id i-1 --property action=on >"$work/feed.log" 2>&1 || fail "send-input: $(cat "$work/feed.log")"
module_inbox() { engine exec module c2d-agent inbox list --json; }
has_ended() { module_inbox | grep "\"$1\".*succeeded" >/dev/null; }
wait_for 20 "the message to the input" has_ended i-1
expect "the pin of the input" on "$(module_pin input)"

desire() { # desire PIN: a rule of the twin for that pin; prints the version of the desired properties
    local rule="[[rule]]
name = \"from-the-twin\"
when = { \"\$.method\" = \"twin\" }
do = [ { gpio = \"$1\", set = \"on\" } ]"
    back_end twin patch --device edge1 --module c2d-agent --json \
        --desired "$(jq -cn --arg rule "$rule" '{c2dAgent: {rules: {"from-the-twin": $rule}}}')" | jq '.properties.desired["$version"]'
}
answered() { # answered VERSION STATUS
    back_end twin get --device edge1 --module c2d-agent --json >"$work/twin.log"
    jq --exit-status --argjson version "$1" --arg status "$2" \
        '.properties.reported.c2dAgent.desired | .version == $version and .status == $status' "$work/twin.log" >/dev/null
}
version=$(desire twin)
wait_for 20 "the rule of the twin" answered "$version" applied
expect "exit code of a method that this rule takes" 0 "$(code back_end invoke-method --device edge1 --module c2d-agent --method twin)"
expect "the pin of the twin's rule" on "$(module_pin twin)"
version=$(desire c2d)
wait_for 20 "the refusal of a pin that is not allowed" answered "$version" refused
say "it said: $(jq -r '.properties.reported.c2dAgent.desired.problems[0]' "$work/twin.log")"
engine stop --time 10 module >/dev/null
expect "exit code after stop" 0 "$(engine wait module)"

say "what goes wrong"
engine run --network c2d_default --detach --name stranger --user 4711 --env C2D_DEVICE_CONNECTION_STRING="$device" c2d-agent >/dev/null
wait_for 20 "the sentence" logged stranger 'give the file and its directory to the user of the agent'
say "a state directory of another user: $(engine logs stranger 2>&1 | grep -m 1 ERROR)"
expect "its healthcheck" 1 "$(code engine exec stranger c2d-agent healthcheck)"
engine stop --time 10 stranger >/dev/null
expect "exit code after stop" 0 "$(engine wait stranger)"

# --- Testcontainers, as the book says ----------------------------------------------------------------------------------

# The blocks of a language, one after the other, or the N-th.
example() { # example LANGUAGE [N]
    awk -v "language=\`\`\`$1" -v "wanted=${2:-0}" '
        /^```/ { on = $0 == language; count += on; next }
        on && (!wanted || count == wanted)
    ' docs/src/guides/testcontainers.md
}
say "Testcontainers, with the examples of the book"
# The helper that cleans up after a killed test is another image, which cannot be had everywhere.
export TESTCONTAINERS_RYUK_DISABLED=true NODE_PATH=$PWD/tests/sdk-node/node_modules
testcontainers() { # testcontainers WHAT COMMAND...: it publishes 443, 5671 and 8883, so nothing else may listen there
    DOCKER_HOST=unix://$socket timeout 120 "${@:2}" >"$work/last.log" 2>&1 || fail "$1: $(tail -n 5 "$work/last.log")"
    ok "$1"
}
engine rm --all --force --time 1 >/dev/null
example python >"$run_dir/example.py"
testcontainers "the example in Python" .venv/bin/python "$run_dir/example.py"
example js 1 >"$run_dir/with-hub.js"
example js 2 >"$run_dir/test.js"
testcontainers "the example in Node" node "$run_dir/with-hub.js" node "$run_dir/test.js"
expect "containers that are left" "" "$(engine ps --all --quiet)"
say "all is well, $SECONDS s"
