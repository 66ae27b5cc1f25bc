#!/usr/bin/env bash
# A real API server with Knative's and our resource definitions, and nothing else: etcd and kube-apiserver on loopback, no container engine.
#
#   envtest.sh start [FOLDER [API-PORT ETCD-PORT]]   start one instance (free ports unless told); prints the path of its kubeconfig
#   envtest.sh apiserver FOLDER                      start its API server again, after a test has killed the process in FOLDER/apiserver.pid
#   envtest.sh stop [FOLDER]                         end it and drop its data
#
# An instance lives in its folder; a second one needs another folder. `start` on one that serves only prints. The user is in system:masters;
# others are had by impersonation (--as). Service accounts exist as names only: no controller makes their tokens, and none collects garbage.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

free_ports() { # COUNT; from below those that outgoing connections take: one of these could have a port before the server does, or during its restart
  python3 -c '
import random, socket, sys
held = []
while len(held) < int(sys.argv[1]):
    try:
        held.append(socket.create_server(("127.0.0.1", random.randrange(10_000, 32_000))))
    except OSError:
        pass
print(*[one.getsockname()[1] for one in held])' "$1"
}

daemon() { # NAME COMMAND…: in the background, detached from this terminal; pid in NAME.pid, output in NAME.log
  local name=$1
  shift
  setsid "$@" >>"$name.log" 2>&1 </dev/null {TERMINAL}>&- &
  echo $! >"$name.pid"
}

write_files() { # API-PORT ETCD-PORT PEER-PORT
  printf '%s %s %s\n' "$@" >ports
  openssl genrsa -out accounts.key 2048 2>/dev/null
  openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
  openssl req -x509 -newkey rsa:2048 -nodes -keyout serving.key -out serving.crt -days 30 -subj /CN=envtest \
    -addext 'subjectAltName=IP:127.0.0.1,DNS:localhost' -addext 'keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign' 2>/dev/null
  echo 'envtest,admin,admin,system:masters' >tokens.csv
  cat >kubeconfig <<YAML
apiVersion: v1
kind: Config
current-context: envtest
contexts: [{name: envtest, context: {cluster: envtest, user: admin}}]
clusters: [{name: envtest, cluster: {server: "https://127.0.0.1:$1", certificate-authority-data: $(base64 -w0 serving.crt)}}]
users: [{name: admin, user: {token: envtest}}]
YAML
}

start_etcd() {
  read -r _ client peer <ports
  daemon etcd "${DIR[etcd]}/etcd" --data-dir "$FOLDER/etcd" --unsafe-no-fsync --log-level error \
    --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
    --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
    --initial-cluster "default=http://127.0.0.1:$peer"
}

start_apiserver() {
  read -r api client _ <ports
  daemon apiserver "${DIR[kubernetes]}/kube-apiserver" --etcd-servers="http://127.0.0.1:$client" \
    --bind-address=127.0.0.1 --secure-port="$api" --tls-cert-file="$FOLDER/serving.crt" --tls-private-key-file="$FOLDER/serving.key" \
    --service-account-issuer=https://envtest --service-account-key-file="$FOLDER/accounts.pub" \
    --service-account-signing-key-file="$FOLDER/accounts.key" --service-cluster-ip-range=10.97.0.0/16 \
    --authorization-mode=RBAC --token-auth-file="$FOLDER/tokens.csv" --disable-admission-plugins=ServiceAccount \
    --endpoint-reconciler-type=none --profiling=false
  kubectl() { "${DIR[kubernetes]}/kubectl" --kubeconfig "$FOLDER/kubeconfig" "$@"; }
  wait_for 240 "an API server that is ready (see $FOLDER/apiserver.log)" serving
}

serving() { ours apiserver.pid "$FOLDER" && [ "$(kubectl get --raw /readyz)" = ok ]; }

start() {
  need etcd kubernetes knative_manifests
  kubectl() { "${DIR[kubernetes]}/kubectl" --kubeconfig "$FOLDER/kubeconfig" "$@"; }
  if ! serving 2>/dev/null; then
    stop
    mkdir -p "$FOLDER" && cd "$FOLDER"
    # shellcheck disable=SC2046
    if [ -n "${2:-}" ]; then write_files "$1" "$2" $(free_ports 1); else write_files $(free_ports 3); fi
    start_etcd
    start_apiserver
    kubectl create -f "${DIR[knative_manifests]}/crds.yaml" >/dev/null
    kubectl create -k "$HERE/../../deploy/knative/base/crds" >/dev/null
    # again when it fails: a definition that has no conditions yet counts as an error
    wait_for 240 "resource definitions that are served" kubectl wait --for=condition=Established --timeout=10s crd --all
  fi
  echo "$FOLDER/kubeconfig"
}

stop() {
  end_process "$FOLDER/apiserver.pid" "$FOLDER"
  end_process "$FOLDER/etcd.pid" "$FOLDER"
  [ ! -e "$FOLDER/ports" ] || rm -rf "$FOLDER" # only what was made here
}

command=${1:-}
FOLDER=$(realpath -m "${2:-$CACHE/envtest}")
cd "$FOLDER" 2>/dev/null || true
case $command in
  start) start "${@:3}" ;;
  apiserver) need kubernetes && start_apiserver ;;
  stop) stop ;;
  *) die "usage: envtest.sh start [FOLDER [API-PORT ETCD-PORT]] | apiserver FOLDER | stop [FOLDER]" ;;
esac
