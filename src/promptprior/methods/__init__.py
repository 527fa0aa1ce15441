"""Recipes, one per paper. `METHODS` is all of them; a new one is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from promptprior.config import FlagText, from_mapping
from promptprior.errors import SpecError, unknown_name
from promptprior.methods.attempt import Attempt, AttemptAsReleased
from promptprior.methods.bmtpt import Bmtpt, BmtptChains, BmtptNoPrior, BmtptPredictive, BmtptSingle
from promptprior.methods.dept import Dept
from promptprior.methods.in_context import InContext
from promptprior.methods.meta import FomamlStart, ImamlStart, MamlStart, MetaSgdStart, ReptileStart
from promptprior.methods.method import Beginning, Episode, Lab, Learned, Method, OneByOne, needs_company, source_stage
from promptprior.methods.mpt import Mpt, MptNoDistil
from promptprior.methods.multitask import Multitask, MultitaskLong
from promptprior.methods.prompt_arithmetic import PromptArithmetic
from promptprior.methods.prompt_tuning import PromptTuning, ZeroShot
from promptprior.methods.references import Bitfit, Lora
from promptprior.methods.residual import ResidualAsReleased, ResidualPromptTuning
from promptprior.methods.spot import Spot
from promptprior.methods.tpt import Tpt, TptAsReleased, TptRandom, TptStatic

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
    "Beginning",
    "Episode",
    "FlagText",
    "Lab",
    "Learned",
    "Method",
    "OneByOne",
    "make_method",
    "needs_company",
    "source_stage",
]
