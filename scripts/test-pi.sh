#!/usr/bin/env bash
# Runs c2d-agent on an emulated Raspberry Pi 3 (QEMU's raspi3b) with real GPIO registers and the kernel's character device:
# emulator, agent and c2d-send inside the machine, on loopback only. Prints a line for each thing that was proved;
# tests/pi/checks.sh says what they are. About a minute; the first run fetches 65 MB of packages into target/pi.
#
#   scripts/test-pi.sh            the binary of scripts/build-arm.sh, built first if it is missing or older than its source
#   scripts/test-pi.sh BINARY     this one; aarch64, with all features
#
# A second program panics on purpose: the device image with tests/pi/panics.rs, which scripts/build-arm.sh --panics makes.
#
# C2D_PI_LIMIT=SECONDS gives a slow machine more time than 300 s. `rm -r target/pi` fetches the newest packages again.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin"

. scripts/packages.sh

limit=${C2D_PI_LIMIT:-300}
cache=target/pi
packages=$cache/packages # unpacked: nothing of them is installed
binary=${1:-}

# --- What is needed ----------------------------------------------------------------------------------------------

require_packages qemu-system-aarch64:qemu-system-arm cpio:cpio dpkg-deb:dpkg || exit 1

# built OPTION: the binary of scripts/build-arm.sh with this option, built first if needed.
built() {
    local made sources=(src tests/pi/panics.rs Cargo.toml Cargo.lock scripts/build-arm.sh scripts/no-unwind-tables.ld)
    made=$(scripts/build-arm.sh aarch64 "$1" --print-path)
    if [ ! -x "$made" ] || [ -n "$(find "${sources[@]}" -newer "$made" -print -quit)" ]; then
        scripts/build-arm.sh aarch64 "$1" >&2
    fi
    echo "$made"
}
[ -n "$binary" ] || binary=$(built --full)
panics=$(built --panics)
if [ ! -x "$binary" ]; then
    say "there is no program $binary"
    exit 1
fi

# fetch_packages: the arm64 packages of this machine's Debian.
fetch_packages() {
    local apt=$cache/apt foreign kernel
    rm -rf "$apt" "$packages" "$packages.new"
    mkdir -p "$packages.new"
    say "fetching Debian's arm64 kernel, C library, busybox and gpiod into $cache"
    foreign_apt arm64 "$apt"
    kernel=$(apt-cache "${foreign[@]}" depends linux-image-arm64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n1)
    if [ -z "$kernel" ]; then
        say "this machine's package sources have no linux-image-arm64: run it on Debian, or in a Debian container"
        return 1
    fi
    (cd "$apt" && apt-get "${foreign[@]}" download -q "$kernel" libc6 libgcc-s1 busybox-static gpiod libgpiod2)
    local package
    for package in "$apt"/*.deb; do
        dpkg-deb -x "$package" "$packages.new"
    done
    # Of 300 MB of kernel modules one is needed.
    find "$packages.new/lib/modules" -name '*.ko*' ! -name 'bcm2835_wdt.ko*' -delete
    rm -rf "$apt"
    mv "$packages.new" "$packages"
}

[ -d "$packages" ] || fetch_packages

# --- The machine's files -----------------------------------------------------------------------------------------

work=$(mktemp -d)
machine=""
# shellcheck disable=SC2317 # the trap calls it
finish() {
    if [ -n "$machine" ]; then
        kill "$machine" 2>/dev/null || true
        wait "$machine" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

# one_of FILE...: the first, when there is one; a package's file names carry its version.
one_of() {
    if [ ! -e "$1" ]; then
        say "the packages in $packages lack $1: try again after rm -r $cache"
        return 1
    fi
    echo "$1"
}
kernel=$(one_of "$packages"/boot/vmlinuz-*)
device_tree=$(one_of "$packages"/usr/lib/linux-image-*/broadcom/bcm2837-rpi-3-b.dtb)
watchdog=$(one_of "$packages"/lib/modules/*/kernel/drivers/watchdog/bcm2835_wdt.ko*)

root=$work/root
libraries=$root/lib/aarch64-linux-gnu
mkdir -p "$root/bin" "$root/pi" "$libraries"
cp "$packages/bin/busybox" "$packages"/usr/bin/gpio* "$root/bin/"
cp "$binary" "$root/bin/c2d-agent"
cp "$panics" "$root/bin/c2d-agent-panics"
cp -L "$packages"/lib/aarch64-linux-gnu/{ld-linux-aarch64.so.1,libc.so.6,libm.so.6,libgcc_s.so.1} \
    "$packages/usr/lib/aarch64-linux-gnu/libgpiod.so.2" "$libraries/"
ln -s aarch64-linux-gnu/ld-linux-aarch64.so.1 "$root/lib/"
cp tests/pi/*.sh tests/pi/*.toml "$watchdog" "$root/pi/"
install -m 755 tests/pi/init "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/initramfs"

# --- The run -----------------------------------------------------------------------------------------------------

# iomem=relaxed: without it this kernel keeps /dev/mem from registers that a driver has. NOW: the board has no clock.
console=$cache/console.log
: >"$console"
say "starting a Raspberry Pi 3 with $binary ($(date -r "$binary" '+%F %T')); its console is in $console"
timeout --kill-after=5 "$limit" qemu-system-aarch64 -M raspi3b \
    -kernel "$kernel" -dtb "$device_tree" -initrd "$work/initramfs" \
    -append "console=ttyS1 iomem=relaxed rdinit=/init quiet panic=-1 NOW=$(date +%s)" \
    -serial null -serial "file:$console" -display none -monitor none -nic none -no-reboot </dev/null &
machine=$!

tail -n +1 -f -s 0.2 --pid="$machine" "$console" | sed -u -n 's/\r$//; /^\(ok\|FAILED\|==\) /p'
status=0
wait "$machine" || status=$?
machine=""

# The last line counts; without it the machine did not come to the end of its checks.
if [ "$status" = 0 ] && grep -q '^== all [0-9]* checks passed' "$console" && ! grep -q '^FAILED ' "$console"; then
    exit 0
fi
echo "--- the machine's console:" >&2
tr -d '\r' <"$console" >&2
case $status in
0) say "FAILED: see the lines that begin with FAILED, or where its console ends" >&2 ;;
124 | 137) say "FAILED: the machine was not done within $limit s (C2D_PI_LIMIT gives it more)" >&2 ;;
*) say "FAILED: QEMU ended with exit code $status" >&2 ;;
esac
exit 1
