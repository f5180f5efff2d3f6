#!/usr/bin/env bash
# Compiles c2d-agent for the container image; called by the Dockerfile, on the machine that builds, for the one that will run it.
#
#   scripts/build-image.sh amd64|arm64|arm VARIANT full|device FOLDER
#
# FOLDER/root gets what goes into the image, FOLDER/state is the empty directory of the inbox.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

arch=${1:-} variant=${2:-} image=${3:-full} folder=${4:-}
[ -n "$folder" ] || {
    echo "usage: scripts/build-image.sh amd64|arm64|arm VARIANT full|device FOLDER" >&2
    exit 2
}

options=() features=()
case "$image" in
full) options=(--full) ;;
device) features=(--no-default-features --features gpio) ;;
*)
    say "IMAGE is '$image': use full or device"
    exit 2
    ;;
esac

case "$arch$variant" in
amd64*)
    if [ "$(uname -m)" != x86_64 ]; then
        require_packages x86_64-linux-gnu-gcc:gcc-x86-64-linux-gnu
        rustup target add x86_64-unknown-linux-gnu
        export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc
        export CC_x86_64_unknown_linux_gnu=x86_64-linux-gnu-gcc
    fi
    cargo build --locked --release --bin c2d-agent --target x86_64-unknown-linux-gnu "${features[@]}"
    binary=target/x86_64-unknown-linux-gnu/release/c2d-agent
    ;;
arm64*) arm=aarch64 ;;
armv7) arm=armv7 ;;
*)
    say "there is no image for $arch/$variant: amd64, arm64 and arm/v7 are possible"
    exit 2
    ;;
esac
if [ -n "${arm:-}" ]; then
    scripts/build-arm.sh "$arm" "${options[@]}"
    binary=$(scripts/build-arm.sh "$arm" "${options[@]}" --print-path)
fi

mkdir -p "$folder/state"
chmod 700 "$folder/state"
install -D -m 755 "$binary" "$folder/root/usr/local/bin/c2d-agent"
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/ca-certificates.crt"
install -D -m 644 -t "$folder/root/usr/share/doc/c2d-agent" LICENSE-MIT LICENSE-APACHE
