#!/usr/bin/env bash
# Installs the Debian package in fresh systems of Debian 12 and Debian 13 below target/deb-test/ and looks at what it does: first in
# a chroot, where no systemd runs; then in a container with systemd as its first process, from nothing to a switched pin as a
# new user would; then the unit with the emulator as its hub. About two minutes each, and one more the first time, for
# debootstrap. Needs root.
#
#   scripts/test-deb.sh [--debian 12|13] [amd64.deb]     by default both, and a package made from the debug build
#
# Nothing outside target/ is changed, and the container has a network of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
. scripts/packages.sh

debian=""
if [ "${1:-}" = --debian ]; then
    debian=${2:-}
    shift 2
fi
case "$debian" in
"")
    for debian in 12 13; do
        scripts/test-deb.sh --debian $debian "$@"
    done
    exit
    ;;
12) suite=bookworm ;;
13) suite=trixie ;;
*)
    say "usage: scripts/test-deb.sh [--debian 12|13] [amd64.deb]" >&2
    exit 2
    ;;
esac

if [ "$(id -u)" != 0 ]; then
    say "this needs root, for debootstrap and a container: sudo scripts/test-deb.sh" >&2
    exit 1
fi
require_packages debootstrap:debootstrap systemd-nspawn:systemd-container

work=${CARGO_TARGET_DIR:-$PWD/target}/deb-test
root=$work/root
base=$work/$suite.tar
mkdir -p "$work"

fail() {
    echo "test-deb: FAILED: $*" >&2
    exit 1
}
passed=0
ok() {
    passed=$((passed + 1))
    say "ok: Debian $debian: $*"
}

# --- Packages and a Debian to put them on ------------------------------------------------------------------------

# Of the same build: what is tested is the change from one version to the next.
older=$(C2D_DEB_VERSION=0.0.9-1 scripts/build-deb.sh --debug)
newer=${1:-$(scripts/build-deb.sh --debug)}
older_version=0.0.9-1
newer_version=$(dpkg-deb -f "$newer" Version)

if [ ! -e "$base" ]; then
    say "making a minimal Debian $debian with debootstrap"
    rm -rf "$work/new"
    # procps is what the package depends on and such a system lacks.
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,procps $suite "$work/new" >"$work/debootstrap.log" ||
        { tail -n 20 "$work/debootstrap.log" >&2 && fail "debootstrap"; }
    tar -C "$work/new" -cf "$base.part" .
    mv "$base.part" "$base"
    rm -rf "$work/new"
fi

fresh_root() {
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    tar -C "$root" -xf "$base"
    echo "127.0.0.1 localhost" >"$root/etc/hosts"
    cp "$older" "$root/older.deb"
    cp "$newer" "$root/newer.deb"
}
in_root() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }

# install_in_root DEB: with apt, as a user would; all that it depends on is there.
install_in_root() {
    in_root apt-get install -q -y --no-install-recommends --allow-downgrades "/$1" >"$work/apt.log" 2>&1 ||
        { cat "$work/apt.log" >&2 && fail "apt-get install /$1"; }
}

# is PATH OWNER MODE
is() {
    local found
    found=$(in_root stat -c '%U:%G %a' "$1") || fail "$1 is not there"
    [ "$found" = "$2 $3" ] || fail "$1 is $found, not $2 $3"
}
has_text() { grep -qF -- "$2" <<<"$1" || fail "\"$2\" is not in: $1"; }

# --- Without systemd: files, user, upgrade, removal ----------------------------------------------------------------

fresh_root
install_in_root older.deb
is /usr/bin/c2d-agent root:root 755
is /etc/c2d-agent root:root 755
is /etc/c2d-agent/config.d root:root 755
is /usr/lib/systemd/system/c2d-agent.service root:root 644
is /usr/share/man/man1/c2d-agent-run.1.gz root:root 644
is /usr/share/man/man5/c2d-agent.toml.5.gz root:root 644
is /usr/share/bash-completion/completions/c2d-agent root:root 644
is /usr/share/doc/c2d-agent/examples/config.toml root:root 644
[ "$(in_root getent passwd c2d-agent | cut -d: -f6,7)" = /var/lib/c2d-agent:/usr/sbin/nologin ] || fail "the user c2d-agent"
in_root getent group gpio >/dev/null || fail "there is no group gpio"
in_root test -L /etc/systemd/system/multi-user.target.wants/c2d-agent.service || fail "the unit is not enabled"
has_text "$(in_root c2d-agent --version)" "c2d-agent"
has_text "$(<"$work/apt.log")" "c2d-agent: to begin, run sudo c2d-agent init"
ok "installed: files, user, groups, the unit enabled"

