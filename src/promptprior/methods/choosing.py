"""The protocol of recipes that learn nothing themselves, and choose among others."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Choosing(Protocol):
    """A recipe that adapts others, by their names, and lets held-out answers choose among them (choose.py)."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of methods, in order of cost."""

    @property
    def folds(self) -> int:
        """Folds that held-out answers come from, where the settings name none."""

    @property
    def blend(self) -> bool:
        """Whether candidates may answer together."""

    @property
    def seconds(self) -> float | None:
        """No further candidate starts that would end after so many seconds; None for no limit."""
