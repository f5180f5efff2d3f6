# shellcheck shell=dash
# Sourced by checks.sh: what the board's pins are, seen from outside c2d-agent, and how a check is told.

passed=0
failed=0

# check WHAT EXPECTED FOUND: one line, and the logs with a failure.
check() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "ok $1"
    else
        failed=$((failed + 1))
        echo "FAILED $1: expected \"$2\", found \"$3\""
        for log in /tmp/*.log; do
            tail -n 20 "$log" | sed "s|^|    ${log##*/}: |"
        done
    fi
}

# finish: tells the total. The last line of a whole run.
finish() {
    if [ "$failed" = 0 ]; then
        echo "== all $passed checks passed in $(seconds) s"
    else
        echo "== $failed of $((passed + failed)) checks FAILED"
    fi
    exit
}

# check_says WHAT PART FILE: the file has this text.
check_says() {
    if grep -qF -- "$2" "$3"; then
        check "$1" "" ""
    else
        check "$1" "... $2 ..." "$(cat "$3")"
    fi
}

# until_true SECONDS COMMAND...: tries it until it holds.
until_true() {
    end=$(($(seconds) + $1))
    shift
    until "$@"; do
        [ "$(seconds)" -lt "$end" ] || return 1
        usleep 20000
    done
}

seconds() { cut -d. -f1 /proc/uptime; }

# The two ways to look at a line without touching it. Both say direction and level: "out hi".

# by_driver LINE: what the kernel's driver of the pins reads.
by_driver() {
    sed -n "s/^pin $1 .* function gpio_\(in\|out\) in \(hi\|lo\).*/\1 \2/p" \
        /sys/kernel/debug/pinctrl/*-pinctrl-bcm2835/pins
}

# by_registers LINE: what the processor reads. GPFSEL has three bits for each line, 1 is an output; GPLEV0 has one.
by_registers() {
    # shellcheck disable=SC2017 # ten lines to a register
    function=$((($(devmem $((0x3f200000 + $1 / 10 * 4))) >> ($1 % 10 * 3)) & 7))
    level=$((($(devmem $((0x3f200034))) >> $1) & 1))
    case $function in 0) function=in ;; 1) function=out ;; esac
    case $level in 0) level=lo ;; 1) level=hi ;; esac
    echo "$function $level"
}

# holder LINE: who holds it in the kernel's books, or nothing.
holder() { gpioinfo gpiochip0 | sed -n "s/^.*line *$1:.* \"\([^\"]*\)\" *\(in\|out\)put .*\[used\].*/\1/p"; }