code=0
said=$(in_root runuser -u c2d-agent -- c2d-agent run 2>&1) || code=$?
[ $code = 2 ] || fail "without a configuration the exit code is $code, not 2"
has_text "$said" "write one with sudo c2d-agent init"
ok "without a configuration: exit code 2, and what to do"

in_root cp /usr/share/doc/c2d-agent/examples/config.toml /etc/c2d-agent/config.toml
(umask 077 && echo 'HostName=hub.example;DeviceId=pi-01;SharedAccessKey=AAAA' >"$root/etc/c2d-agent/device.connection-string")
has_text "$(in_root c2d-agent check 2>&1)" "configuration is valid: 1 rule, 0 pins, device pi-01 on hub hub.example"
ok "the example configuration is valid as soon as the device is named"

in_root install -d -o c2d-agent -g c2d-agent -m 700 /var/lib/c2d-agent
in_root runuser -u c2d-agent -- touch /var/lib/c2d-agent/inbox.journal
install_in_root newer.deb
# shellcheck disable=SC2016 # dpkg-query's own placeholder
[ "$(in_root dpkg-query -W -f '${Version}' c2d-agent)" = "$newer_version" ] || fail "the upgrade"
is /var/lib/c2d-agent/inbox.journal c2d-agent:c2d-agent 644
is /etc/c2d-agent/device.connection-string root:root 600
ok "upgraded from $older_version to $newer_version: configuration, secret and state are kept"

in_root dpkg --remove c2d-agent >/dev/null 2>&1
in_root test -e /usr/bin/c2d-agent && fail "the program is still there after remove"
in_root test -e /etc/c2d-agent/config.toml -a -e /var/lib/c2d-agent/inbox.journal || fail "remove took configuration or state"
ok "removed: configuration and state are kept"

nothing_is_left() {
    local left
    left=$(find "$root/etc" "$root/usr" "$root/var/lib" "$root/run" -name '*c2d-agent*' -not -path '*/deb-systemd-helper*')
    [ -z "$left" ] || fail "left after purge: $left"
    if in_root getent passwd c2d-agent >/dev/null; then fail "the user is left after purge"; fi
    if in_root getent group c2d-agent >/dev/null; then fail "the group is left after purge"; fi
}
in_root dpkg --purge c2d-agent >/dev/null 2>&1
nothing_is_left
ok "purged: nothing is left"

# --- With systemd --------------------------------------------------------------------------------------------------

# boot: systemd as the first process of a container, with a network of its own. $init is its pid on this machine.
container="" init=""
boot() {
    local options=(--quiet --directory="$root" --boot --private-network --register=no --console=pipe)
    [ -d /run/systemd/system ] || options+=(--keep-unit)
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn "${options[@]}" </dev/null >"$work/boot.log" 2>&1 &
    container=$!
    local tries
    for tries in $(seq 100); do
        init=$(pgrep -P "$container" | head -n 1) || true
        if [ -n "$init" ] && [ "$(cat "/proc/$init/comm" 2>/dev/null)" = systemd ]; then
            in_guest systemctl is-system-running --wait >/dev/null 2>&1 || true # "degraded" is running, too
            if in_guest systemctl is-active --quiet multi-user.target 2>/dev/null; then return; fi
        fi
        kill -0 "$container" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$work/boot.log" >&2
    fail "systemd does not start in a container here, after $tries tries"
}
in_guest() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 NO_COLOR=1 nsenter --all --target "$init" "$@"; }
shut_down() {
    if [ -n "$container" ] && kill -0 "$container" 2>/dev/null; then
        kill "$container" # systemd-nspawn asks the first process to power off
        wait "$container" || true
    fi
    container=""
}

# at_end: the last lines of the journal when something failed, and no container left behind.
at_end() {
    local status=$?
    if [ $status != 0 ] && [ -n "$container" ] && [ -n "$init" ]; then
        in_guest journalctl -u c2d-agent -u hub -n 60 --no-pager -o short-monotonic >&2 || true
    fi
    shut_down
}
trap at_end EXIT

