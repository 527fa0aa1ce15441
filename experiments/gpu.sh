#!/usr/bin/env bash
# Everything that a GPU should say, in slices of under ten minutes each that can be stopped and run again:
#
#   bash experiments/gpu.sh               all slices, in order
#   bash experiments/gpu.sh equal sizes   some of them
#   GPU_OUT=folder                        where results go (default runs/gpu); a slice goes on where its file ends
#   DRY_RUN=1                             the same commands at tiny size, on whatever is there (CI runs this)
#
#   check   the driver, versions, and a training step on the device
#   equal   tests of the engine on the device: losses, gradients, Hessian products, states, against float64 on the CPU
#   sizes   tokens a second, share of the matrix rate and memory, from 135 million to 8 billion weights, against PEFT
#   bars    the cases of docs/performance.md on the device: engine, meta-learning, many prompts, growth
#   study   the plan experiments/core.yaml, as far as ten minutes take it (its cells resume)
#
# On a machine without a network pack it first: see experiments/gpu_pack.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${GPU_OUT:-runs/gpu}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=$PWD/.venv/bin/python
mkdir -p "$out"
out=$(cd "$out" && pwd)
dry=${DRY_RUN:-}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"

check() {
    command -v nvidia-smi >/dev/null && nvidia-smi || echo "no nvidia-smi here"
    "$python" - <<'PYTHON'
import torch, transformers
print("torch", torch.__version__, "transformers", transformers.__version__, "cuda", torch.version.cuda)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the slices run on the CPU")
PYTHON
}

equal() {
    "$python" -m pytest -q -p no:cacheprovider tests/backbone/test_device.py ${dry:+-k "llama or t5"}
}

sizes() {
    (cd benchmarks && "$python" device.py --json "$out/sizes.jsonl" ${dry:+--tiny --trials 1 --no-compile})
}

bars() {
    if [ -n "$dry" ]; then
        (cd benchmarks && "$python" many_prompts.py --help && "$python" engine.py --help) >/dev/null
        return
    fi
    for name in engine many_prompts scaling meta; do
        [ -f "$out/$name.json" ] && continue
        case $name in
            engine) options=(--no-memory --against-float64 --trials 10) ;;
            meta) options=(--no-memory --case smollm2/bfloat16/U8/R16/L20/K3) ;;
            *) options=(--dtype bfloat16 --trials 10) ;;
        esac
        (cd benchmarks && timeout 240 "$python" "$name.py" "${options[@]}" --json "$out/$name.json") \
            || echo "$name did not end; the next call tries it again"
    done
}

study() {
    options=(--output "$out/study")
    [ -n "$dry" ] && options+=(--dry-run)
    [ -d "${TASK_DATA:=../shared/data}" ] && options+=(--data "$TASK_DATA")
    timeout 540 "$python" -m promptprior compare experiments/core.yaml "${options[@]}" || [ $? = 124 ]
}

for slice in ${@:-check equal sizes bars study}; do
    echo "== $slice"
    "$slice"
done
