#!/usr/bin/env bash
# Load image archives into every node of a cluster:  load.sh CLUSTER ARCHIVE…
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
engine_answers || die "no container engine answers"
for node in $(docker ps -q --filter "label=io.x-k8s.kind.cluster=$1"); do
  for archive in "${@:2}"; do
    docker exec -i "$node" ctr -n k8s.io images import - <"$archive" >&2
  done
done