property() { in_guest systemctl show c2d-agent -P "$1"; }
journal() { in_guest journalctl -u c2d-agent --no-pager -o cat; }

# eventually SECONDS WHAT COMMAND...: waits for something that comes without an event to wait for.
eventually() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || fail "waited too long: $what"
        sleep 0.1
    done
}
unit_is() { [ "$(property "$1")" = "$2" ]; }
at_least() { [ "$(property "$1")" -ge "$2" ]; }
# No `grep -q` behind a pipe: it ends at the first hit, and with `pipefail` the writer's broken pipe would count as a failure.
journal_has() { journal | grep -F -- "$1" >/dev/null; }
status_has() { property StatusText | grep -F -- "$1" >/dev/null; }
pin_is() { in_guest grep -q "\"${2:-lamp}\": *\"$1\"" /var/lib/c2d-agent/pins.json; }

put() { in_guest install -D -m "$1" /dev/stdin "$2"; }
start_hub() {
    in_guest systemd-run --quiet --unit=hub --property=WorkingDirectory=/root c2d-agent emulator --state-dir /root/hub \
        --device pi-01 --x509-device pi-02 --mqtt-port 8883 --amqp-port 5671 --https-port 8443
    eventually 15 "the emulator" in_guest sh -c 'journalctl -u hub -o cat | grep -q ready'
}
# send DEVICE PROPERTY MESSAGE_ID
send() {
    in_guest c2d-agent c2d-send --connection-string-file /root/hub/service.connection-string --ca-file /root/hub/ca.pem \
        --device "$1" --property "$2" --message-id "$3" >"$work/send.log" 2>&1 || { cat "$work/send.log" >&2 && fail "c2d-send $*"; }
}

# From nothing to a switched pin, as a new user goes: the package, a first configuration, a message. Everything is printed.
fresh_root
boot
began=$SECONDS
walk() {
    echo "  \$ $*"
    in_guest sh -c "$*" >"$work/walk.log" 2>&1 || { cat "$work/walk.log" >&2 && fail "$*"; }
    sed 's/^/    /' "$work/walk.log"
}
walk DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends -o Dpkg::Use-Pty=0 /newer.deb
start_hub # in the place of the hub at Azure, with its device
walk c2d-agent init --connection-string-file /root/hub/devices/pi-01.connection-string --ca-file /root/hub/ca.pem \
    --simulated --pin pump=17
walk c2d-agent check
walk systemctl start c2d-agent
walk c2d-agent c2d-send --connection-string-file /root/hub/service.connection-string --ca-file /root/hub/ca.pem \
    --device pi-01 --property action=pump --property state=on --wait
pin_is on pump || fail "the pin is not on"
walk c2d-agent status
took=$((SECONDS - began))
[ $took -lt 120 ] || fail "from nothing to a switched pin took $took s, not two minutes"
ok "from nothing to a switched pin in $took s beside the download"
in_guest dpkg --purge c2d-agent >/dev/null 2>&1
in_guest systemctl stop hub

# An archive of scripts/release.sh: the program, and what packaging/archive/INSTALL.md says.
mkdir -p "$root/archive/man1" "$root/archive/bash"
dpkg-deb --fsys-tarfile "$newer" | tar -C "$root/archive" --strip-components=3 -xf - ./usr/bin/c2d-agent
cp packaging/config.toml "$root/archive/"
install -D -m 644 -t "$root/archive/systemd" packaging/c2d-agent.{service,sysusers,rules}
touch "$root/archive/man1/c2d-agent.1" "$root/archive/bash/c2d-agent.bash"
# shellcheck disable=SC2016 # the fences of its first block
awk '/^```/ {fence++; next} fence == 1' packaging/archive/INSTALL.md |
    in_guest sh -ec "cd /archive; $(cat)" || fail "packaging/archive/INSTALL.md"
in_guest systemctl enable --now c2d-agent 2>/dev/null || true
[ "$(property ExecMainStatus) $(property UnitFileState)" = "2 enabled" ] ||
    fail "from the archive the unit is $(property UnitFileState), and its exit code $(property ExecMainStatus)"
ok "installed from an archive, the unit runs the program as its user"
shut_down

