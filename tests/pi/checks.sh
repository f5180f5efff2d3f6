# shellcheck shell=dash
# Everything that is proved on the emulated Raspberry Pi. Run by init, as root. Each check is a line "ok ..." or
# "FAILED ..."; the last line tells their number.
#
# What a backend has set is read back on the way that it does not use: rppal writes registers, so the kernel's driver is
# asked; cdev asks the driver, so the registers are read. QEMU keeps a line's level when it becomes an input, where on
# a real board the pull resistor decides: so the direction is checked as well.
set -u
# shellcheck source=tests/pi/board.sh
. /pi/board.sh

device=pi-01
config=/tmp/config.toml
agent="" # the process

# line LINE: "out hi", on the way that the backend does not use.
line() { "by_$other_way" "$1"; }

# For until_true.
# shellcheck disable=SC2317 # it calls them
is() { [ "$(line "$1")" = "$2" ]; }
# shellcheck disable=SC2317
is_held() { [ "$(holder "$1")" = "$2" ]; }

# configure BACKEND [SED-SCRIPT]
configure() {
    rm -f /tmp/*.log
    sed -e "s/@BACKEND@/$1/" -e "${2:-}" /pi/relays.toml >"$config"
}

# start_agent: until it has subscribed.
start_agent() {
    c2d-agent run -c "$config" 2>/tmp/agent.log &
    agent=$!
    subscribed
}

subscribed() {
    until_true 30 grep -q ' subscribed ' /tmp/agent.log && return
    check "the agent subscribes within 30 s" yes no
    finish # nothing that follows can work
}

# end_agent SIGNAL: prints nothing; its exit code is the agent's.
end_agent() {
    kill "-$1" "$agent"
    wait "$agent"
}

# send PROPERTY...: waits for the feedback; answers with what c2d-send printed last.
send() {
    properties=""
    for property; do properties="$properties --property $property"; done
    # shellcheck disable=SC2086 # a word each
    if c2d-agent c2d-send --wait=20s --device "$device" $properties >/tmp/send.log 2>&1; then
        sed -n 's/^\(delivered: [A-Za-z]*\).*/\1/p' /tmp/send.log
    else
        echo "exit code $?"
    fi
}

# switch PIN STATE LINE EXPECTED: a message, its feedback, and the line after it.
switch() {
    check "$backend: $1 $2 is delivered, and line $3 is $4" "delivered: Success, $4" "$(send "pin=$1" "state=$2"), $(line "$3")"
}

# refused WHAT SENTENCE [USER]: the agent does not start, and says so.
refused() {
    su "${3:-root}" -c "c2d-agent run -c $config" 2>/tmp/agent.log
    check "$1: exit code" 1 $?
    check_says "$1 is refused: $2" "$2" /tmp/agent.log
}

# stays_an_input LINE WHAT COMMAND...: whatever the command does, the line's direction is not changed.
stays_an_input() {
    gpioget gpiochip0 "$1" >/dev/null # makes it one
    what=$2
    line=$1
    shift 2
    "$@"
    check "$what: line $line was not touched" in "$(by_registers "$line" | cut -d' ' -f1)"
}

# --- The hub -----------------------------------------------------------------------------------------------------

c2d-agent emulator --state-dir /hub --device "$device" --feedback-interval 0s >/tmp/hub.ready 2>/tmp/hub.log &
hub=$!
if ! until_true 30 grep -q '^ready ' /tmp/hub.ready; then
    check "the emulator is ready within 30 s" yes no
    finish
fi
export C2D_CA_FILE=/hub/ca.pem
C2D_SERVICE_CONNECTION_STRING=$(cat /hub/service.connection-string)
export C2D_SERVICE_CONNECTION_STRING

# --- Both backends -----------------------------------------------------------------------------------------------

