#!/usr/bin/env bash
# Writes the bill of materials of an image that buildah has, as sbom.py describes it. As root.
#
#   sbom.sh PYTHON FILE      PYTHON has the packages of sbom.txt
#
#   IMAGE        name of the image (default: whence:0.1.0)
set -euo pipefail
cd "$(dirname "$0")/../.."

image=${IMAGE:-whence:0.1.0}
container=$(buildah from --pull-never "$image")
trap 'buildah rm "$container" >/dev/null' EXIT
"$1" deploy/image/sbom.py "$(buildah mount "$container")" \
  --name "${image%:*}" --version "${image##*:}" --output "$2"
echo "$2: $(grep -c '"purl"' "$2") packages"
