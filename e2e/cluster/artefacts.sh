# What a cluster is made of, with nothing but Debian packages and Go modules. Sourced by lib.sh, which says what an artefact is.
# shellcheck shell=bash

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

# --- Programs of our own ------------------------------------------------------------------------------------------------------------------
own_program() { # NAME: a module of go/ that passes its tests, as an archive of its image
  local program
  program=$(mktemp)
  (cd "$HERE/go/$1" && go vet . && go test . && go_program "$program" .)
  pack "$1.tar" "dev.local/cloudstate-knative/$1:dev" --add "$program:/$1" --entrypoint "/$1" --user 65532
  rm "$program"
}

inputs_ingress() { cat "$HERE"/go/ingress/{go.mod,*.go} && declare -f own_program pack; }
make_ingress() { own_program ingress; }

inputs_testapp() { cat "$HERE"/go/testapp/{go.mod,*.go} && declare -f own_program pack; }
make_testapp() { own_program testapp; }

# --- The node: Debian with systemd, containerd and kind's own files, and every image that the cluster starts with --------------------------
NODE_PACKAGES='systemd systemd-sysv dbus conntrack iptables nftables iproute2 ethtool util-linux mount kmod libseccomp2 e2fsprogs bash
  ca-certificates curl jq procps containerd runc containernetworking-plugins findutils'