fresh_root
install_in_root older.deb
# The pace of the unit is for gateways; everything else stays as it is shipped.
in_root install -d /etc/systemd/system/c2d-agent.service.d
printf '[Service]\nRestartSec=1s\nWatchdogSec=4s\n' >"$root/etc/systemd/system/c2d-agent.service.d/test.conf"
boot
in_guest systemd-analyze verify c2d-agent.service 2>&1 | grep -v "man c2d-agent" >&2 && fail "systemd-analyze verify"
ok "systemd $(in_guest systemctl --version | head -n 1 | cut -d' ' -f2) runs, with the package installed"

eventually 10 "the start without a configuration to fail" unit_is ActiveState failed
[ "$(property ExecMainStatus) $(property NRestarts)" = "2 0" ] ||
    fail "exit code and restarts are $(property ExecMainStatus) and $(property NRestarts), not 2 and 0"
journal_has "write one with sudo c2d-agent init" || fail "no help in the journal"
ok "booted without a configuration: failed once, with what to do in the journal"

start_hub
in_guest install -m 600 /root/hub/devices/pi-01.connection-string /etc/c2d-agent/device.connection-string
in_guest install -m 644 /root/hub/ca.pem /etc/c2d-agent/ca.pem
in_guest systemctl stop hub
put 644 /etc/c2d-agent/config.toml <<'END'
[device]
connection_string_file = "/etc/c2d-agent/device.connection-string"
ca_file = "ca.pem"

[gpio]
backend = "simulated"
state_file = "/var/lib/c2d-agent/pins.json"

[gpio.pins.lamp]
line = 1

[[rule]]
name = "lamp"
when = { action = "lamp" }
do = [ { gpio = "lamp", set = "on" }, { run = ["/usr/bin/logger", "--tag", "by-rule", "the lamp is on"] } ]
END
in_guest systemctl --no-block start c2d-agent
eventually 10 "the first attempt to connect" journal_has "not connected"
[ "$(property ActiveState)" = activating ] || fail "without a hub the unit is $(property ActiveState), not activating"
start_hub
eventually 20 "the unit to be active" unit_is ActiveState active
ok "activating until the first subscription, then active; status: $(property StatusText)"

pid=$(property MainPID)
[ "$(in_guest stat -c %U "/proc/$pid")" = c2d-agent ] || fail "the agent does not run as c2d-agent"
if in_guest runuser -u c2d-agent -- cat /etc/c2d-agent/device.connection-string 2>/dev/null; then
    fail "the user c2d-agent can read the secret file itself"
fi
[ "$(in_guest stat -c '%U %a' /var/lib/c2d-agent)" = "c2d-agent 700" ] || fail "the state directory"
in_guest grep -q '^CapEff:.0*$' "/proc/$pid/status" || fail "the agent has capabilities"
ok "runs as its own user, without capabilities; the secret is root's, and handed over by LoadCredential"

send pi-01 action=lamp m-1
eventually 5 "the lamp to be on" pin_is on
eventually 5 "the line of logger" in_guest sh -c 'journalctl -t by-rule -o cat | grep -q "the lamp is on"'
ok "a message switches the output and runs a program in the sandbox"

put 644 /etc/c2d-agent/config.d/50-more.toml <<'END'
[[rule]]
name = "more"
when = { action = "more" }
do = [ { shell = "logger -t by-rule more" } ]
END
in_guest systemctl reload c2d-agent
eventually 10 "the reload" journal_has "applied the new configuration rules=2"
send pi-01 action=more m-2
eventually 5 "the new rule" in_guest sh -c 'journalctl -t by-rule -o cat | grep -q "^more"'
put 644 /etc/c2d-agent/config.d/60-wrong.toml <<<'[[rule]]'
in_guest systemctl reload c2d-agent
eventually 10 "the report of the refused reload" journal_has "60-wrong.toml"
[ "$(property ActiveState) $(property MainPID)" = "active $pid" ] || fail "a refused reload ended the agent"
pin_is on || fail "a reload changed the pin"
in_guest rm /etc/c2d-agent/config.d/60-wrong.toml
ok "systemctl reload takes a rule up, refuses what is wrong, and leaves pins as they are"

in_guest kill -STOP "$pid"
eventually 30 "the watchdog" at_least NRestarts 1
eventually 20 "the agent to be back" unit_is ActiveState active
[ "$(property MainPID)" != "$pid" ] || fail "the stuck agent still runs"
journal_has "Watchdog timeout" || fail "no watchdog in the journal"
ok "a stuck agent is killed by the watchdog and started again"

