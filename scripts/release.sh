#!/usr/bin/env bash
# Makes the files of a release in target/dist/: Debian packages, static programs, small images for devices, checksums, the list of
# what is linked, and the notes. Each program is started before its file counts, in QEMU where this processor cannot.
#
#   scripts/release.sh                  everything: an hour on two cores. See docs/src/development.md, "A release"
#   scripts/release.sh PART...          these parts only, beside what is there already
#   scripts/release.sh --tag v0.1.0     everything, when Cargo.toml and CHANGELOG.md have this version
#
# Parts: deb-amd64 deb-arm64 deb-armhf static-x86_64 static-aarch64 static-armv7 small-aarch64 small-armv7 sbom notes
#
# What this machine cannot build is named, and the rest is made. Exit codes: 0 all was made, 3 this machine cannot build some of it,
# 1 something failed, 2 usage. A file is in target/dist/ only when it is whole; the logs are in target/dist-logs/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin"
. scripts/packages.sh

CARGO_CYCLONEDX_VERSION=0.5.9
PARTS=(deb-amd64 deb-arm64 deb-armhf static-x86_64 static-aarch64 static-armv7 small-aarch64 small-armv7 sbom notes)

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
dist=target/dist logs=target/dist-logs part_dir=target/dist-part
built=${CARGO_TARGET_DIR:-target}
# Files carry the time of the commit: the same source makes the same archive.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

cannot() {
    say "$*"
    exit 3
}
fail() {
    say "$*"
    exit 1
}

# --- One part, in a process of its own ------------------------------------------------------------------------------

# finish FILE NAME: a whole file gets its place.
finish() {
    mkdir -p "$dist"
    mv -f "$1" "$dist/$2"
    say "made $2"
}

# prove PROCESSOR PROGRAM full|small: it starts, reads a configuration, and where it has one, its demo goes through.
prove() {
    local processor=$1 program=$2 image=$3 run=() emulator=qemu-arm-static libraries=/usr/arm-linux-gnueabihf
    if [ "$processor" != "$(uname -m)" ]; then
        if [ "$processor" = aarch64 ]; then
            emulator=qemu-aarch64-static libraries=/usr/aarch64-linux-gnu
        fi
        require_packages "$emulator:qemu-user-static" ||
            cannot "$program cannot be started here, so it is not released: install qemu-user-static"
        run=("$emulator" -L "$libraries")
    fi
    local said
    said=$("${run[@]}" "$program" --version)
    [ "$said" = "c2d-agent $version" ] || fail "$program says that it is \"$said\", not c2d-agent $version"
    local example=$part_dir/example
    mkdir -p "$example"
    (umask 077 && echo 'HostName=hub.example;DeviceId=pi-01;SharedAccessKey=AAAA' >"$example/device.connection-string")
    sed 's|/etc/c2d-agent/||' packaging/config.toml >"$example/config.toml"
    "${run[@]}" "$program" check -c "$example/config.toml"
    [ "$image" = small ] || timeout 120 "${run[@]}" "$program" demo
}

# manual FOLDER FEATURE...: man pages and completions of a program with these features.
manual() {
    local folder=$1
    shift
    cargo build --quiet --locked "$@"
    "$built/debug/c2d-agent" manual "$folder"
}

# archive NAME PROGRAM FEATURE...: a program and all that belongs to it.
archive() {
    local name=$1 program=$2 folder=$part_dir/$1
    shift 2
    mkdir -p "$folder/systemd"
    cp "$program" LICENSE-APACHE LICENSE-MIT README.md CHANGELOG.md packaging/config.toml "$folder/"
    cp packaging/archive/INSTALL.md "$folder/"
    cp packaging/c2d-agent.{service,sysusers,rules} "$folder/systemd/"
    if [ -d examples ]; then cp -r examples "$folder/"; fi
    manual "$folder" "$@"
    tar -C "$part_dir" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
        gzip -n9 >"$part_dir/$name.tar.gz"
    finish "$part_dir/$name.tar.gz" "$name.tar.gz"
}

