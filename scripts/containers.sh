#!/usr/bin/env bash
# Sees to the programs that build and run the image in tests: buildah, podman, runc, mmdebstrap.
# Guarantee: what the machine has already is left as it is; the rest is installed only by apt-get
# and only by root, and that is said; no daemon is started and no registry is configured.
# Usage: scripts/containers.sh
set -euo pipefail

programs=(buildah podman runc mmdebstrap)

lacking() {
  local program
  for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || echo "$program"
  done
}

missing=$(lacking)
if [[ $missing ]]; then
  ((EUID == 0)) && command -v apt-get >/dev/null || {
    echo "containers: no" $missing "here: as root, run apt-get install ${programs[*]}" >&2
    exit 1
  }
  echo "containers: installing" $missing
  apt-get update -qq || true # lists that are old will mostly do
  # With what podman starts its containers by; it recommends more, for users without root.
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${programs[@]}" catatonit netavark
fi
for program in "${programs[@]}"; do
  "$program" --version | head -n 1
done
