#!/usr/bin/env bash
# A kind cluster with Knative Serving and an ingress:  up.sh [WORKERS]; prints the path of its kubeconfig. bin/ beside that has kubectl.
# NAME=cloudstate, INGRESS_PORT=18080 and API_PORT=16443 on 127.0.0.1. One that runs and is whole is left as it is.
# Where kind, kubectl and a container registry are at hand, the published images do (published.sh); SOURCE=packed or published decides otherwise.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
name=${NAME:-cloudstate}
workers=${1:-0}
folder=$CACHE/clusters/$name
export KUBECONFIG=$folder/kubeconfig

kubectl() { "${DIR[kubernetes]}/kubectl" "$@"; }
kind() { "${DIR[kind]}/kind" "$@"; }

network() { # pods and nodes stay on this machine
  docker network inspect kind >/dev/null 2>&1 ||
    docker network create --driver bridge --opt com.docker.network.bridge.name=br-kind kind >/dev/null
  local rule=(DOCKER-USER -i br-kind ! -o br-kind -j REJECT)
  iptables -C "${rule[@]}" 2>/dev/null || iptables -I "${rule[@]}"
}

config() { # of kind; kubeadm's form for this version has maps for arguments
  local i
  cat <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking: {apiServerAddress: 127.0.0.1, apiServerPort: ${API_PORT:-16443}, podSubnet: 10.244.0.0/16}
kubeadmConfigPatches:
  - |
    kind: ClusterConfiguration
    etcd: {local: {extraArgs: {unsafe-no-fsync: "true"}}}
    controllerManager: {extraArgs: {leader-elect: "false"}}
    scheduler: {extraArgs: {leader-elect: "false"}}
nodes:
  - role: control-plane
    image: $(node_image)
    extraPortMappings: [{containerPort: 31080, hostPort: ${INGRESS_PORT:-18080}, listenAddress: 127.0.0.1}]
YAML
  for ((i = 0; i < workers; i++)); do echo "  - {role: worker, image: \"$(node_image)\"}"; done
}

nodes() {
  kind delete cluster --quiet --name "$name" # one that is not whole
  config >"$folder/kind.yaml"
  kind create cluster --quiet --name "$name" --config "$folder/kind.yaml"
}

kube_proxy_ready() { [ "$(kubectl -n kube-system get daemonset kube-proxy -o jsonpath='{.status.numberReady}')" = $((workers + 1)) ]; }
has_pod_range() { [ -n "$(pod_range "$1")" ]; }
pod_range() { kubectl get node "$1" -o jsonpath='{.spec.podCIDR}'; }

pod_network() { # static: a range per node, and a route to each other node
  local node other range address
  # kube-proxy first: a pod that dials the API server before its rules exist loses half a minute
  wait_for 300 "kube-proxy on every node" kube_proxy_ready
  for node in $(kind get nodes --name "$name"); do
    wait_for 300 "a pod range for $node" has_pod_range "$node"
    range=$(pod_range "$node")
    docker exec -i "$node" sh -c 'cat >/etc/cni/net.d/10-static.conflist' <<JSON
{"cniVersion": "0.3.1", "name": "static", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state",
    "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$range"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
    # a Service without endpoints refuses at once instead of sending packets into the void
    docker exec "$node" iptables -I FORWARD -s 10.244.0.0/16 -d 10.96.0.0/16 -j REJECT
    address=$(docker inspect --format '{{.NetworkSettings.Networks.kind.IPAddress}}' "$node")
    for other in $(kind get nodes --name "$name"); do
      [ "$other" = "$node" ] || docker exec "$other" ip route replace "$range" via "$address"
    done
  done
  kubectl wait node --all --for=condition=Ready --timeout=300s
}

names() { # CoreDNS answers for the cluster only, and forgets soon
  kubectl -n kube-system get configmap coredns -o yaml | sed -e '/forward \./,/}/d' -e 's/ttl 30/ttl 5/' -e 's/cache 30 {/cache 5 {/' |
    kubectl replace -f -
  kubectl -n kube-system scale deployment coredns --replicas=1
}

knative() {
  local deployment work=$folder/knative
  kubectl apply --server-side -f "${DIR[knative_manifests]}/crds.yaml"
  wait_for 300 "resource definitions that are served" kubectl wait --for=condition=Established --timeout=10s crd --all
  rm -rf "$work" && mkdir "$work"
  cp "${DIR[knative_manifests]}/rest.yaml" "$work/"
  cp "$HERE/manifests/knative.yaml" "$work/kustomization.yaml"
  kubectl apply --server-side -k "$work"
  kubectl apply --server-side -f "$HERE/manifests/ingress.yaml"
  for deployment in controller webhook autoscaler activator; do
    kubectl -n knative-serving rollout status "deployment/$deployment" --timeout=400s
  done
  kubectl -n knative-ingress rollout status deployment/ingress --timeout=400s
}

whole() { # everything of an earlier `up` was finished, with the same content, and answers
  [ "$(cat "$folder/whole" 2>/dev/null)" = "$(content)" ] && kubectl get --raw /readyz >/dev/null 2>&1
}
content() { echo "$(node_image) $workers $(key ingress) $(key testapp) $(cat "$HERE"/manifests/*.yaml | sha256sum)"; }

registry_answers() { command -v kind kubectl docker >/dev/null && timeout 5 docker manifest inspect kindest/node:latest >/dev/null 2>&1; }

mkdir -p "$folder"
if [ "${SOURCE:-}" = published ] || { [ -z "${SOURCE:-}" ] && registry_answers; }; then
  exec "$HERE/published.sh" "$@"
fi
need kubernetes kind knative_manifests ingress testapp
"$HERE/dockerd.sh" start
engine_answers
"$HERE/images.sh" >/dev/null
if ! whole; then
  rm -f "$folder/whole"
  trap '[ $? = 0 ] || { tail -n 20 "$folder/up.log" && say "see $folder/up.log"; } >&2' EXIT
  {
    timed network
    timed nodes
    timed pod_network
    timed names
    "$HERE/load.sh" "$name" "${DIR[ingress]}/ingress.tar" "${DIR[testapp]}/testapp.tar"
    timed knative
  } >"$folder/up.log" 2>&1
  mkdir -p "$folder/bin"
  ln -sf "${DIR[kubernetes]}/kubectl" "$folder/bin/"
  content >"$folder/whole"
fi
echo "$KUBECONFIG"
