#!/usr/bin/env bash
# The same cluster where a container registry is reachable: kind's own node image, a Knative release with Kourier, images built with Docker.
# Called by up.sh. The project's own continuous integration has no registry and does not play this; KNATIVE_RELEASE picks another release.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
name=${NAME:-cloudstate}
release=${KNATIVE_RELEASE:-knative-v1.15.0}
folder=$CACHE/clusters/$name
export KUBECONFIG=$folder/kubeconfig

create() {
  kind delete cluster --name "$name"
  kind create cluster --name "$name" --config - <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking: {apiServerAddress: 127.0.0.1, apiServerPort: ${API_PORT:-16443}}
nodes:
  - role: control-plane
    extraPortMappings: [{containerPort: 31080, hostPort: ${INGRESS_PORT:-18080}, listenAddress: 127.0.0.1}]
YAML
}

knative() {
  local serving=https://github.com/knative/serving/releases/download/$release
  kubectl apply -f "$serving/serving-crds.yaml"
  kubectl wait --for=condition=Established --timeout=60s crd --all
  kubectl apply -f "$serving/serving-core.yaml"
  kubectl apply -f "https://github.com/knative-extensions/net-kourier/releases/download/$release/kourier.yaml"
  kubectl -n kourier-system patch service kourier --type=json --patch \
    '[{"op": "replace", "path": "/spec/type", "value": "NodePort"}, {"op": "add", "path": "/spec/ports/0/nodePort", "value": 31080}]'
  setting config-network '{"ingress-class": "kourier.ingress.networking.knative.dev"}'
  setting config-domain '{"kn.test": ""}'
  setting config-deployment '{"registries-skipping-tag-resolving": "dev.local,kind.local,ko.local"}'
  setting config-autoscaler '{"stable-window": "10s", "scale-to-zero-grace-period": "5s"}'
  kubectl -n knative-serving wait deployment --all --for=condition=Available --timeout=300s
  kubectl -n kourier-system wait deployment --all --for=condition=Available --timeout=300s
}
setting() { kubectl -n knative-serving patch configmap "$1" --type=merge --patch "{\"data\": $2}"; }

if [ "$(cat "$folder/whole" 2>/dev/null)" != "$release" ] || ! kubectl get --raw /readyz >/dev/null 2>&1; then
  rm -f "$folder/whole"
  {
    create
    knative
  } >&2
  need testapp
  "$HERE/load.sh" "$name" "${DIR[testapp]}/testapp.tar"
  echo "$release" >"$folder/whole"
fi
echo "$KUBECONFIG"
