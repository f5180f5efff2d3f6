#!/usr/bin/env bash
# Measures release builds on this machine and prints a Markdown table: sizes, memory, start, throughput, latency; beside
# each figure its budget, and what mosquitto_sub and Microsoft's Python SDK do in the same run. Loopback only; about twelve
# minutes with the builds, five without. For figures that mean something, leave the machine alone meanwhile.
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
cargo build --release --locked >&2
install -D "$target/release/c2d-agent" "$target/bench/c2d-agent"

PYTHONDONTWRITEBYTECODE=1 exec timeout 900 python3 tests/bench/bench.py "$target/bench/c2d-agent" "$target/bench/c2d-agent-device"
