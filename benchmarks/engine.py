"""One training step, ours against PEFT prompt tuning with the model's own loss, alternating in one run.

python benchmarks/engine.py                      # the cases the bars name: about 5 minutes on 2 cores
python benchmarks/engine.py --full               # every model, dtype, prompt length, row count and text
python benchmarks/engine.py --case smollm2/float32/L100/R32/even --trials 5
python benchmarks/engine.py --compile            # also ours with torch.compile
python benchmarks/engine.py --against-float64    # also how far either side is from the same step in a wider dtype
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from measure import Step, alternate, finish, options, peak_bytes, product_seconds, report_peak
from workloads import Case, backbone, has_data, made_batch

from promptprior.backbone.forward.dispatch import chosen_route
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Batch

BARS = [
    *(Case("smollm2", dtype, 100, 32, "even") for dtype in ("bfloat16", "float32")),
    Case("smollm2", "float32", 20, 32, "sst2"),
    Case("smollm2", "float32", 100, 8, "boolq"),
    *(Case("t5small", dtype, 100, 32, "even") for dtype in ("bfloat16", "float32")),
]
FULL = [
    Case(model, dtype, length, rows, text)
    for model in ("smollm2", "t5small")
    for dtype in ("bfloat16", "float32")
    for length in (20, 100)
    for rows in (8, 32)
    for text in ("even", "sst2", "mnli", "boolq")
]


def ours(case: Case, prompt: Tensor, batch: Batch, fused: bool = False) -> Step:
    """A step that leaves the prompt's gradient in `prompt.grad`: the mean loss over all target tokens."""
    base = backbone(case.model, case.dtype)
    base = replace(base, states=chosen_route(base.frozen, recompute=False, check=False, fused=True)) if fused else base
    share = (batch.target_lengths / batch.target_lengths.sum()).to(base.frozen.device)

    def step() -> None:
        prompt.grad = None
        (base.losses(prompt[None], batch) * share).sum().backward()

    return step


def peft(case: Case, prompt: Tensor, batch: Batch) -> tuple[Step, Tensor]:
    """The same through PEFT, as its documentation does it, and the parameter that gets the gradient."""
    from peft import PromptTuningConfig, get_peft_model

    causal = case.model == "smollm2"
    config = PromptTuningConfig(
        task_type="CAUSAL_LM" if causal else "SEQ_2_SEQ_LM",
        num_virtual_tokens=case.length,
        num_transformer_submodules=1,
    )
    frozen = backbone(case.model, case.dtype).frozen
    model = get_peft_model(frozen.model, config).to(frozen.device)
    parameter = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        parameter.copy_(prompt)
    inputs = causal_inputs(batch) if causal else encoder_decoder_inputs(batch)
    inputs = {name: value.to(frozen.device) for name, value in inputs.items()}

    def step() -> None:
        parameter.grad = None
        model(**inputs).loss.backward()

    return step, parameter


