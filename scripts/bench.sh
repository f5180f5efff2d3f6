#!/usr/bin/env bash
# Measures release builds on this machine and prints a Markdown table: sizes, memory, start, throughput, latency; beside
# each figure what mosquitto_sub and Microsoft's Python SDK do in the same run, its goal, and whether that is met. Loopback
# only; about fifteen minutes with the builds, eight without. For figures that mean something, leave the machine alone
# meanwhile.
#
#   scripts/bench.sh                  everything
#   scripts/bench.sh drain latency    these parts only; an unknown one lists them all
#
# The inbox is in a folder below TMPDIR, so that says which disk is measured.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin"

scripts/setup.sh >&2
for program in mosquitto mosquitto_sub openssl python3; do
    if ! command -v "$program" >/dev/null; then
        echo "bench: $program is missing" >&2
        exit 1
    fi
done

target=${CARGO_TARGET_DIR:-target}
cargo build --release --locked --no-default-features --features gpio >&2
install -D "$target/release/c2d-agent" "$target/bench/c2d-agent-device"
# Only these parts look at the program with all features.
if [ $# -eq 0 ] || [[ " $* " =~ \ (size|memory|emulator|scale|fleet|transports)\  ]]; then
    cargo build --release --locked >&2
    install -D "$target/release/c2d-agent" "$target/bench/c2d-agent"
fi
# Ten thousand devices. How fast this program itself is matters little, so it is built without link-time optimisation.
if [ $# -eq 0 ] || [[ " $* " =~ \ scale\  ]]; then
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo build --release --locked --example load >&2
    install -D "$target/release/examples/load" "$target/bench/load"
fi

PYTHONDONTWRITEBYTECODE=1 exec timeout 900 python3 tests/bench/bench.py \
    "$target/bench/c2d-agent" "$target/bench/c2d-agent-device" "$@"
