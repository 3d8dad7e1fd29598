#!/usr/bin/env bash
# Puts prometheus, promtool, alertmanager, amtool and docker-compose into a folder, from Debian's
# packages, without installing anything.
# Guarantee: needs no root, changes no file outside FOLDER and the cache, and starts no daemon.
# Usage: scripts/prometheus.sh FOLDER
set -euo pipefail

programs=(promtool prometheus alertmanager amtool docker-compose)
folder=$(mkdir -p "$1/bin" && cd "$1" && pwd)

found() { # found PROGRAM: where the machine has it already, by its own name or by Debian's
  command -v "$1" || command -v "prometheus-$1"
}

all_found() {
  local program
  for program in "${programs[@]}"; do
    found "$program" >/dev/null || return
  done
}

# Those that the machine has already will do.
if all_found; then
  for program in "${programs[@]}"; do
    path=$(found "$program")
    [[ $path == "$folder"/bin/* ]] || ln -sf "$path" "$folder/bin/$program"
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

take() { # take "PACKAGE..." APT-OPTION...: the programs out of these packages
  local -a packages
  read -ra packages <<<"$1"
  shift
  private_apt "$@" update &&
    (cd "$work" && rm -f ./*.deb && private_apt "$@" download "${packages[@]}") || return
  local deb program
  for deb in "$work"/*.deb; do
    dpkg-deb -x "$deb" "$work/tree" || return
  done
  bring_templates || return
  for program in "${programs[@]}"; do
    "$work/tree/usr/bin/$program" --version &&
      rm -f "$folder/bin/$program" &&
      install -D "$work/tree/usr/bin/$program" "$folder/bin/$program" || return
  done
}

# Debian's Alertmanager reads its default templates from a folder of the system, which only root
# could fill. The name of that folder is replaced in our copy by one just as long, of a file
# descriptor, which the command that starts it opens on a folder of ours.
bring_templates() {
  local bin=$work/tree/usr/bin share=usr/share/prometheus/alertmanager
  mkdir -p "$folder/share" && cp "$work/tree/$share"/*.tmpl "$folder/share" || return
  LC_ALL=C sed "s:/$share:/proc/self/fd/9/./././././././././:g" "$bin/prometheus-alertmanager" \
    >"$work/alertmanager" && install -D "$work/alertmanager" "$folder/share/alertmanager" || return
  cat >"$bin/alertmanager" <<END
#!/bin/sh
exec 9<"$folder/share" && exec "$folder/share/alertmanager" "\$@"
END
  chmod +x "$bin/alertmanager"
}

newest() { # Debian's rolling suite has Prometheus 3, and promtool in a package of its own
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg signed=
  [[ -e $keyring ]] && signed="[signed-by=$keyring]"
  echo "deb $signed $(mirror) sid main" >"$work/sid.list"
  take "promtool prometheus prometheus-alertmanager docker-compose" -o Dir::Etc::SourceList="$work/sid.list" \
    -o Dir::Etc::SourceParts="$work/parts"
}

own() { # the suite that this machine runs; older, and good enough for what is asked here
  programs=(promtool prometheus alertmanager amtool) # its Compose is of another age; tests say so
  rm -rf "$work/tree" && take "prometheus prometheus-alertmanager"
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "prometheus: no apt-get here: install Prometheus and Alertmanager, so that" \
    "${programs[*]} are on PATH" >&2
  exit 1
fi
newest || own || {
  echo "prometheus: Debian's packages could not be read: run apt-get update as root and try again," \
    "or install Prometheus and Alertmanager, so that ${programs[*]} are on PATH" >&2
  exit 1
}
