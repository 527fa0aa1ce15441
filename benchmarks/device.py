"""What an accelerator makes of a training step: tokens a second, share of its matrix rate, memory, by size of model.

    python benchmarks/device.py --json device.jsonl              # one GPU, about five minutes on an H100
    python benchmarks/device.py --json device.jsonl --sizes smollm2-135m,qwen2.5-0.5b
    python benchmarks/device.py --tiny --device cpu              # the same code in seconds, to see that it runs

Models have the shapes of their namesakes and random weights, so that nothing is downloaded; all are in bfloat16 with a
prompt of 100 tokens. A case is a line of FILE as soon as it is done, and is not measured again. Sides alternate:

    plain       our step, kernels one by one
    compiled    our step with torch.compile
    peft        PEFT's prompt tuning with the model's own loss, SDPA attention

`tokens_per_s` are tokens of texts and answers; `computed_per_s` those that run through the blocks, prompts included
once. `share` is 4 N computed tokens over what a large matrix product reaches in the same dtype here (`device_tflops`):
two for the forward pass, two for the gradient of activations; weights have none. Memory is the allocator's peak.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from engine import causal_inputs
from measure import machine, synchronise
from peft import PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from workloads import even_tokens

from promptprior.backbone import Backbone, load
from promptprior.backbone.engine import as_backbone
from promptprior.backbone.forward.dispatch import chosen_route
from promptprior.backbone.frozen import freeze
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Batch, collate

Row = dict[str, Any]
LENGTH, WORDS = 100, 32_000
# hidden, feed-forward, layers, heads, key heads, vocabulary
SHAPES = {
    "tiny": (LlamaConfig, 64, 128, 2, 4, 2, 512),
    "smollm2-135m": (LlamaConfig, 576, 1536, 30, 9, 3, 49_152),
    "qwen2.5-0.5b": (Qwen2Config, 896, 4864, 24, 14, 2, 151_936),
    "qwen2.5-1.5b": (Qwen2Config, 1536, 8960, 28, 12, 2, 151_936),
    "llama-3-8b": (LlamaConfig, 4096, 14_336, 32, 32, 8, 128_256),
}
BATCHES = ((32, 32), (256, 32), (32, 512), (8, 2048))  # texts, tokens of each


def make_model(shape: str, device: str, layers: int | None = None) -> PreTrainedModel:
    """A random model of a shape in bfloat16, with all its layers or so many."""
    kind, hidden, wide, whole, heads, key_heads, vocabulary = SHAPES[shape]
    config = kind(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers or whole,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=hidden < 2000,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = (Qwen2ForCausalLM if kind is Qwen2Config else LlamaForCausalLM)(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


@cache
def backbone(shape: str, device: str) -> Backbone:
    """A random model of a shape, with our engine around it."""
    tokenizer = load("smollm2", device="cpu", check=False).frozen.tokenizer  # never read
    return as_backbone(freeze(make_model(shape, device), tokenizer, shape), max_tokens=10**9)


def make_batch(shape: str, texts: int, size: int) -> Batch:
    """So many texts of one size, of words that the shape has."""
    batch, words = collate(even_tokens(texts, size)), SHAPES[shape][-1]
    return replace(batch, text_ids=batch.text_ids % words, target_ids=batch.target_ids % words)


def own_step(base: Backbone, batch: Batch, prompt: Tensor, fused: bool) -> Callable[[], None]:
    """Leaves the gradient of the mean loss in `prompt.grad`."""
    if fused:
        base = replace(base, states=chosen_route(base.frozen, recompute=False, check=False, fused=True))
    share = (batch.target_lengths / batch.target_lengths.sum()).to(prompt.device)

    def step() -> None:
        prompt.grad = None
        (base.losses(prompt[None], batch) * share).sum().backward()

    return step


def peft_step(base: Backbone, batch: Batch) -> Callable[[], None]:
    """As PEFT's documentation has it."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    model = get_peft_model(base.frozen.model, config).to(base.frozen.device)
    inputs = {name: value.to(base.frozen.device) for name, value in causal_inputs(batch).items()}

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()

    return step


def measured(step: Callable[[], None], trials: int) -> Row:
    """Seconds of a step and the allocator's peak; what does not fit says so."""
    on_gpu = torch.cuda.is_available()
    try:
        for _ in range(2):
            step()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(trials):
            synchronise()
            start = time.perf_counter()
            step()
            synchronise()
            seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return {"seconds": None, "range": "does not fit", "peak_gb": None}
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    return {"seconds": median(seconds), "range": f"{min(seconds):.4g}-{max(seconds):.4g}", "peak_gb": peak}


@cache
def device_tflops(device: str, size: int) -> float:
    """What a large product in bfloat16 reaches here, in TFLOP/s."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronise()
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    synchronise()
    return 10 * 2 * size**3 / (time.perf_counter() - start) / 1e12


def rows_of(shape: str, texts: int, size: int, chosen: argparse.Namespace) -> list[Row]:
    """A line for each side of a case."""
    base, batch = backbone(shape, chosen.device), make_batch(shape, texts, size)
    prompt = (torch.randn(LENGTH, base.width) * base.scale).to(chosen.device).requires_grad_()
    read = int(batch.text_lengths.sum() + batch.target_lengths.sum())
    weights = sum(p.numel() for p in base.frozen.model.model.layers.parameters())
    peak_rate = device_tflops(chosen.device, 256 if chosen.tiny else 8192)
    sides = {"plain": lambda: own_step(base, batch, prompt, False), "peft": lambda: peft_step(base, batch)}
    if not chosen.no_compile:
        sides["compiled"] = lambda: own_step(base, batch, prompt, True)
    rows = []
    for side, make in sides.items():
        row: Row = {"case": f"{shape}/L{LENGTH}/R{texts}/T{size}", "side": side, **measured(make(), chosen.trials)}
        if row["seconds"]:
            computed = read + LENGTH * (texts if side == "peft" else 1)
            flops = 4 * weights * computed / row["seconds"] / 1e12
            row |= {"tokens_per_s": read / row["seconds"], "computed_per_s": computed / row["seconds"]}
            row |= {"share": flops / peak_rate, "device_tflops": peak_rate}
        rows.append(row)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def main() -> None:
    """Measure what is missing, then print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a line a row; cases that are there are not measured again")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", default=",".join(name for name in SHAPES if name != "tiny"))
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="one small model and batch")
    chosen = parser.parse_args()
    sizes, batches = (("tiny",), ((4, 8),)) if chosen.tiny else (chosen.sizes.split(","), BATCHES)
    rows = (
        [json.loads(line) for line in chosen.json.read_text().splitlines()]
        if chosen.json and chosen.json.exists()
        else []
    )
    done, about = {row["case"] for row in rows}, machine()
    for shape in sizes:
        for texts, size in batches:
            if f"{shape}/L{LENGTH}/R{texts}/T{size}" in done:
                continue
            for row in rows_of(shape, texts, size, chosen):
                rows.append(row | about)
                print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                if chosen.json:
                    with chosen.json.open("a") as out:
                        out.write(json.dumps(rows[-1]) + "\n")
        backbone.cache_clear()


if __name__ == "__main__":
    main()
