# Sourced by the scripts of this folder: versions, places, and artefacts that are made once per content.
#
# An artefact NAME is made by `make_NAME`, in an empty folder. Its key is a hash of that function and of what `inputs_NAME` prints: versions,
# source files, keys of other artefacts. A folder appears in the store by one rename, so that a killed build leaves nothing half done.
# shellcheck shell=bash
set -euo pipefail

KUBERNETES=1.34.4
ETCD=v3.6.16
COREDNS=v1.14.3
KIND=v0.33.0
CRICTL=v1.34.0
KNATIVE=0.42.2 # Knative 1.15: the newest whose pinned dependencies all resolve from the Go module proxy

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/cloudstate-knative/cluster
STORE=$CACHE/store
mkdir -p "$STORE"
declare -A DIR # of every artefact that `need` has seen

exec {TERMINAL}>&2
say() { printf '%s\n' "$*" >&"$TERMINAL"; } # also from functions whose output goes to a log
die() {
  say "$*"
  exit 1
}

timed() { # COMMAND…: run it, tell how long it took
  local start=${EPOCHREALTIME/./}
  "$@"
  say "$(printf '%-24s %5d ms' "$1${2:+ $2}" $(((${EPOCHREALTIME/./} - start) / 1000)))"
}

again() { # COMMAND…: up to four times, with a pause: a download that fails once must not end a build
  local pause
  for pause in 5 20 60; do
    "$@" && return
    say "again in $pause s: $*"
    sleep "$pause"
  done
  "$@"
}

wait_for() { # SECONDS WHAT COMMAND…: until the command succeeds; its output is dropped
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "not in time: $what"
    sleep 0.1
  done
}

ours() { # PIDFILE WORD: whether the process of the file lives and has WORD in its command line (a pid may have been given to another)
  [ -s "$1" ] && { tr '\0' ' ' <"/proc/$(cat "$1")/cmdline"; } 2>/dev/null | grep -qF -- "$2"
}

end_process() { # PIDFILE WORD: end that process, hard after 20 s, and forget the file
  if ours "$1" "$2"; then
    local pid end=$((SECONDS + 20))
    pid=$(cat "$1")
    kill "$pid"
    while ours "$1" "$2" && ((SECONDS < end)); do sleep 0.05; done
    ours "$1" "$2" && kill -9 "$pid"
  fi
  rm -f "$1"
}

key() { # NAME
  { declare -f "make_$1" "inputs_$1" && "inputs_$1"; } | sha256sum | cut -c1-12
}

keys() { # NAME…
  local name
  for name; do echo "$name $(key "$name")"; done
}

make_artefact() { # NAME FOLDER
  local work
  [ "$1" = toolchain ] || use_go
  work=$(mktemp -d "$STORE/.making-$1.XXXX")
  chmod 755 "$work"
  (cd "$work" && "make_$1") >&2
  mv -T "$work" "$2"
  # what no checkout has used for two weeks goes
  find "$STORE" -mindepth 1 -maxdepth 1 -name "$1-*" -mtime +14 -exec rm -rf {} +
}

clear_killed() { # what killed builds left: a killed debootstrap leaves /proc and /sys mounted in there, which must not be removed
  local mounted
  for mounted in $(awk -v store="$STORE/.making-" 'index($2, store) == 1 { print $2 }' /proc/mounts | sort -r); do umount "$mounted"; done
  rm -rf --one-file-system "$STORE"/.making-*
}

locked() { # COMMAND…: one build at a time on a machine; a second one waits, then finds all made
  if [ -n "${LOCKED:-}" ]; then
    "$@"
  else
    exec 9>"$CACHE/lock"
    flock 9
    LOCKED=yes
    clear_killed
    "$@"
    unset LOCKED
    exec 9>&-
  fi
}

need() { locked need_all "$@"; } # NAME…: make what is missing and set DIR[NAME]
need_all() {
  local name
  for name; do
    DIR[$name]=$STORE/$name-$(key "$name")
    [ -d "${DIR[$name]}" ] || timed make_artefact "$name" "${DIR[$name]}"
    touch "${DIR[$name]}"
  done
}

ENGINE_STATE=/run/cloudstate-docker # short: sockets in it must not exceed 108 bytes

engine_answers() { # the machine's own container engine, or else the private one; sets DOCKER_HOST for the latter
  docker info >/dev/null 2>&1 && return
  [ -S "$ENGINE_STATE/docker.sock" ] || return
  export DOCKER_HOST=unix://$ENGINE_STATE/docker.sock
  docker info >/dev/null 2>&1
}

source "$HERE/toolchain.sh"
source "$HERE/artefacts.sh"
