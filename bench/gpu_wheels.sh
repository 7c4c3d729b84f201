#!/usr/bin/env bash
# The wheels that bench/gpu.sh needs on a machine without a network, of the versions in
# requirements/gpu.txt, in parts of at most 60 MB so that they can be carried one after the other.
#
#     bash bench/gpu_wheels.sh [PYTHON=3.12] [FOLDER=wheels] [PART …]
#
# Parts 1 and 2, the default, are for a machine that has torch, transformers, peft, accelerate,
# pyarrow, pandas, scipy and matplotlib. Part 3 brings pyarrow, part 4 pandas and matplotlib, part 5
# scipy. PYTHON is that machine's version. Compiled wheels are for Linux on x86-64.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-3.12}
folder=${2:-wheels}
shift $(($# < 2 ? $# : 2))
limit=60000000

declare -A names=(
    [1]="polars polars-runtime-32"
    [2]="bitsandbytes trl datasets dill multiprocess xxhash
        pydantic pydantic-core typing-inspection annotated-types typing-extensions
        hydra-core omegaconf antlr4-python3-runtime
        pytest pytest-timeout iniconfig pluggy"
    [3]="pyarrow"
    [4]="pandas matplotlib cycler fonttools kiwisolver pillow pyparsing python-dateutil six"
    [5]="scipy"
)
# Only the sdist of antlr4-python3-runtime 4.9.3 is published. It is pure Python: built here, the
# wheel is good everywhere.
built="antlr4-python3-runtime"
platforms=()
for glibc in 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64)

for part in "${@:-1 2}"; do
    for number in $part; do
        into=$folder/$number
        rm -rf "$into"
        mkdir -p "$into"
        pins=()
        for name in ${names[$number]}; do
            pin=$(grep -m 1 "^$name==" "$here/../requirements/gpu.txt" | cut -d' ' -f1)
            if [[ " $built " == *" $name "* ]]; then
                python3 -m pip wheel --quiet --no-deps --wheel-dir "$into" "$pin"
            else
                pins+=("$pin")
            fi
        done
        python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
            --python-version "$python" "${platforms[@]}" --dest "$into" "${pins[@]}"
        size=$(cat "$into"/*.whl | wc -c)
        count=$(find "$into" -name '*.whl' | wc -l)
        echo "$into: $count wheels, $((size / 1000000)) MB"
        if ((size > limit)); then
            echo "$into is larger than 60 MB: move a name to another part." >&2
            exit 1
        fi
    done
done
