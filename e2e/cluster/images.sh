#!/usr/bin/env bash
# Give the container engine the image of a node, with every image that the cluster starts with inside.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
engine_answers || die "no container engine answers: run dockerd.sh start"
image=$(node_image)
if ! docker image inspect "$image" >/dev/null 2>&1; then
  need kubernetes etcd coredns crictl kind knative rootfs
  work=$(mktemp -d "$STORE/.making-node.XXXX")
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  timed make_node >&2
  timed docker load --quiet --input node.tar >&2
  docker images --format '{{.Repository}}:{{.Tag}}' cloudstate-knative/node | grep -vxF "$image" | xargs -r docker rmi >/dev/null 2>&1 || true
fi
echo "$image"