send pi-01 action=lamp m-3
eventually 5 "the lamp to be on" pin_is on
in_guest systemctl stop c2d-agent
[ "$(property ActiveState) $(property Result)" = "inactive success" ] || fail "after stop: $(property ActiveState), $(property Result)"
pin_is off || fail "after stop the lamp is not in its on_exit state"
ok "systemctl stop ends it cleanly, with the output off"

in_guest install -m 600 /root/hub/devices/pi-02.cert.pem /etc/c2d-agent/device.cert.pem
in_guest install -m 600 /root/hub/devices/pi-02.key.pem /etc/c2d-agent/device.key.pem
in_guest mv /etc/c2d-agent/device.connection-string /root/
in_guest cp /etc/c2d-agent/config.toml /root/
in_guest sed -i '/^connection_string_file/c hub = "localhost"\ndevice_id = "pi-02"\ncertificate = "device.cert.pem"\nprivate_key = "device.key.pem"' \
    /etc/c2d-agent/config.toml
in_guest systemctl start c2d-agent
status_has "connected to localhost as pi-02" || fail "with a certificate the status is $(property StatusText)"
send pi-02 action=lamp m-5
eventually 5 "the lamp to be on" pin_is on
in_guest systemctl stop c2d-agent
in_guest mv /root/config.toml /etc/c2d-agent/
ok "with a certificate and a private key that only root can read"

sed 's/SharedAccessKey=.*/SharedAccessKey=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=/' \
    "$root/root/hub/devices/pi-01.connection-string" | put 600 /etc/c2d-agent/device.connection-string
in_guest systemctl reset-failed c2d-agent 2>/dev/null || true
in_guest systemctl --no-block start c2d-agent
eventually 20 "two restarts with a wrong key" at_least NRestarts 2
[ "$(property ActiveState)" = activating ] || fail "with a wrong key the unit is $(property ActiveState)"
in_guest systemctl stop c2d-agent
in_guest install -m 600 /root/hub/devices/pi-01.connection-string /etc/c2d-agent/device.connection-string
ok "a wrong key is tried again and again, at the pace of RestartSec"

in_guest systemctl start c2d-agent # waits: the hub is there
pid=$(property MainPID)
in_guest sh -c "DEBIAN_FRONTEND=noninteractive dpkg -i /newer.deb" >"$work/upgrade.log" 2>&1 || { cat "$work/upgrade.log" >&2 && fail "the upgrade"; }
restarted() { [ "$(property MainPID)" != "$pid" ] && unit_is ActiveState active; }
eventually 20 "the upgrade to restart the agent" restarted
has_text "$(in_guest c2d-agent inbox list --json)" '"m-1"'
send pi-01 action=lamp m-4
eventually 5 "the lamp to be on" pin_is on
ok "the upgrade restarted the running agent; it remembers its messages"

in_guest systemctl stop c2d-agent hub
in_guest systemctl --no-block start c2d-agent
eventually 10 "a process without its hub" at_least MainPID 2
[ "$(property ActiveState)" = activating ] || fail "without its hub the unit is $(property ActiveState)"
pid=$(property MainPID)
in_guest dpkg -i /newer.deb >/dev/null 2>&1
replaced() { [ "$(property MainPID)" != "$pid" ] && at_least MainPID 2; }
eventually 20 "an upgrade to restart the agent that waits for its hub" replaced
ok "an upgrade restarts an agent that waits for its hub, too"

start_hub
eventually 20 "the agent to reach its hub" unit_is ActiveState active
in_guest dpkg --remove c2d-agent >/dev/null 2>&1
if in_guest pgrep -x c2d-agent --uid c2d-agent >/dev/null; then fail "the agent runs after remove"; fi
in_guest dpkg -i /newer.deb >/dev/null 2>&1
eventually 20 "the package that was installed again to start the agent" unit_is ActiveState active
ok "installed again after remove, the agent is back"

in_guest dpkg --remove c2d-agent >/dev/null 2>&1
if in_guest pgrep -x c2d-agent --uid c2d-agent >/dev/null; then fail "the agent runs after remove"; fi
in_guest test -e /var/lib/c2d-agent/inbox.journal || fail "remove took the state"
in_guest systemctl stop hub
in_guest dpkg --purge c2d-agent >/dev/null 2>&1
nothing_is_left
ok "remove stopped it; purge left nothing"

shut_down
echo "$passed passed, 0 failed"