def causal_inputs(batch: Batch) -> dict[str, Tensor]:
    """Text and target in one right-padded row; only the target is a label."""
    rows = [
        torch.cat([text[:n], target[:u]])
        for text, n, target, u in zip(
            batch.text_ids, batch.text_lengths, batch.target_ids, batch.target_lengths, strict=True
        )
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    place = torch.arange(ids.shape[1])
    ends = (batch.text_lengths + batch.target_lengths)[:, None]
    labels = ids.masked_fill((place < batch.text_lengths[:, None]) | (place >= ends), -100)
    return {"input_ids": ids, "attention_mask": (place < ends).long(), "labels": labels}


def encoder_decoder_inputs(batch: Batch) -> dict[str, Tensor]:
    """Text to the encoder, target to the decoder."""
    pads = torch.arange(batch.target_ids.shape[1]) >= batch.target_lengths[:, None]
    mask = torch.arange(batch.text_ids.shape[1]) < batch.text_lengths[:, None]
    labels = batch.target_ids.masked_fill(pads, -100)
    return {"input_ids": batch.text_ids, "attention_mask": mask.long(), "labels": labels}


def start_prompt(case: Case) -> Tensor:
    """A random prompt on the scale of the embeddings, in float32."""
    generator = torch.Generator().manual_seed(1)
    base = backbone(case.model, case.dtype)
    return (torch.randn(case.length, base.width, generator=generator) * base.scale).requires_grad_()


def exact_gradient(case: Case, prompt: Tensor, batch: Batch) -> Tensor:
    """The gradient of the same rounded weights and prompt in a wider dtype: float64 for float32, else float32."""
    base = backbone(case.model, case.dtype)
    wider = torch.float64 if case.dtype == "float32" else torch.float32
    wide = replace(base, frozen=replace(base.frozen, model=deepcopy(base.frozen.model).to(wider)))
    leaf = prompt.detach().to(base.frozen.dtype).to(wider).requires_grad_()
    share = batch.target_lengths / batch.target_lengths.sum()
    (wide.losses(leaf[None], batch) * share.to(wide.frozen.device)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def apart(gradient: Tensor, expected: Tensor) -> float:
    """The relative distance of two gradients."""
    gradient, expected = gradient.double().cpu(), expected.double().cpu()
    return float((gradient - expected).norm() / expected.norm())


def measured(case: Case, trials: int, with_memory: bool, with_exact: bool, with_compiled: bool) -> dict[str, Any]:
    """One line of the table."""
    prompt, batch = start_prompt(case), made_batch(case)
    our_step = ours(case, prompt, batch)
    peft_step, parameter = peft(case, prompt.detach(), batch)
    compiled_step = [ours(case, start_prompt(case), batch, fused=True)] if with_compiled else []
    mine, theirs, *compiled = alternate([our_step, peft_step, *compiled_step], trials)
    assert prompt.grad is not None
    assert parameter.grad is not None
    gradients = {"ours": prompt.grad.clone(), "peft": parameter.grad.clone()}
    products, flops = product_seconds(our_step)
    del peft_step, parameter
    row = {
        "case": case.name,
        "ours_s": mine.median,
        "peft_s": theirs.median,
        "speedup": theirs.median / mine.median,
        "grad_rel_error": apart(gradients["ours"], gradients["peft"]),
        "peak_memory_ratio": None,
        "gemm_fraction": products / mine.median,
        "ours_spread": mine.spread,
        "peft_spread": theirs.spread,
        "gflops_per_s": flops / mine.median / 1e9,
    }
    if with_exact:
        exact = exact_gradient(case, prompt, batch)
        row |= {f"{side}_vs_exact": apart(gradient, exact) for side, gradient in gradients.items()}
    if with_compiled:
        row |= {"compiled_s": compiled[0].median, "compiled_speedup": theirs.median / compiled[0].median}
    return row | (memory(case) if with_memory else {})


def memory(case: Case) -> dict[str, float]:
    """Peak memory of ours over PEFT's, each in a fresh process: of the whole process, and of the step alone."""
    mine, theirs = (peak_bytes(__file__, ["--case", case.name, "--peak", side]) for side in ("ours", "peft"))
    return {
        "peak_memory_ratio": mine[0] / theirs[0],
        "step_memory_ratio": (mine[0] - mine[1]) / (theirs[0] - theirs[1]),
    }


def main() -> None:
    """Measure the chosen cases."""
    parser = options(__doc__)
    parser.add_argument("--case", action="append", help="model/dtype/L<prompt>/R<rows>/<text>; may be repeated")
    parser.add_argument("--full", action="store_true", help="all combinations")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak-memory processes")
    parser.add_argument(
        "--against-float64",
        action="store_true",
        help="add ours_vs_exact and peft_vs_exact: distance from float64 (of bfloat16: from float32)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="add compiled_s and compiled_speedup: with torch.compile"
    )
    parser.add_argument("--peak", choices=("ours", "peft"), help="(internal) print one side's peak memory")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    cases = [Case.parse(name) for name in chosen.case] if chosen.case else FULL if chosen.full else BARS
    cases = [case for case in cases if case.text == "even" or has_data()]
    if chosen.peak:
        prompt, batch = start_prompt(cases[0]), made_batch(cases[0])
        side = ours(cases[0], prompt, batch) if chosen.peak == "ours" else peft(cases[0], prompt.detach(), batch)[0]
        report_peak(side)
        return
    rows = []
    for case in cases:
        rows.append(measured(case, chosen.trials, not chosen.no_memory, chosen.against_float64, chosen.compile))
        print(f"{case.name}: {rows[-1]['speedup']:.2f}x, gradient {rows[-1]['grad_rel_error']:.1e}", flush=True)
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
