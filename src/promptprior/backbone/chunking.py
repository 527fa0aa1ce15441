"""How a batch is cut: into chunks that fit into memory, and over the processes of a data-parallel run.

Rows are independent given the prompts, so each process computes its own texts, and sums over rows add up
(`promptprior.processes`). Every process then makes the same update that a single one would make.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from promptprior.errors import PromptpriorWarning
from promptprior.notation import Int, Tensor
from promptprior.processes import process_rank, processes
from promptprior.tasks.sampling.batch import Batch

Result = TypeVar("Result")


def backing_off(pieces: Iterable[Batch], run: Callable[[Batch], Result]) -> Iterator[Result]:
    """`run` of every piece, in order; a piece that does not fit into memory is halved and tried again. Says so once per
    piece. Raises what `run` raised when a single text, or a single unit of texts, does not fit."""
    for piece in pieces:
        try:
            result = run(piece)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            # On the CPU torch raises a plain RuntimeError
            memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
            sizes = piece.unit_sizes
            if len(sizes) == 1 or not memory:
                raise
        else:
            yield result
            continue
        # Outside of `except`: the error's traceback would hold on to what the failed piece computed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        text = f"{piece.texts} texts at once do not fit into memory: halved; or lower max_tokens"
        warnings.warn(text, PromptpriorWarning, stacklevel=2)
        half = sum(sizes[: len(sizes) // 2])
        halves = (torch.arange(half), torch.arange(half, piece.texts))
        yield from backing_off((piece.take(texts) for texts in halves), run)


def own_texts(batch: Batch) -> Int[Tensor, " K"]:
    """The texts of this process, in whole units: neighbours, so that texts of one prompt mostly stay together; maybe
    none."""
    sizes = torch.tensor(batch.unit_sizes)
    mine = torch.arange(len(sizes)).tensor_split(processes())[process_rank()]
    return torch.isin(torch.repeat_interleave(sizes), mine).nonzero().flatten()


def own_share(batch: Batch) -> Batch | None:
    """The batch of this process's texts, weights untouched; None where there are more processes than texts."""
    texts = own_texts(batch)
    if len(texts) == batch.texts:
        return batch
    return batch.take(texts) if len(texts) else None
