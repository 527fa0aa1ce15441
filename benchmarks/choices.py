"""Ranking C answer choices: prompt and text computed once for all choices, against one padded row per choice.

python benchmarks/choices.py [--dtype float32] [--json FILE]
"""

from dataclasses import replace
from typing import Any

import torch
from measure import alternate, finish, options
from workloads import backbone, even_tokens

from promptprior.backbone.forward.causal import concatenated_states
from promptprior.backbone.forward.seq2seq import encoder_decoder_states
from promptprior.tasks.sampling.batch import collate

CASES = [("smollm2", choices, size) for choices in (2, 5, 20) for size in (32, 128)] + [("t5small", 5, 32)]


def measured(model: str, dtype: str, choices: int, size: int, trials: int) -> dict[str, Any]:
    """One line: 8 texts of `size` tokens, C answers of 3 tokens, prompt 20, no gradients."""
    base = backbone(model, dtype)
    padded = replace(base, states=concatenated_states if model == "smollm2" else encoder_decoder_states)
    batch = collate(even_tokens(8, size, choices))
    prompts = torch.randn(1, 20, base.width) * base.scale
    with torch.no_grad():
        apart = (base.losses(prompts, batch) - padded.losses(prompts, batch)).abs().max()
        ours, theirs = alternate([lambda b=b: b.losses(prompts, batch) for b in (base, padded)], trials)
    return {
        "case": f"{model}/{dtype}/C{choices}/T{size}",
        "ours_s": ours.median,
        "padded_s": theirs.median,
        "speedup": theirs.median / ours.median,
        "largest_difference": float(apart),
        "ours_spread": ours.spread,
        "padded_spread": theirs.spread,
    }


def main() -> None:
    """Measure all cases."""
    parser = options(__doc__)
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    finish([measured(m, chosen.dtype, c, t, chosen.trials) for m, c, t in CASES], chosen.json)


if __name__ == "__main__":
    main()
