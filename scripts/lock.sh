#!/bin/sh
# Writes the lock files, with hashes: `sh scripts/lock.sh` follows changed requirements and keeps what is locked;
# `sh scripts/lock.sh --upgrade` takes the newest versions the requirements and constraints.txt allow.
set -eu
cd "$(dirname "$0")/.."

tools=.venv-lock
test -x $tools/bin/uv || { ${PYTHON:-python3} -m venv $tools && $tools/bin/python -m pip install --quiet --require-hashes -r locks/upgrade.txt; }

# One version of everything for all Pythons and machines wherever one exists.
lock() {
    output=$1
    shift
    $tools/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
        --emit-build-options --custom-compile-command "make upgrade" --output-file "locks/$output.txt" "$@"
}

lock upgrade locks/upgrade.in "$@"
lock build locks/build.in "$@"
lock workbench pyproject.toml --extra engine --extra embedded --extra dev --extra s3 --extra postgres \
    -c constraints.txt -c locks/build.txt --no-emit-package torch "$@"
# The images hold the same versions of less.
lock web pyproject.toml --extra postgres --extra s3 -c locks/workbench.txt "$@"
lock engine pyproject.toml --extra engine --extra postgres --extra s3 -c constraints.txt -c locks/workbench.txt \
    --no-emit-package torch "$@"
# Without the project's settings, which leave out the CUDA libraries.
lock torch-gpu locks/torch.in --no-config -c constraints.txt -c locks/workbench.txt "$@"
# A torchvision built for another torch breaks the imports of all of them, and none needs it.
lock peers tests/formats/requirements.txt -c constraints.txt -c locks/build.txt \
    --no-emit-package torch --no-emit-package torchvision --no-emit-package torchaudio "$@"
lock peers-alone benchmarks/requirements.txt --no-deps "$@"
lock nnsight locks/nnsight.in -c constraints.txt -c locks/workbench.txt --no-emit-package torch "$@"
lock demo locks/demo.in --no-deps "$@"
