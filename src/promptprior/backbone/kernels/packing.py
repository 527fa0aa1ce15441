"""Where every token of a packed batch stands.

A packed batch is ONE sequence of N tokens without padding:

    [ P prompts of L ][ bodies: the texts, ragged ][ suffixes: answers of texts that have several rows ]

Position-wise layers run on it as it is. Attention cuts it into three *stages* of equal-sized blocks:

    prompts   [P, L]        each prompt sees itself
    bodies    [G, n, T]     each text sees its prompt and itself; the n texts of a group share one prompt
    suffixes  [G, n, C, U]  each answer sees its prompt, its text and itself

Blocks that share keys stand next to each other, so nothing is ever copied to be shared.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch

from promptprior.notation import Bool, Int, Tensor
from promptprior.tasks.sampling.batch import Batch

GROUP_WASTE = 1.25  # how much larger than the texts a padded [prompts, texts] grid may be


@dataclass(frozen=True)
class Stage:
    """B blocks of S slots. `slots` names the token in each slot (pads name token 0), `places` the slot of each
    token; both count from the stage's own first token."""

    positions: Int[Tensor, "B S"]
    slots: Int[Tensor, " B*S"]
    places: Int[Tensor, " n"]
    filled: Bool[Tensor, " B*S"]
    blocks: int
    size: int

    @property
    def tokens(self) -> int:
        """How many tokens the stage holds."""
        return self.places.shape[0]

    @property
    def is_full(self) -> bool:
        """Whether there are no pads and tokens stand in slot order: packing is then a view."""
        return self.tokens == self.blocks * self.size

    def to(self, device: torch.device) -> "Stage":
        """The same stage on another device."""
        return Stage(*(moved(getattr(self, f.name), device) for f in fields(self)))


@dataclass(frozen=True)
class Layout:
    """A packed batch: what to embed, where it stands, who sees whom, and which states predict targets.

    `group_prompt` names the prompt each of the G groups reads, `None` when group g reads prompt g. `predicts` are the
    flat positions of the states that predict `targets` (all target tokens, row after row).
    """

    used_prompts: Int[Tensor, " P"]
    length: int
    token_ids: Int[Tensor, " n"]
    position_ids: Int[Tensor, " N"]
    bodies: Stage
    text_lengths: Int[Tensor, " B"]
    suffixes: Stage | None
    groups: int
    group_prompt: Int[Tensor, " G"] | None
    predicts: Int[Tensor, " V"]
    targets: Int[Tensor, " V"]
    has_gaps: bool

    def to(self, device: torch.device) -> "Layout":
        """The same layout on another device."""
        return Layout(*(moved(getattr(self, f.name), device) for f in fields(self)))

    @property
    def prompt_tokens(self) -> int:
        """P * L."""
        return len(self.used_prompts) * self.length


def moved(value: Any, device: torch.device) -> Any:
    """A field on another device, where that means anything."""
    return value.to(device) if isinstance(value, Tensor | Stage) else value


def plan(batch: Batch, length: int) -> Layout:
    """The layout of a batch whose prompts are `length` tokens long. Computed on the CPU."""
    used, prompt_index = torch.unique(batch.prompt_index.cpu(), return_inverse=True)
    grid, group_prompt = text_grid(prompt_index, len(used))
    texts_per_group = grid.shape[1]
    order = grid[grid >= 0]  # texts in the order they are packed
    merged = batch.rows == batch.texts  # one row a text: its answer simply continues the text
    answers = (batch.target_lengths - 1).clamp(min=0)
    body_lengths = batch.text_lengths + (answers if merged else 0)

    bodies, body_start = ragged_stage(grid.flatten(), body_lengths, length)
    first_body = len(used) * length
    token_ids = [body_ids(batch, order, merged)]
    positions = [torch.arange(length).repeat(len(used)), length + ragged_arange(body_lengths[order])]
    suffixes, suffix_start = None, torch.zeros(batch.rows, dtype=torch.long)
    if not merged and int(answers.max()) > 0:
        row_grid = rows_of(grid.flatten(), batch.text_index)
        rows = row_grid[row_grid >= 0]
        offset = length + batch.text_lengths[batch.text_index]
        suffixes, suffix_start = ragged_stage(row_grid.flatten(), answers, offset)
        token_ids.append(ragged_take(batch.target_ids[rows], answers[rows]))
        positions.append(ragged_arange(answers[rows]) + offset[rows].repeat_interleave(answers[rows]))

    return Layout(
        used_prompts=used,
        length=length,
        token_ids=torch.cat(token_ids),
        position_ids=torch.cat(positions),
        bodies=bodies,
        text_lengths=torch.where(grid.flatten() >= 0, batch.text_lengths[grid.flatten()], 0),
        suffixes=suffixes,
        groups=grid.shape[0],
        group_prompt=group_prompt,
        predicts=predicting_states(
            batch,
            prompt_index,
            length,
            merged,
            first_body + body_start,
            first_body + bodies.tokens + suffix_start,
        ),
        targets=ragged_take(batch.target_ids, batch.target_lengths),
        has_gaps=texts_per_group * grid.shape[0] != batch.texts,
    )


