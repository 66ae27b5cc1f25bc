# What a cluster is made of, with nothing but Debian packages and Go modules. Sourced by lib.sh, which says what an artefact is.
# shellcheck shell=bash

export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOTOOLCHAIN=local

go_program() { # OUTPUT PACKAGE [LDFLAGS]
  go build -trimpath -ldflags "-s -w ${3:-}" -o "$1" "$2"
}

module_folder() { # MODULE@VERSION: where its source is, from the module proxy if need be
  (cd / && go mod download -json "$1") | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'
}

borrow_module() { # MODULE@VERSION [SED-EXPRESSION]: a go.mod here with the requirements that the module pins
  local source
  source=$(module_folder "$1")
  sed -e 's#^module .*#module local/borrowed#' ${2:+-e "$2"} "$source/go.mod" >go.mod
  cp --no-preserve=mode "$source/go.sum" go.sum
  go mod edit -require="$1"
}

published_program() { # MODULE VERSION PACKAGE OUTPUT: a program as its module pins it
  local output=$PWD/$4
  mkdir src && cd src
  go mod init local/published
  go mod edit -require="$1@$2"
  printf '//go:build tools\n\npackage tools\n\nimport _ "%s"\n' "$3" >tools.go
  go mod tidy
  go_program "$output" "$3"
  cd .. && rm -rf src
}

# --- Kubernetes: one static binary, every component by the name it is called with ---------------------------------------------------------
inputs_kubernetes() { echo "$KUBERNETES" && cat "$HERE/go/hyperkube/main.go"; }
make_kubernetes() {
  local package flags='' component staging="v0.${KUBERNETES#1.}"
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=v$KUBERNETES -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES")"
    flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=0000000000000000000000000000000000000000"
    flags+=" -X $package.buildDate=2026-01-01T00:00:00Z"
  done
  mkdir -p src/hyperkube && cp "$HERE/go/hyperkube/main.go" src/hyperkube/
  (
    cd src
    borrow_module "k8s.io/kubernetes@v$KUBERNETES" "s#=> ./staging/src/\(k8s.io/[^ ]*\)#=> \1 $staging#"
    go mod tidy
    go_program ../hyperkube ./hyperkube "$flags"
  )
  gcc -Os -static -DVERSION=v3.10.1 -o pause "$(module_folder "k8s.io/kubernetes@v$KUBERNETES")/build/pause/linux/pause.c"
  strip pause
  for component in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl; do ln -s hyperkube $component; done
  rm -rf src
}

inputs_kind() { echo "$KIND"; }
make_kind() { published_program sigs.k8s.io/kind "$KIND" sigs.k8s.io/kind kind; }

inputs_etcd() { echo "$ETCD"; }
make_etcd() { published_program go.etcd.io/etcd/server/v3 "$ETCD" go.etcd.io/etcd/server/v3 etcd; }

inputs_crictl() { echo "$CRICTL"; }
make_crictl() { published_program sigs.k8s.io/cri-tools "$CRICTL" sigs.k8s.io/cri-tools/cmd/crictl crictl; }

inputs_coredns() { echo "$COREDNS" && cat "$HERE/go/coredns/main.go"; }
make_coredns() {
  mkdir src && cp "$HERE/go/coredns/main.go" src/
  (
    cd src
    go mod init local/coredns
    go mod edit -require="github.com/coredns/coredns@$COREDNS"
    go mod tidy
    go_program ../coredns .
  )
  rm -rf src
}

# --- Knative Serving: its five programs, and its manifests as one file each for definitions and the rest ----------------------------------
KNATIVE_PROGRAMS='activator autoscaler controller queue webhook'

inputs_knative() { echo "$KNATIVE $KNATIVE_PROGRAMS"; }
make_knative() {
  local program
  mkdir src && cd src
  borrow_module "knative.dev/serving@v$KNATIVE"
  {
    printf '//go:build tools\n\npackage tools\n\n'
    for program in $KNATIVE_PROGRAMS; do echo "import _ \"knative.dev/serving/cmd/$program\""; done
  } >tools.go
  go mod tidy
  for program in $KNATIVE_PROGRAMS; do go_program "../$program" "knative.dev/serving/cmd/$program"; done
  cd .. && rm -rf src
}

inputs_knative_manifests() { echo "$KNATIVE"; }
make_knative_manifests() {
  local serving networking caching file target
  mkdir src
  (cd src && borrow_module "knative.dev/serving@v$KNATIVE")
  version() { awk -v module="$1" '$1 == module { print $1 "@" $2 }' src/go.mod; }
  serving=$(module_folder "knative.dev/serving@v$KNATIVE")
  networking=$(module_folder "$(version knative.dev/networking)")
  caching=$(module_folder "$(version knative.dev/caching)")
  rm -rf src
  # single components of one small cluster: no autoscaling of the control plane, no disruption budgets
  find "$serving/config/core" "$networking/config" "$caching/config" -name '*.yaml' | LC_ALL=C sort | while read -r file; do
    target=rest.yaml
    grep -q '^kind: CustomResourceDefinition' "$file" && target=crds.yaml
    grep -qE '^kind: (HorizontalPodAutoscaler|PodDisruptionBudget)' "$file" && continue
    { echo '---' && sed -E "s#ko://knative\.dev/serving/cmd/(\w+)#dev.local/knative/\1:$KNATIVE#" "$file"; } >>"$target"
  done
}
