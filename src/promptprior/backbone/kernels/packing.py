"""Where every token of a packed batch stands.

A packed batch is ONE sequence of N tokens without padding:

    [ P prompts of L ][ bodies: the texts, ragged ][ suffixes: answers of texts that have several rows ]

Position-wise layers run on it as it is. Attention cuts it into three *stages* of equal-sized blocks:

    prompts   [P, L]        each prompt sees itself
    bodies    [G, n, T]     each text sees its prompt and itself; the n texts of a group share one prompt
    suffixes  [G, n, C, U]  each answer sees its prompt, its text and itself

Blocks that share keys stand next to each other, so nothing is ever copied to be shared.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

from promptprior.notation import Bool, Int, Tensor
from promptprior.tasks.sampling.batch import Batch

GROUP_WASTE = 1.25  # how much larger than the texts a padded [prompts, texts] grid may be


@dataclass(frozen=True)
class Stage:
    """B blocks of S slots for n tokens. `token_of_slot` names the token in each slot (pads name token 0); both it and
    `slot_of_token` count from the stage's own first token. A full stage has no pads and its tokens stand in slot order:
    packing is then a view. No position is above `last_position`."""

    positions: Int[Tensor, "B S"]
    token_of_slot: Int[Tensor, " B*S"]
    slot_of_token: Int[Tensor, " n"]
    filled: Bool[Tensor, " B*S"]
    blocks: int
    size: int
    tokens: int
    last_position: int
    is_full: bool


@dataclass(frozen=True)
class Layout:
    """A packed batch: what to embed, where it stands, who sees whom, and which states predict targets.

    `prompt_tokens` is P * L. `group_prompt` names the prompt each of the G groups reads, `None` when group g reads
    prompt g. `predicts` are the flat positions of the states that predict target tokens, row after row, and
    `predicting` the same ascending and once each (`predicts` is `predicting[place_of_prediction]`). Where texts read
    keys and values instead of tokens, `prefix` is the number of their positions, `length` is 0, and `hidden` says which
    of them the text of each block does not see.
    """

    used_prompts: Int[Tensor, " P"]
    length: int
    prompt_tokens: int
    token_ids: Int[Tensor, " n"]
    position_ids: Int[Tensor, " N"]
    prompts: Stage
    bodies: Stage
    text_lengths: Int[Tensor, " B"]
    suffixes: Stage | None
    group_prompt: Int[Tensor, " G"] | None
    predicts: Int[Tensor, " V"]
    predicting: Int[Tensor, " U"]
    place_of_prediction: Int[Tensor, " V"]
    prefix: int = 0
    hidden: Bool[Tensor, "B L"] | None = None


Moved = TypeVar("Moved", Stage, Layout)


def on_device(value: Moved, device: torch.device) -> Moved:
    """The same stage or layout, made on the CPU, with its tensors on a device."""
    if device.type == "cpu":
        return value
    moved: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, Tensor):
            moved[field.name] = part.to(device)
        elif isinstance(part, Stage):
            moved[field.name] = on_device(part, device)
    return replace(value, **moved)


def plan(batch: Batch, length: int, prefix: int = 0, hidden: Bool[Tensor, "X L"] | None = None) -> Layout:
    """The layout of a batch whose prompts are `length` tokens long, or are `prefix` positions of keys and values, some
    of them `hidden` from each text. Computed on the CPU."""
    used, prompt_index = torch.unique(batch.prompt_index.cpu(), return_inverse=True)  # [P], [X]
    prompts, _ = ragged_stage(torch.arange(len(used)), torch.full((len(used),), length), 0)

    # Groups [G, n] of texts that read one prompt, -1 where a cell is empty. One group per prompt where that wastes
    # little; else one per text, and `group_prompt` says which prompt each reads
    by_prompt = torch.argsort(prompt_index, stable=True)
    counts = torch.bincount(prompt_index, minlength=len(used))
    most, group_prompt = int(counts.max()), None
    if len(used) * most > GROUP_WASTE * batch.texts:
        body_texts, group_prompt = by_prompt, prompt_index[by_prompt]
    else:
        grid = torch.full((len(used), most), -1)
        grid[torch.arange(most) < counts[:, None]] = by_prompt
        body_texts = grid.flatten()  # [B]
    order = body_texts[body_texts >= 0]  # texts in the order they are packed
    text = batch.text_index  # [R]
    answers = (batch.target_lengths - 1).clamp(min=0)  # [R]; the last token of a target is predicted, never read
    continues = batch.rows == batch.texts  # one row a text: its answer simply continues the text

    # Bodies: the texts, where one row a text continues it with the answer
    ids = batch.text_ids[order]  # [X, T]
    filled = torch.arange(ids.shape[1]) < batch.text_lengths[order][:, None]
    body_lengths = batch.text_lengths
    if continues:
        body_lengths = body_lengths + answers
        target_ids = batch.target_ids[order]  # [X, U]
        ids = torch.cat([ids, target_ids], dim=1)
        filled = torch.cat([filled, torch.arange(target_ids.shape[1]) < answers[order][:, None]], dim=1)
    first = prefix + length  # the position of a text's first token
    bodies, body_start = ragged_stage(body_texts, body_lengths, first)
    token_ids = [ids[filled]]
    positions = [torch.arange(length).repeat(len(used)), first + ragged_arange(body_lengths[order])]

    # Suffixes: the answers of each text, text after text
    suffixes, suffix_start = None, torch.zeros(batch.rows, dtype=torch.long)
    if not continues and int(answers.max()) > 0:
        suffix_rows = rows_of_texts(body_texts, text).flatten()
        rows = suffix_rows[suffix_rows >= 0]
        offset = first + batch.text_lengths[text]  # [R]; the position of an answer's first token
        suffixes, suffix_start = ragged_stage(suffix_rows, answers, offset)
        is_read = torch.arange(batch.target_ids.shape[1]) < answers[rows][:, None]
        token_ids.append(batch.target_ids[rows][is_read])
        positions.append(ragged_arange(answers[rows]) + offset[rows].repeat_interleave(answers[rows]))

    # The state that predicts a target's first token ends the text (an empty text: the prompt); the others are read
    first_body = len(used) * length
    after_prompt = (prompt_index[text] + 1) * length - 1  # [R]
    after_text = first_body + body_start[text] + batch.text_lengths[text] - 1
    predicts_first = torch.where(batch.text_lengths[text] > 0, after_text, after_prompt)
    answer_start = after_text + 1 if continues else first_body + bodies.tokens + suffix_start
    row = torch.arange(batch.rows).repeat_interleave(batch.target_lengths)  # [V]
    column = ragged_arange(batch.target_lengths)
    predicts = torch.where(column == 0, predicts_first[row], answer_start[row] + column - 1)
    predicting, place_of_prediction = torch.unique(predicts, return_inverse=True)

    return Layout(
        used_prompts=used,
        length=length,
        prompt_tokens=len(used) * length,
        token_ids=torch.cat(token_ids),
        position_ids=torch.cat(positions),
        prompts=prompts,
        bodies=bodies,
        text_lengths=torch.where(body_texts >= 0, batch.text_lengths[body_texts], 0),
        suffixes=suffixes,
        group_prompt=group_prompt,
        predicts=predicts,
        predicting=predicting,
        place_of_prediction=place_of_prediction,
        prefix=prefix,
        hidden=None if hidden is None else hidden.cpu()[body_texts.clamp(min=0)],
    )


def rows_of_texts(texts: Int[Tensor, " B"], text_index: Int[Tensor, " R"]) -> Int[Tensor, "B C"]:
    """The rows of each text, -1 where it has fewer than the most; a missing text (-1) has none."""
    counts = torch.bincount(text_index)
    first = counts.cumsum(0) - counts
    columns = torch.arange(int(counts.max()))
    grid = first[texts][:, None] + columns
    missing = (columns >= counts[texts][:, None]) | (texts < 0)[:, None]
    return grid.masked_fill(missing, -1)


def ragged_stage(
    items: Int[Tensor, " B"], lengths: Int[Tensor, " items"], first_position: Int[Tensor, " items"] | int
) -> tuple[Stage, Int[Tensor, " items"]]:
    """The stage whose block b holds the tokens of `items[b]` (-1: an empty block), and where each item starts."""
    block_lengths = torch.where(items >= 0, lengths[items], 0)  # [B]
    size = max(int(block_lengths.max()), 1)
    filled = torch.arange(size) < block_lengths[:, None]  # [B, S]
    tokens = int(block_lengths.sum())
    token_of_slot = torch.zeros_like(filled, dtype=torch.long)
    token_of_slot[filled] = torch.arange(tokens)
    starts = torch.zeros_like(lengths)
    starts[items[items >= 0]] = block_lengths[items >= 0].cumsum(0) - block_lengths[items >= 0]
    offset = torch.as_tensor(first_position).expand(len(lengths))[items]
    positions = offset[:, None] + torch.arange(size)  # [B, S]
    stage = Stage(
        positions=positions,
        token_of_slot=token_of_slot.flatten(),
        slot_of_token=filled.flatten().nonzero().flatten(),
        filled=filled.flatten(),
        blocks=len(items),
        size=size,
        tokens=tokens,
        last_position=int(positions.max()),
        is_full=tokens == len(items) * size,
    )
    return stage, starts


def ragged_arange(lengths: Int[Tensor, " X"]) -> Int[Tensor, " n"]:
    """0, 1, … for each length, one after the other.

    >>> ragged_arange(torch.tensor([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
