"""Recipes, one per paper. `METHODS` is all of them; a new one is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from promptprior.config.mapping import FlagText, from_mapping
from promptprior.errors import SpecError, unknown_name
from promptprior.methods.from_sources.attempt import Attempt, AttemptAsReleased
from promptprior.methods.from_sources.bmtpt import Bmtpt, BmtptChains, BmtptNoPrior, BmtptPredictive, BmtptSingle
from promptprior.methods.from_sources.meta_prompt_tuning import (
    FomamlStart,
    ImamlStart,
    MamlStart,
    MetaSgdStart,
    ReptileStart,
)
from promptprior.methods.from_sources.mpt import Mpt, MptNoDistil
from promptprior.methods.from_sources.multitask import Multitask, MultitaskLong
from promptprior.methods.from_sources.prompt_arithmetic import PromptArithmetic
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.from_sources.tpt import Tpt, TptAsReleased, TptRandom, TptStatic
from promptprior.methods.method import (
    AdaptationInit,
    Episode,
    FitResult,
    Method,
    OneByOne,
    RunContext,
    source_stage,
    trains_targets_jointly,
)
from promptprior.methods.target_only.dept import Dept
from promptprior.methods.target_only.in_context import InContext
from promptprior.methods.target_only.prompt_tuning import PromptTuning, ZeroShot
from promptprior.methods.target_only.residual_prompt_tuning import ResidualAsReleased, ResidualPromptTuning
from promptprior.methods.target_only.weight_tuning import Bitfit, Lora

METHODS: Mapping[str, type[Any]] = {
    "zero_shot": ZeroShot,
    "in_context": InContext,
    "lora": Lora,
    "bitfit": Bitfit,
    "prompt_tuning": PromptTuning,
    "residual_prompt_tuning": ResidualPromptTuning,
    "residual_as_released": ResidualAsReleased,
    "dept": Dept,
    "multitask": Multitask,
    "multitask_long": MultitaskLong,
    "spot": Spot,
    "prompt_arithmetic": PromptArithmetic,
    "attempt": Attempt,
    "attempt_as_released": AttemptAsReleased,
    "mpt": Mpt,
    "mpt_no_distil": MptNoDistil,
    "bmtpt": Bmtpt,
    "bmtpt_chains": BmtptChains,
    "bmtpt_single": BmtptSingle,
    "bmtpt_no_prior": BmtptNoPrior,
    "bmtpt_predictive": BmtptPredictive,
    "maml": MamlStart,
    "fomaml": FomamlStart,
    "reptile": ReptileStart,
    "meta_sgd": MetaSgdStart,
    "imaml": ImamlStart,
    "tpt": Tpt,
    "tpt_as_released": TptAsReleased,
    "tpt_static": TptStatic,
    "tpt_random": TptRandom,
}


def make_method(name: str, options: Mapping[str, object] | None = None) -> Method:
    """A method by name, with its own options ("retrieval" of spot). Raises SpecError for unknown names and options."""
    if name not in METHODS:
        raise SpecError(unknown_name("method", name, METHODS) + " (--methods)")
    return from_mapping(METHODS[name], dict(options or {}), f"method {name}")


__all__ = [
    "METHODS",
    "AdaptationInit",
    "Episode",
    "FitResult",
    "FlagText",
    "Method",
    "OneByOne",
    "RunContext",
    "make_method",
    "source_stage",
    "trains_targets_jointly",
]
