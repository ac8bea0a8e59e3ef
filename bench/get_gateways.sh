#!/bin/sh
# Installs what bench/gateways.py compares with, each in an environment of its own below DIR:
#     sh bench/get_gateways.sh DIR
# Needs Python 3.11 with venv (PYTHON names another) and a package index; 1.3 GB. What is there stays; what cannot be
# installed here is left out, and said. Figures of other versions are other figures.
set -eu
mkdir -p "$1"
dir=$(cd "$1" && pwd)
python=${PYTHON:-python3}

get() { # the package $1, wanted as $2
    [ -e "$dir/$1/complete" ] && return
    rm -rf "${dir:?}/$1"
    if "$python" -m venv "$dir/$1" &&
        "$dir/$1/bin/python" -m pip --quiet --disable-pip-version-check install "$2"; then
        touch "$dir/$1/complete"
    else
        rm -rf "${dir:?}/$1"
        echo "left out: $2 cannot be installed here" >&2
    fi
}

get litellm 'litellm[proxy]==1.106.12'
get sglang-router sglang-router==0.3.2
get vllm-router vllm-router==0.1.17
get smg smg==1.13.0
get tensorzero tensorzero==2026.6.0
