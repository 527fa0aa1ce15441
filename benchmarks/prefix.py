"""A training step of a prefix against one of an input prompt, and against PEFT's own prefix tuning: time and memory.

    python benchmarks/prefix.py [--json FILE] [--trials N] [--threads N] [--model smollm2] [--length 20] [--texts 8]

All three compute losses and gradients of the same texts with one answer each, in turn, in one process. Bar: a step of
the prefix takes no longer than one of the input prompt of the same length. Memory is what torch holds for the backward
pass: the bytes of all tensors that autograd saved, each storage counted once, without the model's own weights.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import Step, alternate, finish, options

from promptprior.backbone import Backbone, load
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.initial import start_prompt
from promptprior.parameterisations.prefix import prefix_form, prefix_start
from promptprior.tasks.sampling.batch import Batch, Tokens, collate


def made_batch(backbone: Backbone, texts: int, tokens: int) -> Batch:
    """Texts of 0.6 to 1.4 times so many tokens, with an answer of two."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(int(0.6 * tokens), int(1.4 * tokens), (texts,), generator=g).tolist()
    words = min(5000, len(backbone.frozen.vocabulary_embeddings))

    def some(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, words, (n,), generator=g).tolist())

    return collate([Tokens(some(n), (some(2),)) for n in lengths])


def peft_step(backbone: Backbone, length: int, batch: Batch) -> tuple[Step, Callable[[], torch.Tensor]]:
    """The same by PEFT: right-padded texts with their answers; the step, and its loss alone."""
    form = prefix_form(backbone, length)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        num_layers=form.depth,
        num_attention_heads=form.heads,
        token_dim=form.heads * form.head_width,
    )
    model = peft.get_peft_model(backbone.frozen.model, config, autocast_adapter_dtype=False)
    weight = model.prompt_encoder["default"].embedding.weight
    rows = [
        torch.cat([t[:n], u[:m]])
        for t, n, u, m in zip(batch.text_ids, batch.text_lengths, batch.target_ids, batch.target_lengths, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = torch.where(mask.bool(), ids, -100)
    for row, n in enumerate(batch.text_lengths.tolist()):
        labels[row, :n] = -100

    def loss() -> torch.Tensor:
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    return lambda: torch.autograd.grad(loss(), weight), loss


def saved_bytes(loss: Callable[[], torch.Tensor], backbone: Backbone) -> int:
    """Bytes that the backward pass of a loss needs."""
    weights = {p.untyped_storage().data_ptr() for p in backbone.frozen.model.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = loss()  # alive until all is counted, so that no address is used twice
    del kept
    return sum(held.values())


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = options(__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    backbone = load(chosen.model, chosen.dtype)
    batch = made_batch(backbone, chosen.texts, chosen.tokens)
    prompt = start_prompt(backbone, "vocabulary", chosen.length, torch.Generator().manual_seed(1))[None]
    form = prefix_form(backbone, chosen.length)
    sides: dict[str, tuple[Step, Callable[[], torch.Tensor]]] = {}
    starts = {
        "prompt": (Direct(chosen.length, backbone.width), prompt),
        "prefix": (form, prefix_start(form, backbone, prompt)),
    }
    for name, (read_by, start) in starts.items():
        objective = PromptObjective(backbone, read_by)

        def step(objective: PromptObjective = objective, start: torch.Tensor = start) -> object:
            return loss_and_gradient(objective, {"prompt": start}, batch)

        def loss(objective: PromptObjective = objective, start: torch.Tensor = start) -> torch.Tensor:
            return objective.losses({"prompt": start.detach().requires_grad_()}, batch).sum()

        sides[name] = (step, loss)
    sides["peft_prefix"] = peft_step(backbone, chosen.length, batch)
    times = dict(zip(sides, alternate([step for step, _ in sides.values()], chosen.trials), strict=True))
    line: dict[str, Any] = {"model": chosen.model, "length": chosen.length, "texts": chosen.texts}
    for name, (_, loss) in sides.items():
        line[f"{name}_s"] = times[name].median
        line[f"{name}_spread"] = times[name].spread
        line[f"{name}_bytes"] = saved_bytes(loss, backbone)
    line["prefix_to_prompt"] = line["prefix_s"] / line["prompt_s"]
    line["prefix_to_peft"] = line["prefix_s"] / line["peft_prefix_s"]
    finish([line], chosen.json)


if __name__ == "__main__":
    main()
