#!/usr/bin/env bash
# Installs the build and run-time requirements of pyproject.toml into the interpreter given.
# torch comes first and pinned, so that a CPU build is taken where one is offered (AUTODEPLOY_TORCH_INDEX names an extra index that has one).
set -euo pipefail
python=$1
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
if ! "$python" -c 'import torch' 2>/dev/null; then
  "$python" -m pip install -q ${AUTODEPLOY_TORCH_INDEX:+--extra-index-url "$AUTODEPLOY_TORCH_INDEX"} torch==2.13.0
fi
"$python" - > "$requirements" <<'PY'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))
print("\n".join(project["build-system"]["requires"] + project["project"]["dependencies"] + ["cmake>=3.24,<5", "ninja"]))
PY
"$python" -m pip install -q -r "$requirements"
