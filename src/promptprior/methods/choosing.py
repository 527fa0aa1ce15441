"""The protocol of recipes that learn nothing themselves, and choose among others."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Choosing(Protocol):
    """A recipe that adapts others, by their names, and lets held-out answers choose among them (choose.py).

    `candidates` are names of methods, in order of cost; `folds` those that held-out answers come from, where the
    settings name none; `blend`: whether candidates may answer together; no further candidate starts that would end
    after so many `seconds` (None for no limit).
    """

    candidates: tuple[str, ...]
    folds: int
    blend: bool
    seconds: float | None