# deb ARCHITECTURE PROCESSOR
deb() {
    if [ "$1" != amd64 ]; then
        scripts/build-arm.sh "$2" --full
    elif [ "$(uname -m)" != x86_64 ]; then
        cannot "the package for amd64 cannot be built here: this machine has another processor"
    fi
    local package
    package=$(scripts/build-deb.sh "$1")
    dpkg-deb --extract "$package" "$part_dir/files"
    scripts/check-glibc.sh "$part_dir/files/usr/bin/c2d-agent" ||
        cannot "the package for $1 cannot be built here: the glibc of this machine is newer than that of Debian 12"
    prove "$2" "$part_dir/files/usr/bin/c2d-agent" full
    finish "$package" "$(basename "$package")"
}

# static PROCESSOR: everything in one file that needs no library.
static() {
    local program
    if [ "$1" = x86_64 ]; then
        static_pc
        program=$built/x86_64-unknown-linux-musl/release/c2d-agent
    else
        scripts/build-arm.sh "$1" --full --static
        program=$(scripts/build-arm.sh "$1" --full --static --print-path)
    fi
    if readelf -l "$program" | grep INTERP >/dev/null; then # no -q: readelf's broken pipe would hide the hit
        fail "$program is not static"
    fi
    prove "$1" "$program" full
    archive "c2d-agent-$version-$1-linux-musl" "$program" --features manual
}

static_pc() {
    local target=x86_64-unknown-linux-musl
    scripts/setup.sh --demo
    require_packages readelf:binutils x86_64-linux-gnu-gcc:gcc-x86-64-linux-gnu ||
        cannot "$target cannot be built here: install gcc-x86-64-linux-gnu"
    compgen -G "$(rustc --print sysroot)/lib/rustlib/$target/lib/libstd-*.rlib" >/dev/null ||
        { has rustup && timeout 120 rustup target add "$target"; } ||
        cannot "there are no Rust libraries for $target: 'rustup target add $target' installs them where rustup and its server are within reach"
    CC_x86_64_unknown_linux_musl=x86_64-linux-gnu-gcc RUSTFLAGS="-Clinker=rust-lld -Clink-self-contained=yes" \
        cargo build --locked --release --target "$target"
}

# small PROCESSOR: the image for a gateway with little flash.
small() {
    scripts/build-arm.sh "$1"
    local program
    program=$(scripts/build-arm.sh "$1" --print-path)
    prove "$1" "$program" small
    archive "c2d-agent-$version-$1-linux-gnu-small" "$program" --no-default-features --features gpio,manual
}

# What the full program links, by cargo tree: the tool also lists crates that only features could bring which are off.
sbom() {
    require_packages jq:jq || cannot "the list of what is linked cannot be made here: install jq"
    cargo_tool cargo-cyclonedx "$CARGO_CYCLONEDX_VERSION"
    # In a copy without sources, so that nothing is written beside Cargo.toml, and no path of this machine into the file.
    local copy=$part_dir/c2d-agent target=x86_64-unknown-linux-gnu linked=$part_dir/linked list=$part_dir/list.json
    mkdir -p "$copy/src"
    cp Cargo.toml Cargo.lock "$copy/"
    touch "$copy/src/lib.rs" "$copy/src/main.rs"
    (cd "$copy" && cargo cyclonedx --format json --spec-version 1.5 --target "$target" --no-build-deps --override-filename list)
    cargo tree --locked --edges normal --prefix none --format '{p}' --target "$target" |
        cut -d' ' -f1,2 | grep -v '^c2d-agent ' | sort -u >"$linked"
    jq --rawfile linked "$linked" '
        ($linked | split("\n")) as $linked
        | .components |= map(select(.name + " v" + .version | IN($linked[])))
        | [.metadata.component["bom-ref"], .components[]["bom-ref"]] as $kept
        | .dependencies |= map(select(.ref | IN($kept[])) | .dependsOn = [.dependsOn[]? | select(IN($kept[]))])
    ' "$copy/list.json" | sed "s|$(realpath "$copy")|/c2d-agent|g" >"$list"
    jq -r '.components[] | .name + " v" + .version' "$list" | sort -u | diff "$linked" - ||
        fail "the list of what is linked is not that of cargo tree"
    say "$(wc -l <"$linked") crates are linked"
    finish "$list" "c2d-agent-$version.cdx.json"
}