def text_grid(prompt_index: Int[Tensor, " X"], prompts: int) -> tuple[Int[Tensor, "G n"], Int[Tensor, " G"] | None]:
    """Texts arranged so that each row of the grid reads one prompt; -1 where a place is empty.

    One grid row per prompt when that wastes little; otherwise one per text, and the second value says which prompt
    each reads.
    """
    order = torch.argsort(prompt_index, stable=True)
    counts = torch.bincount(prompt_index, minlength=prompts)
    most = int(counts.max())
    if prompts * most > GROUP_WASTE * len(prompt_index):
        return order[:, None], prompt_index[order]
    grid = torch.full((prompts, most), -1)
    grid[torch.arange(most) < counts[:, None]] = order
    return grid, None


def rows_of(texts: Int[Tensor, " B"], text_index: Int[Tensor, " R"]) -> Int[Tensor, "B C"]:
    """The rows of each text, -1 where it has fewer than the most; a missing text (-1) has none."""
    counts = torch.bincount(text_index)
    first = counts.cumsum(0) - counts
    places = torch.arange(int(counts.max()))
    grid = first[texts][:, None] + places
    missing = (places >= counts[texts][:, None]) | (texts < 0)[:, None]
    return grid.masked_fill(missing, -1)


def ragged_stage(
    owners: Int[Tensor, " B"], lengths: Int[Tensor, " owners"], first_position: Int[Tensor, " owners"] | int
) -> tuple[Stage, Int[Tensor, " owners"]]:
    """The stage whose block b holds the tokens of `owners[b]` (-1: an empty block), and where each owner starts."""
    present = owners[owners >= 0]
    block_lengths = torch.where(owners >= 0, lengths[owners], 0)
    size = max(int(block_lengths.max()), 1)
    filled = torch.arange(size) < block_lengths[:, None]
    slots = torch.zeros_like(filled, dtype=torch.long)
    slots[filled] = torch.arange(int(block_lengths.sum()))
    starts = torch.zeros_like(lengths)
    starts[present] = block_lengths[owners >= 0].cumsum(0) - block_lengths[owners >= 0]
    offset = torch.as_tensor(first_position).expand(len(lengths))[owners]
    stage = Stage(
        positions=offset[:, None] + torch.arange(size),
        slots=slots.flatten(),
        places=filled.flatten().nonzero().flatten(),
        filled=filled.flatten(),
        blocks=len(owners),
        size=size,
    )
    return stage, starts


def body_ids(batch: Batch, order: Int[Tensor, " X"], merged: bool) -> Int[Tensor, " n"]:
    """The token ids of the bodies, in packed order: texts, continued by their answers when merged."""
    ids, lengths = batch.text_ids[order], batch.text_lengths[order]
    if not merged:
        return ragged_take(ids, lengths)
    answers = batch.target_lengths[order] - 1
    both = torch.cat([ids, batch.target_ids[order]], dim=1)
    place = torch.arange(both.shape[1])
    keep_text = place < lengths[:, None]
    answer_place = place - ids.shape[1]
    keep_answer = (answer_place >= 0) & (answer_place < answers[:, None])
    return both[keep_text | keep_answer]


def predicting_states(
    batch: Batch,
    prompt_index: Int[Tensor, " X"],
    length: int,
    merged: bool,
    body_start: Int[Tensor, " X"],
    suffix_start: Int[Tensor, " R"],
) -> Int[Tensor, " V"]:
    """The flat position of the state that predicts each target token, row after row."""
    text = batch.text_index
    after_prompt = (prompt_index[text] + 1) * length - 1
    after_text = body_start[text] + batch.text_lengths[text] - 1
    first = torch.where(batch.text_lengths[text] > 0, after_text, after_prompt)
    start = after_text + 1 if merged else suffix_start
    place = ragged_arange(batch.target_lengths)
    row = torch.arange(batch.rows).repeat_interleave(batch.target_lengths)
    return torch.where(place == 0, first[row], start[row] + place - 1)


def ragged_arange(lengths: Int[Tensor, " X"]) -> Int[Tensor, " n"]:
    """0, 1, … for each length, joined.

    >>> ragged_arange(torch.tensor([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)


def ragged_take(ids: Int[Tensor, "X T"], lengths: Int[Tensor, " X"]) -> Int[Tensor, " n"]:
    """The first `lengths[x]` entries of every row, joined."""
    return ids[torch.arange(ids.shape[1]) < lengths[:, None]]
