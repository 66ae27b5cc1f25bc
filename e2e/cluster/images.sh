#!/usr/bin/env bash
# Give the container engine the image of a node, with every image that the cluster starts with inside.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
engine_answers || die "no container engine answers: run dockerd.sh start"

give_node_image() {
  local work
  docker image inspect "$image" >/dev/null 2>&1 && return
  use_go
  work=$(mktemp -d "$STORE/.making-node.XXXX")
  (cd "$work" && timed make_node)
  timed docker load --quiet --input "$work/node.tar"
  rm -rf "$work"
  # those of earlier content, but for what runs
  docker images --format '{{.Repository}}:{{.Tag}}' cloudstate-knative/node | { grep -vxF "$image" || true; } | xargs -r docker rmi 2>/dev/null || true
}

image=$(node_image)
locked give_node_image >&2
echo "$image"
