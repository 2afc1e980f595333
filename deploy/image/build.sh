#!/usr/bin/env bash
# Builds deploy/Dockerfile with buildah: without a daemon, and also inside a container. As root.
#
#   IMAGE        name of the image (default: whence:0.1.0)
#   BASE         its base image (default: the one of the Dockerfile; where no registry can be reached,
#                Debian 12 by debootstrap, see base.sh)
#   TORCH_INDEX  package index that torch comes from (default: the one of the Dockerfile)
#   BUILD_FLAGS  further flags of `buildah build`, separated by spaces: volumes with the certificates or
#                the pip.conf of a network of one's own
set -euo pipefail
cd "$(dirname "$0")/../.."

image=${IMAGE:-whence:0.1.0}
base=${BASE:-}
command -v buildah >/dev/null || {
  echo "buildah is not installed: apt-get install --no-install-recommends buildah" >&2
  exit 1
}

if [ -z "$base" ]; then
  base=$(sed -n 's/^ARG BASE=//p' deploy/Dockerfile)
  if ! buildah pull --quiet "docker.io/library/$base" >/dev/null; then
    echo "$base cannot be pulled: Debian by debootstrap takes its place" >&2
    base=localhost/whence-base:bookworm
    buildah inspect --type image "$base" >/dev/null 2>&1 || deploy/image/base.sh "$base"
  fi
fi

arguments=(--build-arg "BASE=$base" --build-arg "VERSION=${image##*:}")
if revision=$(git rev-parse HEAD 2>/dev/null); then
  arguments+=(--build-arg "REVISION=$revision")
fi
if [ -n "${TORCH_INDEX:-}" ]; then arguments+=(--build-arg "TORCH_INDEX=$TORCH_INDEX"); fi

# The format of Docker, because that of OCI has no health check.
# shellcheck disable=SC2086 # flags are words
buildah build --isolation chroot --format docker --pull-never \
  --file deploy/Dockerfile --ignorefile deploy/Dockerfile.dockerignore \
  "${arguments[@]}" ${BUILD_FLAGS:-} --tag "$image" .
