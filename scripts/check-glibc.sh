#!/usr/bin/env bash
# Says which glibc a program needs, and fails where that is newer than the glibc of Debian 12 and Raspberry Pi OS 12.
#
#   scripts/check-glibc.sh BINARY
set -euo pipefail
binary=$(realpath "${1:?usage: scripts/check-glibc.sh BINARY}")
cd "$(dirname "$0")/.."
. scripts/packages.sh

NEWEST_GLIBC=2.36 # Debian 12

require_packages readelf:binutils || exit 1

is_newer() { [ "$(printf '%s\n' "$1" "$2" | sort -V | tail -n 1)" != "$2" ]; }

versions=$(readelf -W -V "$binary" | grep -o 'GLIBC_[A-Z0-9_.]*' | sort -uV)
newest=$(grep -o '^GLIBC_[0-9.]*$' <<<"$versions" | tail -n 1 | cut -d_ -f2)
needs=$newest
# Packed relocations are read by glibc from 2.36 on.
if grep -q GLIBC_ABI_DT_RELR <<<"$versions" && is_newer 2.36 "$needs"; then
    needs=2.36
fi
say "newest glibc symbol: GLIBC_$newest; it runs with glibc $needs or newer"
if is_newer "$needs" "$NEWEST_GLIBC"; then
    say "that is newer than the glibc $NEWEST_GLIBC of Debian 12 and Raspberry Pi OS 12: build on Debian 12, or with musl"
    exit 1
fi
