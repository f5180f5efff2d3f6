#!/usr/bin/env bash
# Makes c2d-agent for a Raspberry Pi or another ARM gateway, on any Debian or Ubuntu machine. The binary is stripped and runs on
# Debian 12, Raspberry Pi OS 12 and everything newer (glibc 2.36 or later), which the script asserts.
#
#   scripts/build-arm.sh [aarch64|armv7]      the device image (init, run, check, inbox, status, healthcheck), for 64-bit or 32-bit systems
#   scripts/build-arm.sh ... --full           everything: also c2d-send, emulator, demo and the other default features
#   scripts/build-arm.sh ... --panics         the device image with a thread that panics on purpose, for scripts/test-pi.sh
#   scripts/build-arm.sh ... --static         with musl, for systems with another or an older libc
#   scripts/build-arm.sh ... --print-path     builds nothing, and prints where such a build puts its binary
#
# Its place is target/arm/ARCH/device/c2d-agent, with --full target/arm/ARCH/full/c2d-agent, with --panics
# target/arm/ARCH/panics/c2d-agent; with --static the folder is called device-static or full-static.
#
# Exit code 3: a cross compiler or Rust's libraries for this ARM cannot be had here.
#
# --toolchain rustup|distribution|source says where Rust's libraries for ARM come from. Unless it is given: from rustup where
# rustup can add them; else with musl from Rust's source, and without from the distribution (on Debian 12 rustc-web, which
# brings the newest Rust).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
. scripts/packages.sh

usage() {
    echo "usage: scripts/build-arm.sh [aarch64|armv7] [--full|--panics] [--static] [--toolchain rustup|distribution|source] [--print-path]" >&2
    exit 2
}

arch=aarch64 image=device libc=gnu toolchain="" print_path=no
while [ $# -gt 0 ]; do
    case "$1" in
    aarch64 | armv7) arch=$1 ;;
    --full) image=full ;;
    --panics) image=panics ;;
    --static) libc=musl ;;
    --toolchain)
        toolchain="${2:-}"
        [[ "$toolchain" =~ ^(rustup|distribution|source)$ ]] || usage
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
cannot() {
    say "$*"
    exit 3
}
require_packages "$compiler-gcc:gcc-$compiler" readelf:binutils ||
    cannot "$target cannot be built here: install the cross compiler gcc-$compiler"
libc_is_there() { echo '#include <stdint.h>' | "$compiler-gcc" -E -x c - >/dev/null 2>&1; }
libc_is_there || install_packages "libc6-dev-$debian_arch-cross" || true
libc_is_there || cannot "$target cannot be built here: $compiler-gcc needs the package libc6-dev-$debian_arch-cross"

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
    [ "$libc" = gnu ] || return 1 # it has no Rust for musl
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

# Rust's libraries are compiled with the program. What Rust otherwise brings along for musl comes from the distribution: musl
# itself, and the start files and the unwinder of the cross compiler.
musl=target/arm/musl/$arch
build_std=()
add_from_source() {
    [ "$libc" = musl ] && has rustup && has apt-get || return 1
    say "building Rust's own libraries for $target from their source, too"
    timeout 120 rustup component add rust-src || return 1
    if [ ! -e "$musl/libunwind.a" ]; then
        local apt=$musl.apt foreign
        rm -rf "$apt"
        foreign_apt "$debian_arch" "$apt"
        (cd "$apt" && apt-get "${foreign[@]}" download -q musl-dev) &&
            dpkg-deb -x "$apt"/musl-dev_*.deb "$apt/files" || return 1
        local parts=("$apt"/files/usr/lib/*-linux-musl*/*.[oa]) file
        for file in crtbegin.o crtbeginS.o crtend.o crtendS.o; do
            parts+=("$("$compiler-gcc" -print-file-name="$file")")
        done
        # The unwinder last: it says that all is there.
        mkdir -p "$musl" && cp "${parts[@]}" "$musl/" &&
            cp "$("$compiler-gcc" -print-file-name=libgcc_eh.a)" "$musl/libunwind.a" || return 1
        rm -rf "$apt"
    fi
    build_std=("-Zbuild-std=std,panic_abort")
    export RUSTC_BOOTSTRAP=1 # the stable cargo takes that option only so
}

remedy="else from Debian 12's packages rustc-web and libstd-rust-web-dev:$debian_arch, of one version"
[ "$libc" = gnu ] || remedy="else from Rust's source, with rustup's component rust-src and Debian's package musl-dev:$debian_arch"
case "$toolchain" in
rustup) add_with_rustup ;;
distribution) add_from_distribution ;;
source) add_from_source ;;
*) add_with_rustup || add_from_source || add_from_distribution ;;
esac || cannot "there are no Rust libraries for $target: they come from 'rustup target add $target', $remedy"

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
    to_linker=-Wl,
else
    # musl's own objects come with Rust, or lie in a folder of ours: no C compiler takes part in linking.
    flags+=(-Clinker=rust-lld -Clink-self-contained=yes)
    [ ${#build_std[@]} = 0 ] || flags+=("-Lnative=$PWD/$musl")
    flags+=(-Clink-arg=--icf=all -Clink-arg=-O2)
    to_linker=
fi
if [ "$image" = full ]; then
    # LLVM shares equal pieces of code by making functions of them, and does not count the 36 bytes that each costs in the
    # tables for unwinding.
    flags+=(-Cllvm-args=-outliner-benefit-threshold=40)
else
    # A panic aborts, and only backtraces would still need these tables.
    flags+=(-Cforce-unwind-tables=no "-Clink-arg=${to_linker}-T$PWD/scripts/no-unwind-tables.ld")
fi

# --- Build -------------------------------------------------------------------------------------------------------

cargo fetch --locked --quiet
# Panic messages name source files: without the folder of this machine that they lie in.
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    flags+=("--remap-path-prefix=$sources=")
done

features=()
[ "$image" = full ] || features=(--no-default-features --features gpio)
program=(--bin c2d-agent) made=c2d-agent
[ "$image" != panics ] || program=(--example panics) made=examples/panics
variable=${target//-/_}
export "CC_$variable=$compiler-gcc" "AR_$variable=$compiler-ar"
CARGO_ENCODED_RUSTFLAGS=$(
    IFS=$'\x1f'
    echo "${flags[*]}"
)
export CARGO_ENCODED_RUSTFLAGS

say "building the $image image for $target with $("${RUSTC:-rustc}" --version)"
cargo build --locked --profile device --target "$target" --target-dir target/arm/cargo "${program[@]}" "${build_std[@]}" \
    "${features[@]}"
mkdir -p "$folder"
cp "target/arm/cargo/$target/device/$made" "$folder/c2d-agent"

# --- What it is, and whether it runs on Debian 12 -------------------------------------------------------------------

binary=$folder/c2d-agent
size=$(stat -c %s "$binary" | sed ':a; s/\B[0-9]\{3\}\>/,&/; ta')
if [ "$folder" = target/arm/aarch64/device ]; then
    say "device image: $size bytes (goal: at most 2,400,000)"
else
    say "$binary: $size bytes"
fi
libraries=$(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | paste -sd ' ')
say "libraries it needs: ${libraries:-none}"

if [ "$libc" = gnu ]; then
    scripts/check-glibc.sh "$binary"
fi