# Lines: pump 17, lamp 22, valve 23 (low is on), fan 24 (low is on), fill 5, drain 6.
drives_relays() {
    backend=$1 other_way=$2
    configure "$backend"
    c2d-agent check -c "$config" >/tmp/check.log 2>&1
    check "$backend: check takes the configuration" 0 $?

    start_agent
    check "$backend: pump starts off: line 17" "out lo" "$(line 17)"
    check "$backend: lamp starts on: line 22" "out hi" "$(line 22)"
    check "$backend: valve, active low, starts off: line 23" "out hi" "$(line 23)"
    check "$backend: fan, active low, starts on: line 24" "out lo" "$(line 24)"

    for state in hi lo hi lo hi; do
        switch pump toggle 17 "out $state"
    done
    switch lamp off 22 "out lo"
    switch valve on 23 "out lo"
    switch fan off 24 "out hi"
    c2d-agent status -c "$config" >/tmp/status.log 2>&1
    check "$backend: status: exit code" 0 $?
    check_says "$backend: status tells the pins" "fan off" /tmp/status.log

    for action in pulse blink; do
        send "action=$action" >"/tmp/$action.log" &
        sender=$!
        until_true 20 is 17 "out hi"
        check "$backend: a $action turns line 17 on" 0 $?
        until_true 20 is 17 "out lo"
        check "$backend: a $action turns line 17 off" 0 $?
        wait "$sender"
        check "$backend: a $action ends off, and is delivered" "delivered: Success, out lo" \
            "$(cat "/tmp/$action.log"), $(line 17)"
    done

    switch fill on 5 "out hi"
    switch drain on 6 "out lo"
    check_says "$backend: drain is held off: the reason is in the log" "they are interlocked" /tmp/agent.log
    until_true 20 is 5 "out lo"
    check "$backend: fill goes off by itself after max_on" 0 $?
    switch drain on 6 "out hi"

    switch pump on 17 "out hi"
}

# --- rppal -------------------------------------------------------------------------------------------------------

check "at first line 17 is an input" "in lo" "$(by_driver 17)"
drives_relays rppal driver
check "rppal: the kernel knows no holder of line 17" "" "$(holder 17)"
c2d-agent doctor --offline -c "$config" >/tmp/doctor.log 2>&1
check "rppal: doctor: exit code" 0 $?
check_says "rppal: doctor knows the board" "backend rppal drives the registers of a Raspberry Pi 3 B" /tmp/doctor.log
end_agent TERM
check "rppal: SIGTERM ends the agent: exit code" 0 $?
check "rppal: on_exit turns pump off" "out lo" "$(line 17)"
check "rppal: on_exit turns lamp on" "out hi" "$(line 22)"
check "rppal: on_exit turns valve, active low, off" "out hi" "$(line 23)"
check "rppal: on_exit keeps fan as it was, off" "out hi" "$(line 24)"
check "rppal: the character device reads line 22" 1 "$(gpioget gpiochip0 22)"
check "rppal: the character device reads line 17" 0 "$(gpioget gpiochip0 17)"

start_agent
switch pump on 17 "out hi"
end_agent KILL
check "rppal: after SIGKILL line 17 stays as it was" "out hi" "$(line 17)"
start_agent
check "rppal: the next start puts line 17 into its initial state" "out lo" "$(line 17)"
end_agent TERM

# --- cdev --------------------------------------------------------------------------------------------------------

drives_relays cdev registers
check "cdev: the kernel knows the holder of line 17" "c2d-agent" "$(holder 17)"
c2d-agent doctor --offline -c "$config" >/tmp/doctor.log 2>&1
check "cdev: doctor: exit code" 0 $?
check_says "cdev: doctor knows that the agent holds the lines" "held by the running agent, process $agent" /tmp/doctor.log
check "cdev: the kernel tells the level of line 17" "out hi" \
    "$(sed -n 's/.*(GPIO17 *|c2d-agent *) \(out\|in\) *\(hi\|lo\).*/\1 \2/p' /sys/kernel/debug/gpio)"
end_agent TERM
check "cdev: SIGTERM ends the agent: exit code" 0 $?
# This kernel makes an input of a line that is let go. The level is what it was driven to last.
check "cdev: on_exit turns pump off" "in lo" "$(line 17)"
check "cdev: on_exit turns lamp on, until the line is let go" "in hi" "$(line 22)"
check "cdev: on_exit turns valve, active low, off" "in hi" "$(line 23)"
check "cdev: on_exit keeps fan as it was, off" "in hi" "$(line 24)"
check "cdev: line 17 is held no more" "" "$(holder 17)"

start_agent
switch pump on 17 "out hi"
end_agent KILL
check "cdev: after SIGKILL the kernel makes line 17 an input" "in hi" "$(line 17)"

configure cdev 's/line = 17/line = "GPIO17"/'
start_agent
backend="cdev, line GPIO17"
switch pump on 17 "out hi"
end_agent TERM

# --- A panic -----------------------------------------------------------------------------------------------------

# The device image, and in it a thread that panics when standard input has a line (tests/pi/panics.rs).
mkfifo /tmp/panic
exec 3<>/tmp/panic

# panics: the agent with this configuration and other states than those of on_exit, up to its end by a panic.
panics() {
    c2d-agent-panics run -c "$config" 2>/tmp/agent.log <&3 &
    agent=$!
    subscribed
    for switch in pump/on lamp/off valve/on fan/off; do
        send "pin=${switch%/*}" "state=${switch#*/}" >/dev/null
    done
    [ "$backend" = simulated ] || check "$backend: before a panic" "out hi, out lo, out lo, out hi" \
        "$(line 17), $(line 22), $(line 23), $(line 24)"
    echo >&3
    wait "$agent"
    check "$backend: a panic aborts the agent: exit code" 134 $?
    check_says "$backend: the log has the place of the panic" "panicked at tests/pi/panics.rs:" /tmp/agent.log
    check_says "$backend: the log has the message of the panic" ": a panic on purpose (a defect" /tmp/agent.log
}

