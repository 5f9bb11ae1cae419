#!/usr/bin/env bash
# Installs the CUDA compiler into `.cuda` at the repository root and prints the folder that holds nvcc.
# It needs python3 with venv but no GPU. The compiler is enough to compile the kernels, inspect their SASS and regenerate
# the bindings.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.cuda

# All packages are of CUDA 13.0, except the two disassemblers, which were first published with 13.2 and read older binaries.
packages=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-nvrtc==13.0.88
  nvidia-cuda-cccl==13.0.85
  nvidia-cuda-cuobjdump==13.2.78
  nvidia-cuda-nvdisasm==13.2.78
  libclang==18.1.1
)

# The stamp file is written last: an interrupted installation starts again, a finished one is not repeated.
stamp=$venv/packages
if [[ ! -f $stamp || $(<"$stamp") != "${packages[*]}" ]]; then
  python3 -m venv "$venv" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
  echo "${packages[*]}" >"$stamp"
fi

site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$site/nvidia/cu13/bin"
