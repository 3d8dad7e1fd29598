#!/usr/bin/env bash
# Builds a target of the Dockerfile with docker, podman or buildah, whichever is here, and for the
# exporter leaves its SBOM in build/sbom.cdx.json.
# Guarantee: every package in it has the hash that requirements/exporter.lock names; with
# BASES=debian the bases are made here of Debian's packages, and no registry of images is asked.
# Usage: [BUILDER=docker|podman|buildah] [BASES=debian] [TAG=NAME:TAG] scripts/image.sh \
#   [exporter|vllm|sbom] [OPTIONS OF THE BUILDER...], such as --build-arg BASE=NAME@sha256:...
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-exporter}
shift || true
version=$(sed -n 's/^__version__.*= *"\(.*\)"/\1/p' sidecar/__init__.py)
tag=${TAG:-ghcr.io/llm-internals/$([[ $target == vllm ]] && echo vllm || echo sidecar):$version}
folder=.cache/image

find_builder() {
  local name
  for name in docker podman buildah; do
    if command -v "$name" >/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "image: no docker, podman or buildah here: install one (as root, scripts/containers.sh)" >&2
  return 1
}

build() {
  case $builder in
    docker) DOCKER_BUILDKIT=1 docker build "$@" ;;
    # chroot: asks nothing of the machine's control groups. docker: OCI's format has no HEALTHCHECK.
    *) "$builder" build --isolation=chroot --format=docker --layers "$@" ;;
  esac
}

import() { # import NAME TARBALL: as an image of one layer
  printf 'FROM scratch\nADD %s /\nENV PATH=/usr/sbin:/usr/bin:/sbin:/bin\n' "$2" |
    build --tag "$1" --file - "$folder" >&2
}

builder=${BUILDER:-$(find_builder)}
arguments=(--build-arg "VERSION=$version")
arguments+=(--build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
# Who signs what pip fetches here may be known to this machine alone.
trusted=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
[[ ! -r $trusted ]] || arguments+=(--secret "id=ca,src=$trusted")
if [[ ${BASES:-} == debian ]]; then
  scripts/bases.sh "$folder"
  for base in build base; do
    import "localhost/llm-internals-$base:debian" "$base.tar"
  done
  arguments+=(--build-arg BUILD=localhost/llm-internals-build:debian)
  arguments+=(--build-arg BASE=localhost/llm-internals-base:debian)
fi

build --target "$target" --tag "$tag" "${arguments[@]}" "$@" .
if [[ $target == exporter ]]; then
  # Of the layers that were made just now; moved into place, for somebody may be reading it.
  mkdir -p build
  build --target sbom --output "$folder/sbom" "${arguments[@]}" "$@" .
  mv -f "$folder/sbom/sbom.cdx.json" build/
fi
echo "image: $tag"
