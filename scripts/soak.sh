#!/usr/bin/env bash
# Runs the fault harness for longer than the tests do: kill -9, SIGTERM, cut connections and hub restarts at random
# instants while messages flow, and then counts. Prints the totals. About five minutes for 1,000 rounds.
# Usage: scripts/soak.sh [ROUNDS], by default 1000; C2D_SOAK_SEED=N makes the choices of an earlier run again.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin"

case "${1:-1000}" in
'' | *[!0-9]*)
    echo "soak: \"$1\" is not a number of rounds: try scripts/soak.sh 200" >&2
    exit 2
    ;;
esac

scripts/setup.sh
C2D_SOAK_ROUNDS=${1:-1000} exec cargo test --locked --test it soak:: -- --nocapture --test-threads=1
