#!/usr/bin/env bash
# Fuzzes every target for a while (60 seconds each, or as many as the first argument says; further arguments name
# targets). Findings land in fuzz/artifacts/; the corpora in fuzz/corpus/ are read but not added to.
# Needs cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

seconds=${1:-60}
[ $# = 0 ] || shift
if ! command -v cargo-fuzz >/dev/null; then
    echo "cargo-fuzz is missing: cargo install cargo-fuzz --locked --root .tools" >&2
    exit 1
fi
if [ $# = 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
    set -- "${targets[@]}"
fi

# libFuzzer's instrumentation is behind nightly flags; this lets the stable compiler of the project take them.
export RUSTC_BOOTSTRAP=1
for target in "$@"; do
    echo "fuzz: $target for $seconds s"
    grown=$(mktemp -d) # what libFuzzer finds interesting goes here, so that the corpus stays hand-made
    cargo fuzz run "$target" "$grown" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
    rm -rf "$grown"
done
