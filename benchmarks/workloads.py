"""Models and batches that the benchmarks measure."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration

from promptprior.backbone import Backbone, load, training_tokens
from promptprior.backbone.engine import as_backbone
from promptprior.backbone.frozen import freeze
from promptprior.tasks.loading.load import load_task
from promptprior.tasks.sampling.batch import Batch, Tokens, collate

DATA = Path(__file__).parents[2] / "shared" / "data"
WORDS = 30_000  # ids of random texts are below: every model here knows them


@dataclass(frozen=True)
class Case:
    """One workload: `text` is "even" (32 random tokens, 3 label tokens), "long" (2,048), or a task to draw texts of."""

    model: str
    dtype: str
    length: int
    rows: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.model}/{self.dtype}/L{self.length}/R{self.rows}/{self.text}"

    @classmethod
    def parse(cls, name: str) -> "Case":
        model, dtype, length, rows, text = name.split("/")
        return cls(model, dtype, int(length[1:]), int(rows[1:]), text)


@cache
def backbone(model: str, dtype: str) -> Backbone:
    """SmolLM2-135M, or a random model shaped like T5-small."""
    return load("smollm2", dtype, max_tokens=10**9) if model == "smollm2" else t5_small(dtype)


def t5_small(dtype: str) -> Backbone:
    """Random weights of T5-small's shape; its tokens are never read, so SmolLM2's tokenizer stands in."""
    torch.manual_seed(0)
    config = T5Config(dropout_rate=0.0, decoder_start_token_id=0, vocab_size=32128)
    model = T5ForConditionalGeneration(config).to(getattr(torch, dtype))
    return as_backbone(
        freeze(model, load("smollm2", check=False).frozen.tokenizer, "t5-small-shaped"), max_tokens=10**9
    )


def made_batch(case: Case) -> Batch:
    """The rows of a case, all reading prompt 0."""
    sizes = {"even": 32, "long": 2048}
    return collate(even_tokens(case.rows, sizes[case.text]) if case.text in sizes else drawn_tokens(case))


def even_tokens(rows: int, size: int = 32, choices: int = 1, answer: int = 3, seed: int = 0) -> list[Tokens]:
    """Random texts of one size, each with `choices` random answers."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, WORDS, (count,), generator=generator).tolist())

    return [Tokens(ids(size), tuple(ids(answer) for _ in range(choices))) for _ in range(rows)]


def drawn_tokens(case: Case) -> list[Tokens]:
    """The first rows of a task, tokenised; ids wrapped to what the model knows."""
    task = load_task(case.text, data=DATA)
    chosen = task.split("train")[: case.rows]
    tokens = training_tokens(load("smollm2", check=False), task, chosen)
    if case.model == "smollm2":
        return tokens
    return [Tokens(wrapped(t.text), tuple(map(wrapped, t.targets))) for t in tokens]


def wrapped(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Ids below WORDS."""
    return tuple(i % WORDS for i in ids)


def has_data() -> bool:
    """Whether the task folders are at hand."""
    return DATA.is_dir()
