#!/bin/sh
# lock.sh [--upgrade]: writes locks/, every package of each image with its version, from pyproject.toml (`make image-locks`).
# Versions stay as they are unless --upgrade is given or pyproject.toml asks for others. Needs uv; TORCH as in the Makefile.
# torch's CPU builds have an index of their own, which the shell may replace: UV_INDEX, or UV_FIND_LINKS for a folder.
set -eu
cd "$(dirname "$0")/../.."
locks=deploy/docker/locks
lock() {
    name="$1"
    shift
    uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate "$@" -o "$locks/$name.txt"
}
lock gateway pyproject.toml --extra tracing "$@"
lock signals pyproject.toml --extra tracing --extra redis -c "$locks/gateway.txt"
lock ingest pyproject.toml --extra tracing --extra kafka --extra batch -c "$locks/gateway.txt"
echo "$TORCH" | lock models-gpu pyproject.toml - --extra tracing --extra cpu -c "$locks/gateway.txt"
: "${UV_INDEX=https://download.pytorch.org/whl/cpu}"
export UV_INDEX
echo "$TORCH+cpu" | lock models-cpu pyproject.toml - --extra tracing --extra cpu -c "$locks/gateway.txt"
