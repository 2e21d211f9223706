#!/bin/sh
# Installs lock files into an environment, and nothing but what they list:
#   sh scripts/install.sh PYTHON NAME …      (NAME: a file of locks/ without its .txt)
# The name `torch` stands for torch-cpu where there is no NVIDIA driver and pip finds that build, else for torch-gpu;
# TORCH=cpu or TORCH=gpu decides instead.
set -eu
folder=$(dirname "$0")/../locks
python=$1
shift

install() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --require-hashes \
        -r "$folder/$1.txt"
}

# pip itself and what builds the few packages that come as source
install build
for name in "$@"; do
    if [ "$name" != torch ]; then
        install "$name"
    elif [ "${TORCH:-}" = gpu ] || { [ -z "${TORCH:-}" ] && command -v nvidia-smi > /dev/null 2>&1; }; then
        install torch-gpu
    elif [ "${TORCH:-}" = cpu ]; then
        install torch-cpu
    elif ! install torch-cpu 2> /dev/null; then
        echo "No CPU build of torch for this Python and machine where pip looks; taking the public build (larger) …"
        install torch-gpu
    fi
done
