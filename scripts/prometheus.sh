#!/usr/bin/env bash
# Puts prometheus and promtool into a folder, from Debian's packages, without installing anything.
# Guarantee: needs no root, changes no file outside FOLDER and the cache, and starts no daemon.
# Usage: scripts/prometheus.sh FOLDER
set -euo pipefail

programs=(promtool prometheus)
folder=$(mkdir -p "$1/bin" && cd "$1" && pwd)
# Those that the machine has already will do.
mapfile -t found < <(command -v "${programs[@]}")
if ((${#found[@]} == ${#programs[@]})); then
  for program in "${found[@]}"; do
    [[ $program == "$folder"/bin/* ]] || ln -sf "$program" "$folder/bin/"
  done
  exit
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

take() { # take "PACKAGE..." APT-OPTION...: the two programs out of these packages
  local -a packages
  read -ra packages <<<"$1"
  shift
  private_apt "$@" update &&
    (cd "$work" && rm -f ./*.deb && private_apt "$@" download "${packages[@]}") || return
  local deb program
  for deb in "$work"/*.deb; do
    dpkg-deb -x "$deb" "$work/tree" || return
  done
  for program in "${programs[@]}"; do
    "$work/tree/usr/bin/$program" --version &&
      install -D "$work/tree/usr/bin/$program" "$folder/bin/$program" || return
  done
}

newest() { # Debian's rolling suite has Prometheus 3, and promtool in a package of its own
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg signed=
  [[ -e $keyring ]] && signed="[signed-by=$keyring]"
  echo "deb $signed $(mirror) sid main" >"$work/sid.list"
  take "promtool prometheus" -o Dir::Etc::SourceList="$work/sid.list" \
    -o Dir::Etc::SourceParts="$work/parts"
}

own() { # the suite that this machine runs; older, and good enough for what is asked here
  rm -rf "$work/tree" && take prometheus
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "prometheus: no apt-get here: install Prometheus, so that prometheus and promtool are on PATH" >&2
  exit 1
fi
newest || own || {
  echo "prometheus: Debian's packages could not be read: run apt-get update as root and try again," \
    "or install Prometheus, so that prometheus and promtool are on PATH" >&2
  exit 1
}
