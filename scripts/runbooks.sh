#!/usr/bin/env bash
# Puts the address of your copy of docs/runbooks into every alert, and into the tests of the alerts.
# The dashboards take it from there: `make runbooks` writes them anew as well.
# Usage: scripts/runbooks.sh https://wiki.example/runbooks [FOLDER]
set -euo pipefail

url=${1%/}
folder=${2:-dashboards}
if [[ ! $url =~ ^https?://[A-Za-z0-9./_~:%@-]+$ ]]; then
  echo "runbooks: '$url' is no address; try URL=https://wiki.example/runbooks" >&2
  exit 2
fi
sed -Ei "s#https?://[^ ]*/(LLMInternals[A-Za-z]+\.md)#$url/\1#" "$folder"/{rules,rules_test}.yml
