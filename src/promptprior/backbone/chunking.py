"""How many tokens fit into memory at once, and what to do when a piece does not fit after all."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from promptprior.backbone.frozen import Frozen
from promptprior.tasks.sampling.batch import Batch

MEMORY_SHARE = 0.4  # of what is free, for one chunk's activations
Result = TypeVar("Result")


def token_budget(frozen: Frozen, kept: int, recompute: bool = False) -> int:
    """How many tokens fit into a share of the free memory, where each layer keeps `kept` numbers of one."""
    layers = frozen.model.config.get_text_config().num_hidden_layers
    entries = kept + layers * frozen.card.width if recompute else kept * layers
    return max(256, int(MEMORY_SHARE * free_memory(frozen.device) / (entries * frozen.dtype.itemsize)))


def free_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def backing_off(pieces: Iterable[Batch], run: Callable[[Batch], Result]) -> Iterator[Result]:
    """`run` of every piece, in order; a piece that does not fit into memory is halved and tried again.

    Says so once per piece. Raises what `run` raised when a single text does not fit.
    """
    for piece in pieces:
        yield from fitted(piece, run)


def fitted(piece: Batch, run: Callable[[Batch], Result]) -> Iterator[Result]:
    """`run` of a piece, or of its halves."""
    try:
        done = run(piece)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if piece.texts == 1 or not out_of_memory(error):
            raise
        half = piece.texts // 2
    else:
        yield done
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(f"{piece.texts} texts at once do not fit into memory: halved; or lower max_tokens", stacklevel=2)
    yield from fitted(piece.take(torch.arange(half)), run)
    yield from fitted(piece.take(torch.arange(half, piece.texts)), run)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