backend=rppal other_way=driver
configure rppal
panics
check "rppal: a panic leaves the pins as on_exit says" "out lo, out hi, out hi, out hi" \
    "$(line 17), $(line 22), $(line 23), $(line 24)"

backend=cdev other_way=registers
configure cdev
panics
check "cdev: a panic leaves the pins as on_exit says, until they are let go" "in lo, in hi, in hi, in hi" \
    "$(line 17), $(line 22), $(line 23), $(line 24)"

backend=simulated
configure simulated 's|^backend = .*|&\nstate_file = "/tmp/pins.json"|'
panics
check "simulated: a panic leaves the pins as on_exit says" \
    '{"drain":"off","fan":"off","fill":"off","lamp":"on","pump":"off","valve":"off"}' "$(cat /tmp/pins.json)"

# --- auto --------------------------------------------------------------------------------------------------------

configure auto
start_agent
check "auto: takes rppal on this board" yes "$(grep -q /dev/mem "/proc/$agent/maps" && echo yes)"
end_agent TERM
configure auto 's/line = 17/line = "GPIO17"/'
start_agent
check "auto: takes cdev for a line name" "c2d-agent" "$(holder 17)"
end_agent TERM

# --- Refusals ----------------------------------------------------------------------------------------------------

# Of the pins, lamp on line 22 comes before pump on 17 and valve on 23: it must not have moved when those are refused.

gpioset --mode=signal gpiochip0 17=1 &
program=$!
until_true 10 is_held 17 gpioset || check "gpioset holds line 17" yes no
configure cdev
stays_an_input 22 "a line in use" refused "a line in use" \
    'pin pump: line 17 of gpiochip0 is in use by "gpioset": stop that program or choose another line'
c2d-agent doctor --offline -c "$config" >/tmp/doctor.log 2>&1
check "doctor, a line in use: exit code" 1 $?
check_says "doctor, a line in use: names who has it" 'in use by "gpioset"' /tmp/doctor.log
kill "$program"
wait "$program"

configure rppal 's/line = 23/line = 99/'
stays_an_input 22 "rppal, no such line" refused "rppal, no such line" \
    "pin valve: line 99 does not exist on the Raspberry Pi's header: compare with \`gpioinfo\`"
configure cdev 's/line = 23/line = 99/'
stays_an_input 22 "cdev, no such line" refused "cdev, no such line" \
    "pin valve: line 99 does not exist on pinctrl-bcm2835: compare with \`gpioinfo\`"
configure cdev 's/line = 17/line = "GPIO99"/'
refused "a line name that nobody has" 'pin pump: line GPIO99 does not exist on any GPIO chip'

# --- Users -------------------------------------------------------------------------------------------------------

# As init has made them: pi is in the group gpio, 997, that owns the chip; stranger is not.
chmod -R a+rX /hub
for user in pi stranger; do
    mkdir "/home/$user" && chown "$user" "/home/$user"
done
inbox_of() { printf '[inbox]\npath = "/home/%s/inbox.journal"\n' "$1" >>"$config"; }

configure cdev
inbox_of stranger
refused "cdev as a user without the group" \
    "permission denied on /dev/gpiochip0: add the service's user to group 997" stranger
su stranger -c "c2d-agent doctor --offline -c $config" >/tmp/doctor.log 2>&1
check "doctor as a user without the group: exit code" 1 $?
check_says "doctor as a user without the group: names it" "add the service's user to group 997" /tmp/doctor.log
configure rppal
inbox_of pi
refused "rppal as a user, without /dev/gpiomem" 'where the kernel has no /dev/gpiomem set backend = "cdev"' pi

configure auto
inbox_of pi
su pi -c "exec c2d-agent run -c $config" 2>/tmp/agent.log &
agent=$!
subscribed
check_says "auto as a user, without /dev/gpiomem: the log says why it takes cdev" "using backend cdev because" /tmp/agent.log
backend="auto as a user of group gpio" other_way=registers
switch pump on 17 "out hi"
check "auto as a user of group gpio: it is cdev" "c2d-agent" "$(holder 17)"
end_agent TERM

# --- The end -----------------------------------------------------------------------------------------------------

kill "$hub"
wait "$hub"
check "the emulator ends with SIGTERM: exit code" 0 $?
finish
