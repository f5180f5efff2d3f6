# shellcheck shell=bash
# Sourced by the other scripts: says what is missing, and installs packages of the distribution.

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
