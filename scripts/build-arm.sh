#!/usr/bin/env bash
# Makes c2d-agent for a Raspberry Pi or another ARM gateway, on any Debian or Ubuntu machine. The binary is stripped and runs on
# Debian 12, Raspberry Pi OS 12 and everything newer (glibc 2.36 or later), which the script asserts.
#
#   scripts/build-arm.sh [aarch64|armv7]      the device image (run, check, inbox, status, healthcheck), for 64-bit or 32-bit systems
#   scripts/build-arm.sh ... --full           everything: also c2d-send, emulator, demo and the other default features
#   scripts/build-arm.sh ... --static         with musl, for systems with another or an older libc; needs rustup
#   scripts/build-arm.sh ... --print-path     builds nothing, and prints where such a build puts its binary
#
# Its place is target/arm/ARCH/device/c2d-agent, with --full target/arm/ARCH/full/c2d-agent; with --static the folder is called
# device-static or full-static.
#
# Exit code 3: Rust's libraries for this ARM cannot be had here.
#
# --toolchain rustup|distribution says where Rust's libraries for ARM come from. Unless it is given: from rustup where rustup
# can add them, else from the distribution (on Debian 12 rustc-web, which brings the newest Rust).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
. scripts/packages.sh

usage() {
    echo "usage: scripts/build-arm.sh [aarch64|armv7] [--full] [--static] [--toolchain rustup|distribution] [--print-path]" >&2
    exit 2
}

NEWEST_GLIBC=2.36 # Debian 12

arch=aarch64 image=device libc=gnu toolchain="" print_path=no
while [ $# -gt 0 ]; do
    case "$1" in
    aarch64 | armv7) arch=$1 ;;
    --full) image=full ;;
    --static) libc=musl ;;
    --toolchain)
        toolchain="${2:-}"
        [ "$toolchain" = rustup ] || [ "$toolchain" = distribution ] || usage
        shift
        ;;
    --print-path) print_path=yes ;;
    *) usage ;;
    esac
    shift
done

case "$arch" in
aarch64) target=aarch64-unknown-linux-$libc compiler=aarch64-linux-gnu debian_arch=arm64 ;;
armv7) target=armv7-unknown-linux-${libc}eabihf compiler=arm-linux-gnueabihf debian_arch=armhf ;;
esac
folder=target/arm/$arch/$image
[ "$libc" = gnu ] || folder=$folder-static
if [ "$print_path" = yes ]; then
    echo "$folder/c2d-agent"
    exit
fi

# --- Rust for the target -----------------------------------------------------------------------------------------

scripts/setup.sh --demo
require_packages "$compiler-gcc:gcc-$compiler" readelf:binutils || exit 1
libc_is_there() { echo '#include <stdint.h>' | "$compiler-gcc" -E -x c - >/dev/null 2>&1; }
libc_is_there || install_packages "libc6-dev-$debian_arch-cross" || true
libc_is_there || {
    say "$compiler-gcc has no C library to compile for. Install libc6-dev-$debian_arch-cross."
    exit 1
}

std_is_there() { compgen -G "$("$1" --print sysroot)/lib/rustlib/$target/lib/libstd-*.rlib" >/dev/null; }

# Without an end in time a network that swallows packets would hold the build up.
add_with_rustup() {
    std_is_there rustc && return
    has rustup || return 1
    say "adding $target with rustup"
    timeout 120 rustup target add "$target"
}

# The distribution's own rustc goes with the distribution's libraries: both must be of one version.
add_from_distribution() {
    if [ "$libc" = musl ]; then
        say "the distribution has no Rust for musl"
        return 1
    fi
    if ! { [ -x /usr/bin/rustc ] && std_is_there /usr/bin/rustc; }; then
        say "adding the architecture $debian_arch to this machine's packages"
        as_root dpkg --add-architecture "$debian_arch"
        install_packages rustc-web libstd-rust-web-dev "libstd-rust-web-dev:$debian_arch" || true
    fi
    if ! { [ -x /usr/bin/rustc ] && std_is_there /usr/bin/rustc; }; then
        # Package lists that cannot be had would make every later apt-get update fail.
        as_root dpkg --remove-architecture "$debian_arch" 2>/dev/null || true
        return 1
    fi
    export RUSTC=/usr/bin/rustc
}

