#!/usr/bin/env bash
# The engine's unit tests. They are linked with the interpreter that is named (PYTHON, else python3); where nothing can be linked, this only says so.
set -euo pipefail
cd "$(dirname "$0")"
PYO3_PYTHON=$(command -v "${PYTHON:-python3}")
library() {
  "$PYO3_PYTHON" -c '
import pathlib, sysconfig
folder, name = pathlib.Path(sysconfig.get_config_var("LIBDIR")), sysconfig.get_config_var("LDLIBRARY")
print(folder if name.endswith(".so") and (folder / name).exists() else "")'
}
folder=$(library)
if ! command -v cargo >/dev/null; then
  echo "the engine is not tested: there is no cargo"
elif [ -z "$folder" ]; then
  echo "the engine is not tested: $PYO3_PYTHON has no shared library to link with (python3-dev has it)"
else
  export PYO3_PYTHON LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  cargo test --quiet --no-default-features
fi
