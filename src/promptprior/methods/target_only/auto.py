"""The best answer that the shots can buy: several methods adapt, held-out answers choose, or blend them (choose.py).

Ours. Candidates stand in order of cost, and of several that score the same the first is taken. Held-out answers come
from folds of all shots (--folds: the same for all). Candidates that train, which cost minutes, learn from either half
of the shots and answer the other (both_ways.py); of two that differ in their head alone the second answers, without
folds, with what the first has trained. Choosing sees neither test data nor other tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, RunContext

CANDIDATES = ("zero_shot_calibrated", "linear_probe", "probe_mixture", "prompted_linear", "prompted_mixture", "lora",
              "lora_linear")  # fmt: skip


@dataclass(frozen=True)
class Auto(Recipe):
    """Adapt every candidate and let held-out answers choose."""

    name: str = fact("auto")
    candidates: tuple[str, ...] = option(CANDIDATES, "methods to choose from, in order of cost", at_least_one=True)
    folds: int = option(4, "folds that held-out answers come from where --folds names none", least=1, most=1000)
    trained_folds: int = option(0, "the same for candidates that train; 0: see both_ways", least=0, most=1000)
    both_ways: bool = option(
        True, "train on either half of the shots, which the other judges (with blend); else dev judges one run"
    )
    blend: bool = option(True, "average the candidates' probabilities where that is as good as the best of them")
    seconds: float | None = option(None, "start no further candidate that would end after so many seconds", above=0)

    trains: ClassVar[bool] = False

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """None of its own: adapt.py starts the candidates."""
        raise NotImplementedError

    def prompt_tokens(self, settings: Settings, texts: float, sources: int = 0) -> float:
        """None of its own."""
        return 0


ARMS = (Auto(),)
