"""P different prompts in one batch, against one prompt with the same rows and against P separate passes.

python benchmarks/many_prompts.py [--dtype float32] [--json FILE]
"""

from typing import Any

import torch
from measure import alternate, finish, options
from workloads import backbone, even_tokens

from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Batch, collate

ROWS, LENGTH = 32, 20


def measured(model: str, dtype: str, prompts: int, trials: int) -> dict[str, Any]:
    """One line: a training step on 32 rows of 32 tokens that read P prompts of 20."""
    base = backbone(model, dtype)
    items = even_tokens(ROWS)
    many, one = collate(items, copies=[x * prompts // ROWS for x in range(ROWS)]), collate(items)
    pieces = [many.take((many.copy_index == p).nonzero().flatten()) for p in range(prompts)]
    start = torch.randn(prompts, LENGTH, base.width) * base.scale

    def step(batches: list[Batch], prompt: Tensor) -> None:
        prompt = prompt.clone().requires_grad_()
        for batch in batches:
            base.losses(prompt, batch).sum().backward()

    together, alone, separate = alternate(
        [lambda: step([many], start), lambda: step([one], start[:1]), lambda: step(pieces, start)], trials
    )
    return {
        "case": f"{model}/{dtype}/P{prompts}/L{LENGTH}/R{ROWS}",
        "many_s": together.median,
        "one_s": alone.median,
        "ratio": together.median / alone.median,
        "separate_s": separate.median,
        "many_spread": together.spread,
        "one_spread": alone.spread,
    }


def main() -> None:
    """Measure all cases."""
    parser = options(__doc__)
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    cases = [("smollm2", 4), ("smollm2", 16), ("smollm2", 32), ("t5small", 16)]
    finish([measured(m, chosen.dtype, p, chosen.trials) for m, p in cases], chosen.json)


if __name__ == "__main__":
    main()
