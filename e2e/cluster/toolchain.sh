# The Go that builds the rest. Sourced by lib.sh.
# shellcheck shell=bash

GO=1.26.8    # fetched where the machine has none that is recent enough
GO_OLDEST=26 # the newest minor version that a module here asks for

export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOTOOLCHAIN=local

go() { # what fetches modules is tried again when it fails: Go itself does not
  type -P go >/dev/null || die "no Go at all: install golang-go, which fetches the one needed"
  case "$1 ${2:-}" in
    'mod download' | 'mod tidy') again command go "$@" >/dev/null && command go "$@" ;; # nothing of a try that failed is printed
    'vet '*) again command go list -deps -test . >/dev/null && command go "$@" ;; # the first that needs the modules of our own programs
    *) command go "$@" ;;
  esac
}

recent_enough() { # GO-PROGRAM
  local minor
  minor=$("$1" env GOVERSION 2>/dev/null | sed -nE 's/^go1\.([0-9]+).*/\1/p')
  ((${minor:-0} >= GO_OLDEST))
}

use_go() { # put such a Go first in PATH
  recent_enough go && return
  need toolchain
  PATH=${DIR[toolchain]}/bin:$PATH
}

inputs_toolchain() { echo "$GO"; }
make_toolchain() { # from the Go module proxy, by any Go that knows modules: only new ones would do this by themselves
  local source
  command -v go >/dev/null || die "no Go at all: install golang-go, which fetches the one needed"
  source=$(GOMODCACHE=$PWD/modules module_folder "golang.org/toolchain@v0.0.1-go$GO.linux-$(go env GOARCH)")
  chmod -R u+w modules
  mv "$source"/* .
  rm -rf modules
  chmod +x bin/* pkg/tool/*/*
}
