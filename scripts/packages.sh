# shellcheck shell=bash
# Sourced by the other scripts: says what is missing, and installs packages of the distribution and tools of crates.io.

say() { echo "$(basename "$0" .sh): $*"; }
has() { command -v "$1" >/dev/null 2>&1; }

missing=()
lacks() {
    missing+=("$1")
    say "MISSING: $1. $2"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        return 1
    fi
}

# install_packages PACKAGE...: with apt, each for itself when all at once do not go.
apt_is_fresh=no
install_packages() {
    if ! has apt-get; then
        say "there is no apt-get here; these Debian packages, or what your system calls them, are needed: $*"
        return 1
    fi
    say "installing from the distribution: $*"
    if [ "$apt_is_fresh" = no ]; then
        as_root apt-get update -q || say "apt-get update failed; trying with the lists that are there"
        apt_is_fresh=yes
    fi
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends)
    as_root "${install[@]}" "$@" && return
    local package
    for package in "$@"; do
        as_root "${install[@]}" "$package" || say "the package $package could not be installed"
    done
}

# require_packages COMMAND:PACKAGE...: installs the packages whose command is not there, and fails when one is missing then.
require_packages() {
    local pair wanted=()
    for pair in "$@"; do
        has "${pair%%:*}" || wanted+=("${pair#*:}")
    done
    [ ${#wanted[@]} = 0 ] || install_packages "${wanted[@]}" || true
    for pair in "$@"; do
        has "${pair%%:*}" || lacks "${pair%%:*}" "Install the package ${pair#*:}."
    done
    [ ${#missing[@]} = 0 ]
}

# foreign_apt ARCHITECTURE FOLDER: fetches package lists of another architecture, and sets `foreign` to the options with which
# apt-get and apt-cache use them. All is kept in FOLDER, so that the machine's own apt stays as it is.
foreign_apt() {
    local folder
    mkdir -p "$2/lists/partial" "$2/cache/archives/partial"
    folder=$(realpath "$2")
    foreign=(
        -o "APT::Architecture=$1" -o "APT::Architectures=$1"
        -o "Dir::State=$folder" -o "Dir::State::lists=$folder/lists" -o Dir::State::status=/dev/null -o "Dir::Cache=$folder/cache"
        -o "APT::Sandbox::User=$(id -un)"
    )
    apt-get "${foreign[@]}" update -q || say "not every package list could be had; trying with the others"
}

# cargo_tool NAME VERSION [OPTION...]: builds a tool of crates.io into .tools/, unless that version is there or among
# the user's own. It is built for a short build, not for speed: each tool runs for seconds.
cargo_tool() {
    local name=$1 version=$2 listed
    shift 2
    listed=$(cargo install --list --root .tools 2>/dev/null && cargo install --list 2>/dev/null) || true
    if grep -qxF "$name v$version:" <<<"$listed"; then
        return
    fi
    say "building $name $version into .tools/ (some minutes on two cores)"
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=false cargo install "$name" --quiet --locked --version "$version" --root .tools "$@"
}
