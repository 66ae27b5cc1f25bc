#!/usr/bin/env bash
# A private container engine for machines that run none:  dockerd.sh start | stop
# Its data is in the cache, its state in /run/cloudstate-docker; a container engine that the machine already has is used as it is.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

forget_killed_engine() { # after a hard kill, containers and mounts of the old engine are still there and would make a new one wait or fail
  local process arguments
  for process in /proc/[0-9]*; do
    { arguments=$(tr '\0' ' ' <"$process/cmdline"); } 2>/dev/null || continue # it has just ended
    case $arguments in
      *"containerd-shim"*" -address $ENGINE_STATE/"*)
        xargs -r kill -9 <"$process/task/${process#/proc/}/children" 2>/dev/null || true # the first process of the container
        kill -9 "${process#/proc/}" 2>/dev/null || true
        ;;
      *"containerd --config $ENGINE_STATE/"*) kill -9 "${process#/proc/}" 2>/dev/null || true ;;
    esac
  done
  awk -v state="$ENGINE_STATE/" 'index($2, state) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l
  rm -rf "$ENGINE_STATE"
  # a dead node's network can linger with its address, which the next node gets too
  ip -o link show master br-kind 2>/dev/null | awk -F'[ :@]+' '{ print $2 }' | xargs -r -n1 ip link del || true
  ip link del br-kind 2>/dev/null || true
}

start() {
  if engine_answers; then return; fi
  forget_killed_engine
  sysctl -qw fs.inotify.max_user_instances=1024 2>/dev/null || say "fs.inotify.max_user_instances cannot be raised: several nodes may not start"
  mkdir -p "$ENGINE_STATE"
  setsid dockerd --host "unix://$ENGINE_STATE/docker.sock" --exec-root "$ENGINE_STATE" --pidfile "$ENGINE_STATE/dockerd.pid" \
    --data-root "$CACHE/docker" --bridge none --default-cgroupns-mode private --log-level warn \
    --add-runtime "without-sys-resource=$HERE/runc-without-sys-resource" --default-runtime without-sys-resource \
    >"$CACHE/dockerd.log" 2>&1 </dev/null {TERMINAL}>&- &
  export DOCKER_HOST=unix://$ENGINE_STATE/docker.sock
  wait_for 180 "a container engine (see $CACHE/dockerd.log)" docker info
  docker ps -aq --filter label=io.x-k8s.kind.cluster | xargs -r docker rm -f -v >/dev/null # nodes of a killed run
}

stop() {
  end_process "$ENGINE_STATE/dockerd.pid" "$ENGINE_STATE"
  forget_killed_engine
}

case ${1:-} in
  start) start ;;
  stop) stop ;; # also does no harm where none was started
  *) die "usage: dockerd.sh start | stop" ;;
esac
