#!/usr/bin/env bash
# Delete the kind cluster (NAME=cloudstate), whatever state it is in, and end the private container engine if it holds no other.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
name=${NAME:-cloudstate}
rm -f "$CACHE/clusters/$name/whole"
if engine_answers; then
  docker ps -aq --filter "label=io.x-k8s.kind.cluster=$name" | xargs -r docker rm -f -v >/dev/null
  [ -n "$(docker ps -aq --filter label=io.x-k8s.kind.cluster)" ] || "$HERE/dockerd.sh" stop
fi
rm -rf "${CACHE:?}/clusters/$name"
