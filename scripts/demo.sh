#!/usr/bin/env bash
# Builds c2d-agent and runs its demo: emulator, agent and sender in one process, on loopback only.
# A debug build: it is there in about a minute, where the release build takes several.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

scripts/setup.sh --demo
cargo build --locked
exec "${CARGO_TARGET_DIR:-target}/debug/c2d-agent" demo "$@"