inputs_rootfs() { echo "$NODE_PACKAGES"; }
make_rootfs() {
  # shellcheck disable=SC2086
  mmdebstrap --quiet --variant=apt --include="$(tr -s ' \n' , <<<$NODE_PACKAGES | sed 's/,$//')" --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' bookworm root
  rm -rf root/var/cache/apt/* root/var/lib/apt/lists/*
}

inputs_node() {
  keys kubernetes etcd coredns crictl kind knative rootfs
  declare -f node_files node_images kube_proxy_root node_preload pack
  cat "$HERE/../../tools/images/"{oci,__main__}.py
}
make_node() { # node.tar, an archive for `docker load`; not kept in the store, since the engine keeps it
  local root=$PWD/root
  need kubernetes etcd coredns crictl kind knative rootfs
  cp -a --reflink=auto "${DIR[rootfs]}/root" root
  node_files
  mkdir images && node_images
  node_preload
  pack node.tar "$(node_image)" --add root:/ --env container=docker --entrypoint /usr/local/bin/entrypoint /sbin/init --stop-signal SIGRTMIN+3
  rm -rf root images
}
node_image() { echo "cloudstate-knative/node:v$KUBERNETES-$(key node)"; }

pack() { # OUT.tar NAME… --add …: one image of files
  local out
  out=$(realpath "$1")
  (
    for argument; do # folders and files relative to here
      [[ $argument == [!/]*:/* && -e ${argument%%:/*} ]] && argument=$PWD/$argument
      set -- "$@" "$argument"
      shift
    done
    cd "$HERE/../.." && python3 -m tools.images "$out" "${@:2}"
  )
}

node_files() { # what kind's own node image adds to Debian, and what this cluster needs besides
  local files unit program
  files=$(module_folder "sigs.k8s.io/kind@$KIND")/images/base/files
  cp -r --no-preserve=mode,ownership "$files/etc/." "$root/etc/"
  mkdir -p "$root"/kind/{bin,manifests} "$root"/opt/cni/bin "$root"/etc/{kubernetes/manifests,cni/net.d} "$root/etc/systemd/system/multi-user.target.wants"
  cp -r --no-preserve=mode,ownership "$files/kind/." "$root/kind/"
  chmod 755 "$root"/kind/bin/*
  install -m755 "$files/usr/local/bin/entrypoint" "$root/usr/local/bin/entrypoint"
  for program in containerd ctr containerd-shim-runc-v2; do ln -sf /usr/bin/$program "$root/usr/local/bin/$program"; done
  ln -sf /usr/sbin/runc "$root/usr/local/sbin/runc"
  for program in host-local loopback ptp portmap; do ln -sf /usr/lib/cni/$program "$root/opt/cni/bin/$program"; done

  # systemd starts what a node needs, and nothing that expects a machine of its own
  find "$root/lib/systemd/system/sysinit.target.wants/" -name systemd-tmpfiles-setup.service -delete
  rm -f "$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* "$root"/etc/systemd/system/*.wants/* \
    "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}*
  echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
  for unit in kubelet containerd undo-mount-hacks; do
    ln -sf "/etc/systemd/system/$unit.service" "$root/etc/systemd/system/multi-user.target.wants/$unit.service"
  done
  ln -sf /dev/null "$root/etc/systemd/system/systemd-binfmt.service"

  chroot "$root" ctr oci spec | chroot "$root" jq \
    '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' >"$root/etc/containerd/cri-base.json"
  # the pause image that this kubeadm names; and where CAP_SYS_RESOURCE is missing, runc may not lower oom_score_adj
  sed -i -e 's#registry.k8s.io/pause:3.10"#registry.k8s.io/pause:3.10.1"#' \
    -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$root/etc/containerd/config.toml"

  install -m755 "${DIR[kubernetes]}/hyperkube" "${DIR[crictl]}/crictl" "$root/usr/bin/"
  for program in kubelet kubeadm kubectl; do ln -sf hyperkube "$root/usr/bin/$program"; done
  printf 'v%s' "$KUBERNETES" >"$root/kind/version"
  cp "$HERE/manifests/node-network.yaml" "$root/kind/manifests/default-cni.yaml"
  cp "$HERE/manifests/node-storage.yaml" "$root/kind/manifests/default-storage.yaml"
}

node_images() { # an archive for every image, in images/
  local program registry=registry.k8s.io
  kube_proxy_root kubernetes
  pack images/kubernetes.tar $registry/kube-{apiserver,controller-manager,scheduler,proxy}:v$KUBERNETES --add kubernetes:/
  rm -rf kubernetes
  # the versions in these names are what kubeadm asks for
  pack images/pause.tar $registry/pause:3.10.1 --add "${DIR[kubernetes]}/pause:/pause" --entrypoint /pause --user 65535:65535
  pack images/etcd.tar $registry/etcd:3.6.5-0 --add "${DIR[etcd]}/etcd:/usr/local/bin/etcd"
  pack images/coredns.tar $registry/coredns/coredns:v1.12.1 --add "${DIR[coredns]}/coredns:/coredns" --entrypoint /coredns
  for program in $KNATIVE_PROGRAMS; do
    pack "images/$program.tar" "dev.local/knative/$program:$KNATIVE" --add "${DIR[knative]}/$program:/ko-app/$program" \
      --entrypoint "/ko-app/$program" --user 65532
  done
}

kube_proxy_root() { # FOLDER: the Kubernetes binary, and of the node's files iptables with its libraries, for kube-proxy
  local into=$1 name library
  mkdir -p "$into"/usr/{bin,sbin,lib64,local/bin,lib} "$into"/{etc,run,tmp}
  for name in lib lib64 sbin bin; do ln -s usr/$name "$into/$name"; done
  for name in xtables-nft-multi nft conntrack; do
    cp -a "$root/usr/sbin/$name" "$into/usr/sbin/"
    chroot "$root" ldd "/usr/sbin/$name"
  done >libraries
  # matches are loaded when a rule needs them: `statistic`, for a service with several endpoints, needs one more library
  (cd "$root" && printf '%s\0' usr/lib/*/xtables/*.so) | xargs -0 chroot "$root" ldd >>libraries
  grep -oE '/[^ :]+' libraries | grep -v /xtables/ | sort -u | while read -r library; do
    mkdir -p "$into${library%/*}"
    cp "$root$(chroot "$root" readlink -f "$library")" "$into$library"
  done
  (cd "$root" && cp -a --parents usr/lib/*/xtables "$OLDPWD/$into/")
  for name in {iptables,ip6tables}{,-save,-restore}; do ln -s xtables-nft-multi "$into/usr/sbin/$name"; done
  cp "${DIR[kubernetes]}/hyperkube" "$into/usr/local/bin/"
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do ln -s hyperkube "$into/usr/local/bin/$name"; done
}

node_preload() { # the archives into the node's containerd store, by a containerd of this machine that lives as long as this takes
  local archive socket daemon
  socket=$(mktemp -u /tmp/preload-XXXXXX.sock)
  containerd --config /dev/null --root "$root/var/lib/containerd" --state "$PWD/state" --address "$socket" --log-level error \
    >containerd.log 2>&1 {TERMINAL}>&- &
  daemon=$!
  wait_for 30 "a containerd to preload images with" ctr --address "$socket" version
  for archive in images/*.tar; do ctr --address "$socket" -n k8s.io images import --no-unpack "$archive" >/dev/null; done
  kill $daemon
  wait $daemon || true
  rm -rf state "$socket"* containerd.log
}
