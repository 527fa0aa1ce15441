"""Token rows, right-padded, with everything the engine must know about who reads what."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from promptprior.notation import Float, Int, Tensor


@dataclass(frozen=True)
class Tokens:
    """One tokenised text and the targets scored after it: one in training, all choices when ranking."""

    text: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.text) + sum(map(len, self.targets))


@dataclass(frozen=True)
class Batch:
    """X texts, R rows. Rows of one text stand together and in order (`text_index` never decreases).

    `copy_index` says which copy of the parameters a text trains (particle, episode, inner-loop copy),
    `task_index` which task it comes from; a parameterisation turns both into `prompt_index`, the prompt
    each text reads. `weight` multiplies a row in its copy's mean loss.
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

    @property
    def texts(self) -> int:
        """X."""
        return self.text_ids.shape[0]

    @property
    def rows(self) -> int:
        """R."""
        return self.target_ids.shape[0]

    @property
    def row_copy(self) -> Int[Tensor, " R"]:
        """The copy each row trains."""
        return self.copy_index[self.text_index]

    @property
    def row_task(self) -> Int[Tensor, " R"]:
        """The task each row comes from."""
        return self.task_index[self.text_index]

    def reading(self, prompt_index: Int[Tensor, " X"]) -> "Batch":
        """The same texts, each reading the prompt named here."""
        return replace(self, prompt_index=prompt_index)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def reordered(self, texts: Int[Tensor, " X"]) -> tuple["Batch", Int[Tensor, " R"]]:
        """The texts in another order, and the place that each row had."""
        position = torch.empty_like(texts)
        position[texts] = torch.arange(len(texts), device=texts.device)
        rows = position[self.text_index].argsort(stable=True)
        moved = Batch(
            text_ids=self.text_ids[texts],
            text_lengths=self.text_lengths[texts],
            target_ids=self.target_ids[rows],
            target_lengths=self.target_lengths[rows],
            text_index=position[self.text_index[rows]],
            copy_index=self.copy_index[texts],
            task_index=self.task_index[texts],
            prompt_index=self.prompt_index[texts],
            weight=self.weight[rows],
        )
        return moved, rows

    def tile(self, copies: int) -> "Batch":
        """Every text once per copy, copies outermost: what M particles read. All texts must be of copy 0."""
        texts = self.texts
        shift = torch.arange(copies, device=self.text_ids.device)
        return Batch(
            text_ids=self.text_ids.repeat(copies, 1),
            text_lengths=self.text_lengths.repeat(copies),
            target_ids=self.target_ids.repeat(copies, 1),
            target_lengths=self.target_lengths.repeat(copies),
            text_index=(self.text_index + shift[:, None] * texts).flatten(),
            copy_index=shift.repeat_interleave(texts),
            task_index=self.task_index.repeat(copies),
            prompt_index=shift.repeat_interleave(texts),
            weight=self.weight.repeat(copies),
        )

    def take(self, texts: Int[Tensor, " K"]) -> "Batch":
        """The batch of some texts (ascending indices) and their rows; padding is cut to what they need."""
        keep = torch.isin(self.text_index, texts)
        position = torch.full((self.texts,), -1, device=texts.device)
        position[texts] = torch.arange(len(texts), device=texts.device)
        text_lengths, target_lengths = self.text_lengths[texts], self.target_lengths[keep]
        return Batch(
            text_ids=self.text_ids[texts, : max_length(text_lengths)],
            text_lengths=text_lengths,
            target_ids=self.target_ids[keep, : max_length(target_lengths)],
            target_lengths=target_lengths,
            text_index=position[self.text_index[keep]],
            copy_index=self.copy_index[texts],
            task_index=self.task_index[texts],
            prompt_index=self.prompt_index[texts],
            weight=self.weight[keep],
        )


def max_length(lengths: Int[Tensor, " X"]) -> int:
    """The longest of some lengths; 0 for none."""
    return int(lengths.max()) if lengths.numel() else 0


def collate(items: Sequence[Tokens], copies: Sequence[int] | None = None, tasks: Sequence[int] | None = None) -> Batch:
    """Tokenised texts to a Batch, on the CPU. Copies and tasks default to 0; each text reads its copy's prompt.

    Raises ValueError for an empty batch or an empty target: there would be nothing to score.
    """
    if not items:
        raise ValueError("a batch needs at least one text; got none")
    targets = [target for item in items for target in item.targets]
    if not targets or not all(targets):
        raise ValueError("every text needs at least one target, and every target at least one token")
    text_index = [x for x, item in enumerate(items) for _ in item.targets]
    copy_index = torch.tensor(copies if copies is not None else [0] * len(items))
    return Batch(
        text_ids=right_padded([item.text for item in items]),
        text_lengths=torch.tensor([len(item.text) for item in items]),
        target_ids=right_padded(targets),
        target_lengths=torch.tensor([len(target) for target in targets]),
        text_index=torch.tensor(text_index),
        copy_index=copy_index,
        task_index=torch.tensor(tasks if tasks is not None else [0] * len(items)),
        prompt_index=copy_index,
        weight=torch.ones(len(targets)),
    )


def right_padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "R T"]:
    """Ragged ids as one rectangle, padded with 0 on the right; lengths, never ids, say what is padding."""
    width = max(map(len, rows))
    out = torch.zeros(len(rows), width, dtype=torch.long)
    for r, row in enumerate(rows):
        out[r, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out
