#!/usr/bin/env bash
# Give images to every node of a cluster:  load.sh CLUSTER ARCHIVE… | load.sh CLUSTER product [IMAGE…]
# `product` builds what changed of the product's images; PYTHON_OF_IMAGES is an interpreter with pip and maturin (.venv/bin/python).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
engine_answers || die "no container engine answers: run up.sh"
mapfile -t nodes < <(docker ps --filter "label=io.x-k8s.kind.cluster=$1" --format '{{.Names}}')
((${#nodes[@]})) || die "no cluster is called $1"
if [ "${2:-}" = product ]; then
  cd "$HERE/../.."
  exec "${PYTHON_OF_IMAGES:-.venv/bin/python}" -m tools.images.product "${nodes[@]/#/--node=}" "${@:3}"
fi
for archive in "${@:2}"; do
  for node in "${nodes[@]}"; do docker exec -i "$node" ctr -n k8s.io images import - <"$archive" >/dev/null; done
done
