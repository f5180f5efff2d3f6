#!/usr/bin/env bash
# Makes the Debian package with the full program, man pages and shell completions, and prints its path.
#
#   scripts/build-deb.sh [amd64]                builds the release
#   scripts/build-deb.sh arm64|armhf            takes what scripts/build-arm.sh aarch64|armv7 --full has built
#   scripts/build-deb.sh --debug [amd64]        from the debug build: quick, for tests of the package itself
#   C2D_DEB_VERSION=0.0.9-1 scripts/build-deb.sh …   another version than that of Cargo.toml
#
# The package lands in target/deb/. cargo-deb is built into .tools/ when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin"

. scripts/packages.sh
CARGO_DEB_VERSION=3.8.0

usage() {
    echo "usage: scripts/build-deb.sh [--debug] [amd64|arm64|armhf]" >&2
    exit 2
}

profile=release
if [ "${1:-}" = --debug ]; then
    profile=debug
    shift
fi
[ $# -le 1 ] || usage
arch=${1:-amd64}
case "$profile $arch" in
"release amd64" | "debug amd64") target=x86_64-unknown-linux-gnu ;;
"release arm64") target=aarch64-unknown-linux-gnu cpu=aarch64 ;;
"release armhf") target=armv7-unknown-linux-gnueabihf cpu=armv7 ;;
*) usage ;;
esac

scripts/setup.sh --demo >&2
require_packages dpkg-deb:dpkg >&2
cargo_tool cargo-deb "$CARGO_DEB_VERSION" >&2

built=${CARGO_TARGET_DIR:-$PWD/target}
files=target/deb/files # Cargo.toml takes the package's built files from here
rm -rf "$files"
mkdir -p "$files"

say "man pages and completions" >&2
# From a program of its own: the one in the package has no subcommand `manual`.
cargo build --quiet --locked --features manual >&2
"$built/debug/c2d-agent" manual "$files"

case "$profile $arch" in
"release amd64")
    cargo build --release --locked >&2
    cp "$built/release/c2d-agent" "$files/"
    ;;
"debug amd64")
    cargo build --quiet --locked >&2
    strip -o "$files/c2d-agent" "$built/debug/c2d-agent"
    ;;
"release arm"*)
    binary=$(scripts/build-arm.sh "$cpu" --full --print-path)
    if [ ! -x "$binary" ]; then
        say "there is no $binary: run scripts/build-arm.sh $cpu --full first" >&2
        exit 1
    fi
    cp "$binary" "$files/"
    ;;
esac

# Tests of the package itself need not wait for the best compression.
fast=()
[ "$profile" = release ] || fast=(--fast)
cargo deb --quiet "${fast[@]}" --no-build --no-strip --target "$target" --output "$built/deb/" ${C2D_DEB_VERSION:+--deb-version "$C2D_DEB_VERSION"}
