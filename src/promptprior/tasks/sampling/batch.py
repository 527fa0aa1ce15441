"""Token rows, right-padded, with everything the engine must know about who reads what."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch

from promptprior.notation import Float, Int, Tensor

TEXT_FIELDS = ("text_ids", "text_lengths", "copy_index", "task_index", "prompt_index", "example_index", "unit_index")
ROW_FIELDS = ("target_ids", "target_lengths", "weight")


@dataclass(frozen=True)
class Tokens:
    """One tokenised text and the targets scored after it: one in training, all choices when ranking."""

    text: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return self.size

    @cached_property
    def size(self) -> int:
        """How many tokens there are: asked again at every step and look."""
        return len(self.text) + sum(self.target_lengths)

    @cached_property
    def target_lengths(self) -> tuple[int, ...]:
        """The tokens of each target."""
        return tuple(map(len, self.targets))


@dataclass(frozen=True)
class Batch:
    """X texts, R rows. Rows of one text stand together and in order (`text_index` never decreases).

    `copy_index` says which copy of the parameters a text trains (particle, episode, inner-loop copy), `task_index`
    which task it comes from; a parameterisation turns both into `prompt_index`, the prompt each text reads. `weight`
    multiplies a row in its copy's mean loss, which divides by the sum of a copy's weights, or by `weight_total`. Where
    weights correct the rates that rows were drawn at, their sum is random too, and dividing by it would undo them.

    In training, `example_index` is the place of each text in the pool it was drawn from (-1 in evaluation sets and
    where unknown), so that a parameterisation recognises its own example. `step` is the training step (else -1) and
    `seeds[c]` the seed of copy c's draw (else empty), so that randomness drawn from (seed, step) resumes exactly.

    Texts with one `unit_index` of one copy stand together and are never cut apart, neither for memory nor over
    processes: their losses depend on each other. -1 (the default) is a text by itself.
    """

    text_ids: Int[Tensor, "X T"]
    text_lengths: Int[Tensor, " X"]
    target_ids: Int[Tensor, "R U"]
    target_lengths: Int[Tensor, " R"]
    text_index: Int[Tensor, " R"]
    copy_index: Int[Tensor, " X"]
    task_index: Int[Tensor, " X"]
    prompt_index: Int[Tensor, " X"]
    weight: Float[Tensor, " R"]
    example_index: Int[Tensor, " X"] = None  # type: ignore[assignment]  # stands for all -1
    unit_index: Int[Tensor, " X"] = None  # type: ignore[assignment]  # stands for all -1
    step: int = -1
    seeds: tuple[int, ...] = ()
    weight_total: float | None = None

    def __post_init__(self) -> None:
        for name in ("example_index", "unit_index"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.full_like(self.copy_index, -1))

    @property
    def texts(self) -> int:
        """X, how many texts there are."""
        return self.text_ids.shape[0]

    @property
    def rows(self) -> int:
        """R, how many rows there are."""
        return self.target_ids.shape[0]

    @property
    def row_copy(self) -> Int[Tensor, " R"]:
        """The copy each row trains."""
        return self.copy_index[self.text_index]

    @property
    def row_task(self) -> Int[Tensor, " R"]:
        """The task each row comes from."""
        return self.task_index[self.text_index]

    @property
    def unit_sizes(self) -> list[int]:
        """How many texts each unit has, in order; 1 for a text by itself."""
        key = torch.stack([self.unit_index, self.copy_index])  # [2, X]
        is_new = (self.unit_index[1:] < 0) | (key[:, 1:] != key[:, :-1]).any(0)
        starts = [0, *(is_new.nonzero().flatten() + 1).tolist(), self.texts]
        return [end - start for start, end in pairwise(starts)]

    def reading(self, prompt_index: Int[Tensor, " X"]) -> "Batch":
        """The same texts, each reading the prompt named here."""
        return replace(self, prompt_index=prompt_index)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        tensors = (*TEXT_FIELDS, *ROW_FIELDS, "text_index")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def reordered(self, texts: Int[Tensor, " X"]) -> tuple["Batch", Int[Tensor, " R"]]:
        """The texts in another order, and the place that each row had."""
        position = torch.empty_like(texts)
        position[texts] = torch.arange(len(texts), device=texts.device)
        rows = position[self.text_index].argsort(stable=True)
        return self._select(texts, rows, position), rows

    def texts_only(self) -> "Batch":
        """The same texts, each by itself with a target of one token that is never read: for what reads texts alone."""
        one = torch.ones_like(self.text_lengths)  # [X]
        return replace(
            self,
            target_ids=torch.zeros_like(one)[:, None],
            target_lengths=one,
            text_index=torch.arange(self.texts, device=one.device),
            weight=self.weight.new_ones(self.texts),
            unit_index=torch.full_like(self.unit_index, -1),
        )

    def tile(self, copies: int) -> "Batch":
        """Every text once per copy, copies outermost: what M particles read. All texts must be of copy 0."""
        copy = torch.arange(copies, device=self.text_ids.device)
        tiled: dict[str, Any] = {name: torch.cat([getattr(self, name)] * copies) for name in TEXT_FIELDS + ROW_FIELDS}
        tiled["copy_index"] = tiled["prompt_index"] = copy.repeat_interleave(self.texts)  # [M X]
        text_index = (self.text_index + copy[:, None] * self.texts).flatten()  # [M R]
        return replace(self, **tiled, text_index=text_index, seeds=self.seeds[:1] * copies)

    def take(self, texts: Int[Tensor, " K"]) -> "Batch":
        """The batch of some texts (ascending indices) and their rows; padding is cut to what they need."""
        rows = torch.isin(self.text_index, texts)
        position = torch.full((self.texts,), -1, device=texts.device)
        position[texts] = torch.arange(len(texts), device=texts.device)
        lengths = self.text_lengths[texts], self.target_lengths[rows]  # [K], [rows of these texts]
        longest_text, longest_target = (int(length.max()) if length.numel() else 0 for length in lengths)
        cut = replace(self, text_ids=self.text_ids[:, :longest_text], target_ids=self.target_ids[:, :longest_target])
        return cut._select(texts, rows, position)

    def _select(self, texts: Tensor, rows: Tensor, position: Tensor) -> "Batch":
        # texts and rows index (or mask) what stays, in its new order; position[x] is the new place of text x
        chosen: dict[str, Any] = {name: getattr(self, name)[texts] for name in TEXT_FIELDS}
        chosen |= {name: getattr(self, name)[rows] for name in ROW_FIELDS}
        return replace(self, text_index=position[self.text_index[rows]], **chosen)


def collate(
    items: Sequence[Tokens],
    copies: Sequence[int] | None = None,
    tasks: Sequence[int] | None = None,
    examples: Sequence[int] | None = None,
    step: int = -1,
    seeds: Sequence[int] = (),
) -> Batch:
    """Tokenised texts to a Batch, on the CPU. Each text reads its copy's prompt.

    Copies and tasks default to 0, `examples` (places in the pool) to -1; see Batch. Raises ValueError for an empty
    batch or an empty target: there would be nothing to score.
    """
    if not items:
        raise ValueError("a batch needs at least one text; got none")
    targets = [target for item in items for target in item.targets]
    if not targets or not all(targets):
        raise ValueError("every text needs at least one target, and every target at least one token")
    padded = []  # with 0 on the right; lengths, never ids, say what is padding
    for rows in ([item.text for item in items], targets):
        widths = np.fromiter(map(len, rows), np.int64, len(rows))
        is_filled = np.arange(widths.max()) < widths[:, None]
        table = np.zeros(is_filled.shape, dtype=np.int64)  # many times faster than a tensor a row
        table[is_filled] = np.fromiter(chain.from_iterable(rows), np.int64, int(widths.sum()))
        padded.append(torch.from_numpy(table))
    copy_index = torch.tensor(copies if copies is not None else [0] * len(items))
    return Batch(
        text_ids=padded[0],
        text_lengths=torch.tensor([len(item.text) for item in items]),
        target_ids=padded[1],
        target_lengths=torch.tensor([len(target) for target in targets]),
        text_index=torch.tensor([x for x, item in enumerate(items) for _ in item.targets]),
        copy_index=copy_index,
        task_index=torch.tensor(tasks if tasks is not None else [0] * len(items)),
        prompt_index=copy_index,
        weight=torch.ones(len(targets)),
        example_index=torch.tensor(examples if examples is not None else [-1] * len(items)),
        step=step,
        seeds=tuple(seeds),
    )
