#!/usr/bin/env bash
# Usage: setup.sh DIR
#
# Makes in DIR what the comparison with llama.cpp needs, all of it throw-away: a Python environment (env), llama.cpp's
# source as the llama-cpp-python package on PyPI carries it (src), and llama-bench and llama-quantize built for this
# machine (bin/native). Where the CPU has AMX a second build does without (bin/no-amx), so that AVX-512 meets AVX-512.
# Also a small program that times candle (bin/candle-bench); if it cannot be built, candle is not measured.
# What is there already is not made again. Needs python3 with venv, a C++ compiler, PyPI, crates.io; about fifteen minutes
# on two cores.
set -euo pipefail

package=llama-cpp-python
version=0.3.36
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

if [ ! -x env/bin/ninja ]; then
    python3 -m venv env
    env/bin/pip install --quiet -r "$here/requirements.txt"
fi

if [ ! -d src ]; then
    env/bin/pip download --quiet --no-deps --no-binary "$package" --dest sdist "$package==$version"
    mkdir src.part
    tar xzf sdist/*.tar.gz --strip-components=1 -C src.part
    # GCC 12 drops most of the tile configuration, as nothing tells it that the instruction reads all of it; llama-bench
    # then crashes on CPUs with AMX.
    sed -i 's/^ *_tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory");\n&/' src.part/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
    mv src.part src
fi

build() {
    local name=$1
    shift
    [ -x "bin/$name/llama-bench" ] && return
    env/bin/cmake -S src/vendor/llama.cpp -B build -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/env/bin/ninja" -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF "$@" > cmake.log
    env/bin/cmake --build build --target llama-bench llama-quantize > build.log
    mkdir -p "bin/$name"
    cp build/bin/llama-bench build/bin/llama-quantize "bin/$name/"
}

build native -DGGML_NATIVE=ON
if grep -q amx_int8 /proc/cpuinfo 2> /dev/null; then
    # Every CPU with AMX has these; only the CPU backend is compiled again.
    features=(SSE42 AVX AVX2 BMI2 FMA F16C AVX_VNNI AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16)
    build no-amx -DGGML_NATIVE=OFF $(printf -- "-DGGML_%s=ON " "${features[@]}")
fi

if [ ! -x bin/candle-bench ]; then
    RUSTFLAGS="-C target-cpu=native" cargo build --quiet --release --locked --manifest-path "$here/candle/Cargo.toml" --target-dir candle-target \
        && cp candle-target/release/candle-bench bin/ || echo "candle could not be built and is not measured" >&2
fi
