#!/usr/bin/env bash
# Make everything that a cluster needs and the store lacks: about ten minutes on an idle machine when cold, nothing when warm. Needs root.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need kubernetes etcd coredns crictl kind knative knative_manifests rootfs ingress testapp
