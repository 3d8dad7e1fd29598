#!/usr/bin/env bash
# Puts a Chromium into a folder, for the tests of the live page: the machine's own, or Debian's.
# Guarantee: a browser that the machine has is linked to and nothing is installed; one is installed
# only by apt-get and only by root, since a browser needs a hundred libraries beside it.
# Usage: scripts/chromium.sh FOLDER
set -euo pipefail

folder=$(mkdir -p "$1/bin" && cd "$1" && pwd)

find_browser() { # the first that runs: Ubuntu's chromium-browser is a stub that asks for snap
  local name path
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    path=$(command -v "$name") || continue
    if "$path" --version >/dev/null 2>&1; then
      echo "$path"
      return
    fi
  done
  return 1
}

install_browser() {
  ((EUID == 0)) && command -v apt-get >/dev/null || return
  apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      chromium fonts-dejavu-core
}

browser=$(find_browser) || { install_browser && browser=$(find_browser); } || {
  echo "chromium: no Chromium or Chrome here, and it could not be installed: as root, run" \
    "apt-get install chromium (on Ubuntu install google-chrome), then make tools again" >&2
  exit 1
}
[[ $browser == "$folder"/bin/* ]] || ln -sf "$browser" "$folder/bin/chromium"
"$browser" --version
