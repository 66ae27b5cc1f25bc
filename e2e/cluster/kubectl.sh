#!/usr/bin/env bash
# The kubectl that the cluster's Kubernetes was built with:  kubectl.sh ARGUMENT…
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need kubernetes >&2
exec "${DIR[kubernetes]}/kubectl" "$@"