case "$toolchain" in
rustup) add_with_rustup ;;
distribution) add_from_distribution ;;
*) add_with_rustup || add_from_distribution ;;
esac || {
    say "there are no Rust libraries for $target: 'rustup target add $target' installs them where rustup and its server are within reach;" \
        "else Debian 12's packages rustc-web and libstd-rust-web-dev:$debian_arch, of one version"
    exit 3
}

# --- The linker --------------------------------------------------------------------------------------------------

# LLVM's linker folds equal functions and packs relocations, which GNU's does not do on ARM: together 0.2 MB. Rust from rustup
# brings it along.
linker_folder() {
    local folder
    for folder in "$(rustc --print sysroot)"/lib/rustlib/*/bin/gcc-ld /usr/lib/llvm-{22,21,20,19,18,17,16,15}/bin; do
        if [ -x "$folder/ld.lld" ]; then
            echo "$folder"
            return
        fi
    done
    return 1
}
linker_folder >/dev/null || install_packages lld-19 || true
linker_folder >/dev/null || {
    say "LLVM's linker, version 15 or newer, is needed. Install lld-19, or another lld of your system."
    exit 1
}

flags=()
if [ "$libc" = gnu ]; then
    flags+=("-Clinker=$compiler-gcc" -Clink-arg=-fuse-ld=lld "-Clink-arg=-B$(linker_folder)")
    flags+=("-Clink-arg=-Wl,--icf=all,-O2,-z,pack-relative-relocs")
else
    # musl's own objects come with Rust: no C compiler takes part in linking.
    flags+=(-Clinker=rust-lld -Clink-self-contained=yes)
    flags+=(-Clink-arg=--icf=all -Clink-arg=-O2)
fi
# LLVM shares equal pieces of code by making functions of them, and does not count the 36 bytes that each costs in the
# tables for unwinding.
flags+=(-Cllvm-args=-outliner-benefit-threshold=40)

# --- Build -------------------------------------------------------------------------------------------------------

cargo fetch --locked --quiet
# Panic messages name source files: without the folder of this machine that they lie in.
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    flags+=("--remap-path-prefix=$sources=")
done

features=()
[ "$image" = full ] || features=(--no-default-features --features gpio)
variable=${target//-/_}
export "CC_$variable=$compiler-gcc" "AR_$variable=$compiler-ar"
CARGO_ENCODED_RUSTFLAGS=$(
    IFS=$'\x1f'
    echo "${flags[*]}"
)
export CARGO_ENCODED_RUSTFLAGS

say "building the $image image for $target with $("${RUSTC:-rustc}" --version)"
cargo build --locked --profile device --target "$target" --target-dir target/arm/cargo "${features[@]}"
mkdir -p "$folder"
cp "target/arm/cargo/$target/device/c2d-agent" "$folder/c2d-agent"

# --- What it is, and whether it runs on Debian 12 -------------------------------------------------------------------

binary=$folder/c2d-agent
size=$(stat -c %s "$binary" | sed ':a; s/\B[0-9]\{3\}\>/,&/; ta')
if [ "$folder" = target/arm/aarch64/device ]; then
    say "device image: $size bytes (budget 2,500,000)"
else
    say "$binary: $size bytes"
fi
libraries=$(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | paste -sd ' ')
say "libraries it needs: ${libraries:-none}"

if [ "$libc" = gnu ]; then
    versions=$(readelf -W -V "$binary" | grep -o 'GLIBC_[A-Z0-9_.]*' | sort -uV)
    newest=$(grep -o '^GLIBC_[0-9.]*$' <<<"$versions" | tail -n 1 | cut -d_ -f2)
    needs=$newest
    # Packed relocations are read by glibc from 2.36 on.
    if grep -q GLIBC_ABI_DT_RELR <<<"$versions" && [ "$(printf '%s\n' "$needs" 2.36 | sort -V | tail -n 1)" = 2.36 ]; then
        needs=2.36
    fi
    say "newest glibc symbol: GLIBC_$newest; it runs with glibc $needs or newer"
    if [ "$(printf '%s\n' "$needs" "$NEWEST_GLIBC" | sort -V | tail -n 1)" != "$NEWEST_GLIBC" ]; then
        say "that is newer than the glibc $NEWEST_GLIBC of Debian 12 and Raspberry Pi OS 12: build on Debian 12, or with --static"
        exit 1
    fi
fi
