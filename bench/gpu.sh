#!/usr/bin/env bash
# Checks and figures of a GPU in at most ten minutes, as JSON lines written one by one: a run that
# is cut short keeps what it has. It needs no network. Without a GPU it runs at toy size.
#
#     bash bench/gpu.sh [gpu.jsonl] [SECONDS=570]
#     bash bench/gpu.sh install     only installs: for a machine that takes the wheels in parts
#
# Wheels that bench/gpu_wheels.sh has put into wheels/ are installed first, into .gpu_site/, and go
# before the machine's own packages. `python3 docs/gpu.py gpu.jsonl` makes docs/gpu.md of the lines.
set -euo pipefail
file=$(realpath -m "${1:-gpu.jsonl}")
cd "$(dirname "$0")/.."
# dill, by which datasets hashes functions, takes a module for installed by the name of its folder,
# and would pickle any other by value, which fails for some of pyarrow's.
site=$PWD/.gpu_site/site-packages
python=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)

shopt -s nullglob
wheels=(wheels/*/*.whl)
if ((${#wheels[@]})); then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$site" "${wheels[@]}"
    echo "${#wheels[@]} wheels installed in $SECONDS s"
fi
[[ ${1:-} == install ]] && exit
[[ -d $site ]] && export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m bench.gpu.run "$file" $((${2:-570} - SECONDS))
