#!/usr/bin/env bash
# Runs every test: all features that ship and `manual`, then the library by itself in each smaller feature set.
# Tests whose peer is not installed are skipped and listed at the end; where CI is set they fail instead.
# Arguments go to the run with all features, such as a part of a test's name.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin"

scripts/setup.sh

# Most tests wait for other processes, more than they compute.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((2 * $(nproc)))}"

log=$(mktemp)
trap 'rm -f "$log"' EXIT

cargo test --locked --features manual "$@" 2>&1 | tee "$log"
if [ $# = 0 ]; then
    for features in manual gpio,manual full; do
        echo "test: the library with features [$features]"
        cargo test --locked --lib --no-default-features --features "$features"
    done
fi

if grep -q '^SKIPPED ' "$log"; then
    echo
    echo "Not every test ran here:"
    grep '^SKIPPED ' "$log" | sort -u
fi
