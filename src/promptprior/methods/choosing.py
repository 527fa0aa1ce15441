"""Recipes that learn nothing themselves, and choose among others: their protocol, and the candidates they have."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

from promptprior.artifacts.header import Header
from promptprior.config.mapping import from_mapping
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.methods import Method, Recipe, make_method

FACTS = ("name", "needs_sources", "uses_shots", "prior_of", "is_ensemble", "revision")  # of a recipe, not options


@runtime_checkable
class Choosing(Protocol):
    """A recipe that adapts others, by their names, and lets held-out answers choose among them (choose.py).

    `candidates` are names of methods, in order of cost. Held-out answers come from so many `folds` where the settings
    name none, and from `trained_folds` for candidates that train (0: from shots that did not teach it). `blend`:
    whether candidates may answer together. `both_ways`: whether one that trains does so twice, on either half of the
    shots (both_ways.py). No further candidate starts that would end after so many `seconds` (None for no limit).
    """

    name: str
    candidates: tuple[str, ...]
    folds: int
    trained_folds: int
    blend: bool
    both_ways: bool
    seconds: float | None


def candidates_of(method: Choosing, prior: Header | None = None) -> list[Recipe]:
    """What a method chooses among, in order of cost: its candidates, then the method of a prior, with the prior's
    options, unless a candidate starts from that prior already.

    Raises SpecError for an unknown name, and for a candidate that chooses itself or that no prior is there for.
    """
    recipes = [make_method(name) for name in method.candidates]
    for recipe in recipes:
        if isinstance(recipe, Choosing):
            raise SpecError(f"candidate {recipe.name!r} (--options.candidates): expected a method that does not choose")
        if recipe.needs_sources and prior is None:
            raise SpecError(
                f"candidate {recipe.name!r} (--options.candidates): expected a method that learns from targets alone; "
                "this one starts from a prior, which only adapt can be given (--prior FOLDER)"
            )
    if prior is not None and not any(recipe.needs_sources and recipe.starts_from(prior) for recipe in recipes):
        recipes.append(make_method(prior.method, options_of_prior(prior)))
    return recipes


def candidate_settings(method: Choosing, candidate: Method, settings: Settings) -> Settings:
    """What a candidate adapts with: where the settings name no folds, those that the method has for it."""
    folds = settings.folds or (method.trained_folds if candidate.trains else method.folds)
    return replace(settings, folds=folds)


def candidate_runs(method: Choosing, candidate: Method, settings: Settings) -> int:
    """How often a candidate adapts to an episode: twice where it trains, without folds, and runs may be averaged."""
    is_once = candidate_settings(method, candidate, settings).folds or not candidate.trains
    return 1 if is_once or not (method.blend and method.both_ways) else 2


def trained_alike(candidate: Method, others: Sequence[Method], settings: Settings) -> Method | None:
    """The one of the others that answers by the likelihood and trains what a candidate trains, which a head reads; None
    where there is none, and with folds, whose runs are not kept."""
    if not candidate.trains or candidate.is_ensemble or candidate.head == "verbalizer" or settings.folds:
        return None
    for other in others:
        bare = replace(candidate, name=other.name, head="verbalizer", prior_of=other.prior_of)
        if bare == other and (not candidate.needs_sources or candidate.source_recipe() == other.source_recipe()):
            return other
    return None


def settings_of_prior(header: Header, where: str) -> Settings:
    """The settings that fitted a prior, by today's names. Raises SpecError, naming `where`, for what is none."""
    shared = {item.name: header.settings[item.name] for item in fields(Settings) if item.name in header.settings}
    return from_mapping(Settings, shared, where)


def options_of_prior(header: Header) -> dict[str, object]:
    """The options of the method that fitted a prior."""
    method = header.settings.get("method")
    return {k: v for k, v in method.items() if k not in FACTS} if isinstance(method, Mapping) else {}
