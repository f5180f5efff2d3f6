#!/usr/bin/env bash
# Installs what is missing to build, test or check c2d-agent, and says what it does. Quick when all is there.
#
#   scripts/setup.sh --demo   Rust and a C compiler: enough to build and to run the demo
#   scripts/setup.sh          also the peers that the tests talk to: mosquitto, Microsoft's Python and Node SDKs, faketime,
#                             chromium
#   scripts/setup.sh --ci     also what .ci/run needs: clippy, rustfmt, shellcheck, cargo-deny, mdbook, zizmor
#
# Packages come from the distribution (apt), as root or through sudo. What cannot be installed is named, and the
# script goes on: tests that need it are skipped by name. Only a missing Rust or C compiler is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin"

CARGO_DENY_VERSION=0.20.2
MDBOOK_VERSION=0.5.4
ZIZMOR_VERSION=1.32.0
level="test"
case "${1:-}" in
--demo) level=demo ;;
--ci) level=ci ;;
"") ;;
*)
    echo "usage: scripts/setup.sh [--demo | --ci]" >&2
    exit 2
    ;;
esac

. scripts/packages.sh

# --- Rust and a C compiler ---------------------------------------------------------------------------------------

needed_rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
rust_is_new_enough() {
    has cargo && has rustc || return 1
    local version
    version=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$needed_rust" "$version" | sort -V | head -n1)" = "$needed_rust" ]
}

install_rust() {
    if has rustup; then
        say "updating Rust with rustup (c2d-agent needs $needed_rust or newer)"
        rustup update stable || say "rustup update failed"
        return
    fi
    say "installing Rust with rustup into ${CARGO_HOME:-$HOME/.cargo}; your shell profile is left alone"
    has curl || install_packages curl ca-certificates || return
    local script
    script=$(mktemp)
    if curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o "$script"; then
        # A rustc of the distribution may stay beside it; the scripts look into ~/.cargo/bin first.
        RUSTUP_INIT_SKIP_PATH_CHECK=yes sh "$script" -y --no-modify-path --profile minimal \
            --component clippy --component rustfmt || say "the rustup installer failed"
    else
        say "https://sh.rustup.rs could not be fetched"
    fi
    rm -f "$script"
}

has cc || install_packages gcc libc6-dev || true
rust_is_new_enough || install_rust
has cc || lacks "a C compiler (cc)" "Install gcc; ring is built with it."
rust_is_new_enough || lacks "Rust $needed_rust or newer" "Install it from https://rustup.rs."
if [ ${#missing[@]} -gt 0 ]; then
    exit 1
fi
if [ "$level" = demo ]; then
    say "all is there to build and to run the demo"
    exit 0
fi

# --- Peers that the tests talk to --------------------------------------------------------------------------------

packages=()
has mosquitto || packages+=(mosquitto)
has mosquitto_pub || packages+=(mosquitto-clients)
has faketime || packages+=(faketime)
has openssl || packages+=(openssl)
has strace || packages+=(strace)
has chromium || packages+=(chromium)
has chromedriver || packages+=(chromium-driver)
python3 -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3 python3-venv)
has node || packages+=(nodejs)
has npm || packages+=(npm)
if [ "$level" = ci ] && ! has shellcheck; then
    packages+=(shellcheck)
fi

# install_test_packages: without letting the mosquitto package start a broker of its own, now or at the next boot.
install_test_packages() {
    local policy=/usr/sbin/policy-rc.d ours=no
    if ! has mosquitto && [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy" && ours=yes
    fi
    local broker_was_there=no
    has mosquitto && broker_was_there=yes
    install_packages "${packages[@]}" || true
    if [ "$ours" = yes ]; then
        as_root rm -f "$policy"
    fi
    if [ "$broker_was_there" = no ] && has mosquitto && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now mosquitto >/dev/null 2>&1 || say "the mosquitto service stays enabled"
    fi
}

if [ ${#packages[@]} -gt 0 ]; then
    install_test_packages
fi
has mosquitto || lacks mosquitto "Tests against an independent broker are skipped."
has mosquitto_pub || lacks mosquitto_pub "Tests against an independent broker are skipped."
has faketime || lacks faketime "Tests of a wrong clock are skipped."
{ has chromium && has chromedriver; } || lacks "chromium and its driver" "The test of the emulator's page is skipped."
has strace || lacks strace "The test that kills the agent at each write is skipped."
has openssl || lacks openssl "scripts/bench.sh and tests of applications with certificates make theirs with it."

# The venv remembers which requirements it was made from.
requirements=tests/sdk/requirements.txt
if ! cmp -s "$requirements" .venv/requirements.txt; then
    say "installing Microsoft's Python SDKs into .venv/"
    pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" -r "$requirements"; }
    rm -rf .venv
    if has python3 && python3 -m venv .venv; then
        if ! pip_install --only-binary uamqp; then
            say "no ready-made uamqp for this Python and processor: building it (some minutes)"
            install_packages cmake g++ make libssl-dev python3-dev || true
            pip_install || true
        fi
    fi
    if [ -x .venv/bin/python ] && .venv/bin/python -c 'import azure.iot.device, azure.iot.hub' 2>/dev/null; then
        cp "$requirements" .venv/requirements.txt
    else
        lacks "the Python SDKs in .venv/" "Tests against Microsoft's SDKs are skipped."
    fi
fi

# npm empties node_modules first, so the file that says what it was made from is there only when all is.
node_sdks=tests/sdk-node
if ! cmp -s "$node_sdks/package-lock.json" "$node_sdks/node_modules/made-from.json"; then
    say "installing Microsoft's Node SDKs into $node_sdks/node_modules/"
    if has node && has npm && (cd "$node_sdks" && npm ci --ignore-scripts --no-audit --no-fund --loglevel error); then
        cp "$node_sdks/package-lock.json" "$node_sdks/node_modules/made-from.json"
    else
        lacks "the Node SDKs in $node_sdks/" "Tests against Microsoft's Node SDKs are skipped."
    fi
fi

# --- Checks ------------------------------------------------------------------------------------------------------

if [ "$level" = ci ]; then
    if has rustup; then
        cargo clippy --version >/dev/null 2>&1 || rustup component add clippy || true
        cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt || true
    fi
    cargo_tool cargo-deny "$CARGO_DENY_VERSION" || true
    # Its server for authors is left out, which is most of what it links.
    cargo_tool mdbook "$MDBOOK_VERSION" --no-default-features --features search || true
    # Reads the workflows in .github; it comes as a finished program.
    if [ "$(.venv/bin/zizmor --version 2>/dev/null)" != "zizmor $ZIZMOR_VERSION" ]; then
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "zizmor==$ZIZMOR_VERSION" || true
    fi
    cargo clippy --version >/dev/null 2>&1 || lacks clippy "rustup component add clippy"
    cargo fmt --version >/dev/null 2>&1 || lacks rustfmt "rustup component add rustfmt"
    has cargo-deny || lacks cargo-deny "cargo install cargo-deny --locked"
    has mdbook || lacks mdbook "cargo install mdbook --locked"
    [ -x .venv/bin/zizmor ] || lacks zizmor "pip install zizmor, in .venv/"
    has shellcheck || lacks shellcheck "Install the package shellcheck."
    if [ ${#missing[@]} -gt 0 ]; then
        exit 1
    fi
fi

if [ ${#missing[@]} -gt 0 ]; then
    say "done, without: ${missing[*]}"
else
    say "all is there"
fi
