"""What a step needs by size of model: weights, memory, seconds; and what fits into 24 GB.

    python benchmarks/sizes.py --json FILE                       # shapes up to 8 billion weights: about 15 minutes
    python benchmarks/sizes.py --shapes qwen2.5-0.5b --layers 2,4

Models have the shapes of their namesakes and random weights. Each is made with two numbers of layers, in a process of
its own; memory and seconds of a step (32 texts of 32 tokens, prompt 100) grow by the same with every layer, so two
points are a line, and the line gives the whole model. With --whole a model is also measured with all its layers, to see
how far the line is off. A step keeps the activations of one chunk of tokens; `at_once` is how many tokens a chunk may
have in what 24 GB leave beside the weights. More texts take more chunks, not more memory.

    plain       keeps what hand-written gradients need, in bfloat16
    recompute   keeps what enters each layer and computes the rest again
    8bit, 4bit  weights packed by bitsandbytes, on the route that quantised models take
"""

import json
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

import torch
from device import LENGTH, SHAPES, make_batch, make_model
from measure import finish, options, peak_of, seconds_of

from promptprior.backbone import Backbone, load
from promptprior.backbone.engine import as_backbone
from promptprior.backbone.frozen import freeze

SIDES = ("plain", "recompute", "8bit", "4bit")
CARD = 24e9  # bytes


def made(shape: str, layers: int, side: str) -> Backbone:
    """A random model with so many layers, as the side loads it."""
    model, tokenizer = make_model(shape, "cpu", layers), load("smollm2", check=False).frozen.tokenizer
    if side in ("plain", "recompute"):
        frozen = freeze(model, tokenizer, shape)
        return as_backbone(frozen, max_tokens=10**9, check=False, recompute=side == "recompute")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        return load(folder, "bfloat16", "cpu", quantize=side, check=False, max_tokens=10**9)


def measure_one(shape: str, layers: int, side: str, trials: int) -> dict[str, float]:
    """Bytes of the weights, bytes that a step adds, and its seconds."""
    base, batch = made(shape, layers, side), make_batch(shape, 32, 32)
    prompt = (torch.randn(1, LENGTH, base.width) * base.scale).requires_grad_()
    tensors = {t.data_ptr(): t for t in (*base.frozen.model.parameters(), *base.frozen.model.buffers())}

    def step() -> None:
        base.losses(prompt, batch).sum().backward()

    peak, before = peak_of(step)  # of the first one: later ones find its memory in the process
    return {
        "weights": sum(t.numel() * t.itemsize for t in tensors.values()),
        "step": peak - before,
        "seconds": median(seconds_of(step) for _ in range(trials)),
        "tokens": base.meter.tokens / (trials + 1),
    }


def in_a_process(shape: str, layers: int, side: str, trials: int) -> dict[str, float]:
    """`measure_one`, where nothing else has used memory."""
    command = [sys.executable, __file__, "--one", f"{shape},{layers},{side}", "--trials", str(trials)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def row_of(shape: str, side: str, chosen: Any) -> dict[str, Any]:
    """A line of the table: the line through two numbers of layers, at all of them."""
    few, more = (int(n) for n in chosen.layers.split(","))
    low, high = (in_a_process(shape, n, side, chosen.trials) for n in (few, more))
    layers = SHAPES[shape][3]

    def at(key: str, count: int) -> float:
        return low[key] + (high[key] - low[key]) / (more - few) * (count - few)

    whole = {key: at(key, layers) for key in ("weights", "step", "seconds")}
    per_token = (high["step"] - low["step"]) / (more - few) * layers / low["tokens"]
    row = {
        "shape": shape,
        "side": side,
        "weights_gb": whole["weights"] / 1e9,
        "step_gb": whole["step"] / 1e9,
        "step_s": whole["seconds"],
        "mb_per_token": per_token / 1e6,
        "at_once": max(0, int((CARD - whole["weights"] - at("step", 0)) / per_token)),
    }
    if chosen.whole and 2 * whole["weights"] < 12e9:
        real = in_a_process(shape, layers, side, chosen.trials)
        row |= {"whole_step_gb": real["step"] / 1e9, "whole_step_s": real["seconds"]}
    return row


def main() -> None:
    """Measure the chosen shapes."""
    parser = options(__doc__)
    parser.add_argument("--shapes", default=",".join(name for name in SHAPES if name != "tiny"))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--layers", default="2,6", help="the two numbers of layers")
    parser.add_argument("--whole", action="store_true", help="also measure with all layers what is small enough")
    parser.add_argument("--one", help="(internal) SHAPE,LAYERS,SIDE to measure in this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.one:
        shape, layers, side = chosen.one.split(",")
        print(json.dumps(measure_one(shape, int(layers), side, chosen.trials)))
        return
    rows = []
    for shape in chosen.shapes.split(","):
        for side in chosen.sides.split(","):
            rows.append(row_of(shape, side, chosen))
            print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    keys = dict.fromkeys(key for row in rows for key in row)
    finish([{key: row.get(key) for key in keys} for row in rows], chosen.json)


if __name__ == "__main__":
    main()
