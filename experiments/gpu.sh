#!/usr/bin/env bash
# Everything that a GPU should say, in slices of under ten minutes each that can be stopped and run again:
#
#   bash experiments/gpu.sh               all of them, in order
#   bash experiments/gpu.sh equal sizes   some of them
#   GPU_OUT=folder                        where results go (default runs/gpu); a slice goes on where its file ends
#   DRY_RUN=1                             the same commands at tiny size, on whatever is there (CI runs this)
#
#   check   the driver, versions, and a training step on the device
#   equal   tests of the engine on the device: losses, gradients, Hessian products, states, against float64 on the CPU
#   methods every method of experiments/core.yaml on the device, with a tiny model
#   sizes   tokens a second, share of the matrix rate and memory, from 135 million to 8 billion weights, against PEFT
#   bars    the cases of docs/performance.md on the device: engine, meta-learning, many prompts, growth
#   study   the plan experiments/core.yaml by WORKERS processes (14), for STUDY_SECONDS (540): what most turns on first;
#           its cells resume
#
# On a machine without a network pack it first: see experiments/gpu_pack.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${GPU_OUT:-runs/gpu}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=$PWD/.venv/bin/python
first=constant,zero_shot,zero_shot_calibrated,in_context,linear_probe,knn,lora,prompt_tuning,multitask,bmtpt
first+=,bmtpt_chains,reptile,tpt,tpt_static,ridge_prior  # of the study
mkdir -p "$out"
out=$(cd "$out" && pwd)
dry=${DRY_RUN:-}
data=${TASK_DATA:-$PWD/../shared/data}
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
    "$python" -m pytest -q -p no:cacheprovider -n "${WORKERS:-14}" tests/backbone/test_device.py ${dry:+-k "llama or t5"}
}

methods() {
    "$python" - "$out/tiny" <<'PYTHON'
import sys, torch, transformers
from tests.backbone.tiny import config, tokenizer
torch.manual_seed(0)
llama = config("llama")
llama.max_position_embeddings = 4096
transformers.AutoModelForCausalLM.from_config(llama).save_pretrained(sys.argv[1])
tokenizer().save_pretrained(sys.argv[1])
PYTHON
    OMP_NUM_THREADS=1 "$python" -m promptprior compare experiments/core.yaml --data "$data" --output "$out/methods" \
        --methods "$first,multitask_long,prefix_tuning,spot,maml" --contrasts "[]" \
        --backbone "$out/tiny" --dtype float32 --engine processes --workers "${WORKERS:-14}" --seeds 13 --length 4 \
        --targets emotion,sms_spam --sources sst2,trec --steps 2 --source.steps 2 --source.batch-size 4 --test-limit 12
}

sizes() {
    (cd benchmarks && "$python" device.py --json "$out/sizes.jsonl" --trials 5 --no-compile ${dry:+--tiny --trials 1})
}

bars() {
    if [ -n "$dry" ]; then
        (cd benchmarks && "$python" many_prompts.py --help && "$python" engine.py --help) >/dev/null
        return
    fi
    for name in engine many_prompts scaling meta compiled; do
        [ -f "$out/$name.json" ] && continue
        case $name in
            engine) options=(--no-memory --against-float64 --trials 10) ;;
            compiled) options=(--no-memory --compile --trials 10 --case smollm2/bfloat16/L100/R32/even) ;;
            meta) options=(--no-memory --case smollm2/bfloat16/U8/R16/L20/K3 --trials 5) ;;
            *) options=(--dtype bfloat16 --trials 10) ;;
        esac
        (cd benchmarks && timeout 90 "$python" "${name/compiled/engine}.py" "${options[@]}" --json "$out/$name.json") \
            || echo "$name did not end; the next call tries it again"
    done
}

study() {
    options=(--output "$out/study" --data "$data" --engine processes --workers "${WORKERS:-14}")
    if [ -n "$dry" ]; then
        "$python" -m promptprior compare experiments/core.yaml "${options[@]}" --dry-run
        return
    fi
    deadline=$((SECONDS + ${STUDY_SECONDS:-540}))
    for chosen in "$first" ""; do  # then all; a stopped command has saved checkpoints
        [ $((deadline - SECONDS)) -gt 20 ] || break
        OMP_NUM_THREADS=1 timeout $((deadline - SECONDS)) "$python" -m promptprior compare experiments/core.yaml \
            "${options[@]}" ${chosen:+--methods "$chosen" --contrasts '[]'} || echo "stopped with code $?"
    done
}

for slice in ${@:-check equal methods sizes bars study}; do
    echo "== $slice"
    "$slice"
done
