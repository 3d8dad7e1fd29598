#!/usr/bin/env bash
# Puts promtool into a folder, from Debian's packages, without installing anything on the machine.
# Guarantee: needs no root, changes no file outside FOLDER and the cache, and starts no daemon.
# Usage: scripts/promtool.sh FOLDER
set -euo pipefail

folder=$(mkdir -p "$1" && cd "$1" && pwd)
# One that the machine has already will do.
if found=$(command -v promtool); then
  mkdir -p "$folder/bin" && ln -sf "$found" "$folder/bin/promtool" && exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,parts}

# apt-get with a state of its own: the machine's package lists stay as they are.
private_apt() {
  apt-get --quiet -o Dir::State="$work/state" -o Dir::State::status=/var/lib/dpkg/status \
    -o Dir::Cache="$work/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}

# Where this machine gets Debian's packages from, as apt itself was told.
mirror() {
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources \
    2>/dev/null | grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1
}

take() { # take PACKAGE APT-OPTION...: one package's promtool
  local package=$1
  shift
  private_apt "$@" update &&
    (cd "$work" && private_apt "$@" download "$package") &&
    dpkg-deb -x "$work/${package}"_*.deb "$work/tree" &&
    "$work/tree/usr/bin/promtool" --version &&
    install -D "$work/tree/usr/bin/promtool" "$folder/bin/promtool"
}

newest() { # Debian's rolling suite has Prometheus 3
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg signed=
  [[ -e $keyring ]] && signed="[signed-by=$keyring]"
  echo "deb $signed $(mirror) sid main" >"$work/sid.list"
  take promtool -o Dir::Etc::SourceList="$work/sid.list" -o Dir::Etc::SourceParts="$work/parts"
}

own() { # the suite that this machine runs; older, and good enough to check metrics
  rm -rf "$work/tree" && take prometheus
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "promtool: no apt-get here: install Prometheus, so that promtool is on PATH" >&2
  exit 1
fi
newest || own || {
  echo "promtool: Debian's packages could not be read: run apt-get update as root and try again," \
    "or install Prometheus, so that promtool is on PATH" >&2
  exit 1
}
