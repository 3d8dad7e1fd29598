#!/usr/bin/env bash
# Writes requirements/*.lock anew: what the image is built of, each package at the version that
# requirements/constraints.txt tests with, with the hashes of all its files.
# Guarantee: one lock for Linux on every architecture and Python from 3.11; no address stands in it.
# Usage: scripts/lock.sh
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.cache/lock
[[ -x $venv/bin/uv ]] || { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet uv==0.13.9; }

lock() { # lock NAME SOURCE...: with its dependencies
  local name=$1
  shift
  "$venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --constraint requirements/constraints.txt --no-header --no-annotate --no-emit-index-url \
    --output-file "requirements/$name.lock.new" "$@"
  {
    echo "# Written by make lock; with hashes, so that pip takes nothing else: --require-hashes."
    cat "requirements/$name.lock.new"
  } >"requirements/$name.lock"
  rm "requirements/$name.lock.new"
}

lock build requirements/build.in
lock exporter pyproject.toml --extra exporter
echo "pyarrow" >"$venv/recordings.in" # needs nothing else
lock recordings "$venv/recordings.in"
