#!/usr/bin/env bash
# Build a llama-server executable from the llama.cpp that the source distribution of llama-cpp-python carries, to run
# the tests on an executable too:
#
#   make llama-server && LLAMA_SERVER_BIN=$PWD/build/llama-server/bin/llama-server make test
#
# Needs a C++ compiler; cmake and ninja are installed into build/. CPU only, without TLS. Takes about ten minutes on
# two cores. llama.cpp's own releases and packages are the better choice for everyday use.
set -eu
version=${LLAMA_CPP_PYTHON_VERSION:-0.3.36}
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/llama-server
python=$("$root/scripts/find_python.sh")

mkdir -p "$build"
[ -x "$build/tools/bin/cmake" ] || {
  "$python" -m venv "$build/tools"
  "$build/tools/bin/pip" install --quiet --disable-pip-version-check cmake ninja
}
export PATH="$build/tools/bin:$PATH"

archive=$build/llama_cpp_python-$version.tar.gz
[ -f "$archive" ] || "$build/tools/bin/pip" download --quiet --disable-pip-version-check --no-deps \
  --no-binary llama-cpp-python --dest "$build" "llama-cpp-python==$version"
source=$build/llama_cpp_python-$version/vendor/llama.cpp
[ -d "$source" ] || tar -xzf "$archive" -C "$build"

cmake -S "$source" -B "$build/work" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
  -DCMAKE_RUNTIME_OUTPUT_DIRECTORY="$build/bin" -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >"$build/configure.log"
cmake --build "$build/work" --target llama-server
"$build/bin/llama-server" --version
echo "built $build/bin/llama-server"