# section HEADING: what CHANGELOG.md says below it.
section() { awk -v heading="## [$1]" '/^## /{on = index($0, heading) == 1; next} on' CHANGELOG.md; }

notes() {
    local changes title="c2d-agent $version"
    changes=$(section "$version")
    if [ -z "$changes" ]; then
        changes=$(section Unreleased)
        title="c2d-agent $version, not yet released"
    fi
    [ -n "$changes" ] || fail "CHANGELOG.md has no section [$version] and no section [Unreleased]"
    printf '# %s\n\n%s\n%s\n' "$title" "$(cat packaging/archive/files.md)" "$changes" >"$part_dir/notes"
    finish "$part_dir/notes" RELEASE-NOTES.md
}

make_part() {
    rm -rf "$part_dir"
    mkdir -p "$part_dir"
    # What an older run has made of this part goes first, so that it is not taken for what is made now.
    case "$1" in
    deb-*) rm -f "$dist"/*_"${1#deb-}".deb ;;
    static-*) rm -f "$dist"/*-"${1#static-}"-linux-musl.tar.gz ;;
    small-*) rm -f "$dist"/*-"${1#small-}"-linux-gnu-small.tar.gz ;;
    sbom) rm -f "$dist"/*.cdx.json ;;
    notes) rm -f "$dist/RELEASE-NOTES.md" ;;
    esac
    case "$1" in
    deb-amd64) deb amd64 x86_64 ;;
    deb-arm64) deb arm64 aarch64 ;;
    deb-armhf) deb armhf armv7 ;;
    static-*) static "${1#static-}" ;;
    small-*) small "${1#small-}" ;;
    sbom) sbom ;;
    notes) notes ;;
    esac
    rm -rf "$part_dir"
}

# --- All of them ----------------------------------------------------------------------------------------------------

usage() {
    say "usage: scripts/release.sh [--tag TAG | PART...]; parts: ${PARTS[*]}" >&2
    exit 2
}

if [ "${1:-}" = --make ]; then
    make_part "$2"
    exit
fi
if [ "${1:-}" = --tag ]; then
    [ $# = 2 ] || usage
    [ "$2" = "v$version" ] || fail "the tag $2 is not that of Cargo.toml's version $version"
    [ -n "$(section "$version")" ] || fail "CHANGELOG.md has no section [$version]"
    shift 2
fi
for part in "$@"; do
    [[ " ${PARTS[*]} " == *" $part "* ]] || usage
done

# Nothing of an older run stays beside a whole new one, and no list of sums that are not true any more.
[ $# -gt 0 ] || rm -rf "$dist"
mkdir -p "$dist" "$logs"
rm -f "$dist/SHA256SUMS"
[ $# -gt 0 ] || set -- "${PARTS[@]}"

table=() result=0
for part in "$@"; do
    say "--- $part"
    began=$SECONDS code=0
    log=$logs/$part.log
    scripts/release.sh --make "$part" 2>&1 | tee "$log" || code=$?
    why=$(grep -E '^(release|build-arm|build-deb|check-glibc|setup): ' "$log" | tail -n 1) || true
    case $code in
    0) table+=("made     $part: ${why#release: made } ($((SECONDS - began)) s)") ;;
    3)
        table+=("NOT MADE $part: ${why#*: }")
        [ $result = 1 ] || result=3
        ;;
    *)
        table+=("FAILED   $part: see $log; its last words: $(tail -n 1 "$log")")
        result=1
        ;;
    esac
done
rm -rf "$part_dir"

(cd "$dist" && find . -type f ! -name RELEASE-NOTES.md -printf '%P\n' | sort | xargs -r sha256sum >../dist.sums)
if [ -s target/dist.sums ]; then
    mv target/dist.sums "$dist/SHA256SUMS"
fi

say "c2d-agent $version in $dist, after $SECONDS s:"
(cd "$dist" && find . -type f -printf '%P\t%s\n' | sort | while IFS=$'\t' read -r file size; do
    printf '  %-52s %11s bytes\n' "$file" "$(sed ':a; s/\B[0-9]\{3\}\>/,&/; ta' <<<"$size")"
done)
printf '  %s\n' "${table[@]}"
exit $result
