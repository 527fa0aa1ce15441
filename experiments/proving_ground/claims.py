"""The claims: for each its question, the conditions it is asked under, and how one fit of a condition is measured.

A fit is a seed: it draws the family, its sources and its targets, fits every method's prior, and adapts all targets.
`Claim.measure` returns rows of plain numbers, which tables.py turns into tables by the claim's `kind`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Any

from promptprior.backbone import Backbone
from promptprior.methods import METHODS, Recipe, make_method
from promptprior.tasks.sampling.draws import generator
from proving_ground.coin_world import COINS, broad, counts, family, make_bag, make_shots
from proving_ground.exact_posterior import PlanePosterior, gaussian_variance, random_plane
from proving_ground.trials import Result, Setup, Trial, mean, measure_gains

Measure = Callable[[Backbone, Any, int, Setup], list[Result]]
SEEN = (4, 10, 30)  # throws that a pretraining sequence holds
THROWS = (4, 20, 100)  # of a target; 100 are more than the model ever saw


@dataclass(frozen=True)
class Claim:
    """`conditions`, by the label that tables show; `contrasts` are written down before anything is measured."""

    name: str
    question: str
    kind: str
    conditions: Mapping[str, Any]
    measure: Measure
    contrasts: tuple[tuple[str, str], ...] = ()


def arms(*names: str, **changed: Recipe) -> dict[str, Recipe]:
    """Methods under their names, and others under labels of their own; the untrained model is always there."""
    return {"untrained": METHODS["zero_shot"], **{name: METHODS[name] for name in names}, **changed}


# The model itself -----------------------------------------------------------------------------------------------------


def measure_model(backbone: Backbone, condition: Mapping[str, Any], fit: int, setup: Setup) -> list[Result]:
    """In context the model should be Bayes; a prompt trained on many throws should reach the coins' entropy."""
    if not condition["length"]:
        return measure_gains(Trial(backbone, broad(), condition["throws"], fit, setup), arms("in_context"))
    target = replace(setup.settings.target, steps=120, batch_size=16, eval_every=12)
    long = replace(setup, settings=replace(setup.settings, length=condition["length"], target=target))
    return measure_gains(Trial(backbone, broad(), condition["throws"], fit, long), arms("prompt_tuning"))


MODEL = Claim(
    "model",
    "Is the pretrained model, in context, the Bayes predictor of all bags; and can a prompt say any bag?",
    "nats",
    {
        "in context": {"length": 0, "throws": SEEN},
        **{f"{length} tokens": {"length": length, "throws": (400,)} for length in (1, 4, 8)},
    },
    measure_model,
)

# Posteriors -----------------------------------------------------------------------------------------------------------


def measure_posterior(backbone: Backbone, condition: Mapping[str, Any], fit: int, setup: Setup) -> list[Result]:
    """Particles against the grid, on the throws of as many bags as there should be targets, each with its own plane."""
    rows = []
    for target in range(setup.targets):
        seed = 1000 * fit + target
        bag = make_bag(f"bag{seed}", broad().draw(generator("posterior", seed)), 2, generator("throws", seed))
        shots = make_shots(bag, condition["throws"], seed)
        plane = random_plane(backbone, condition["tokens"], condition["width"], seed)
        posterior = PlanePosterior(backbone, plane, counts((*shots.train, *shots.dev)), bag)
        exact = posterior.integrate()
        common = {"throws": condition["throws"], "bayes": float(bag.nats(exact.predictive))}
        for kernel, particles in condition["arms"]:
            z = posterior.particles(kernel, particles, 80, seed)
            heads = posterior.describe(z)[1]
            of_these = {"arm": f"{kernel}, {particles}", **exact.compare(z, heads)}
            rows.append({**common, **of_these, "nats": float(bag.nats(heads.mean(0)))})
        one = {"arm": "the mode", "error": float((exact.at_mode - exact.predictive).square().mean().sqrt())}
        rows.append({**common, **one, "nats": float(bag.nats(exact.at_mode))})
    return average(rows)


def average(rows: Sequence[Result]) -> list[Result]:
    """A row for each arm with the mean of every number over a fit's targets."""
    by_arm: dict[str, list[Result]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    return [
        {"arm": arm, **{k: mean(row[k] for row in own) for k in own[0] if k != "arm"}, "targets": len(own)}
        for arm, own in by_arm.items()
    ]


POSTERIOR = Claim(
    "posterior",
    "Do the library's particles agree with the exact posterior over prompts in one to three dimensions?",
    "posterior",
    {
        f"{tokens} x {width}": {
            "tokens": tokens, "width": width, "throws": 30,
            "arms": (("rbf", 5), ("rbf", 20), *((("per_token", 20),) if tokens > 1 else ()), ("none", 5)),
        }
        for tokens, width in ((1, 1), (1, 2), (2, 1), (1, 3))
    },
    measure_posterior,
)  # fmt: skip


def measure_kernels(backbone: Backbone, condition: Mapping[str, Any], fit: int, setup: Setup) -> list[Result]:  # noqa: ARG001
    """The variance that each kernel keeps of a unit Gaussian, with 5 and 20 particles."""
    kernels = {"rbf": ("rbf", 0), "per_token": ("per_token", 0), "per_token, block 1": ("per_token", 1),
               "projected": ("projected", 0), "none": ("none", 0)}  # fmt: skip
    return [
        {"arm": f"{label}, {particles}", "variance": gaussian_variance(*kernel, particles, condition["shape"], fit)}
        for label, kernel in kernels.items()
        for particles in (5, 20)
    ]


KERNELS = Claim(
    "kernels",
    "What do the kernels keep of a unit Gaussian as its dimension grows (1 is right)?",
    "variance",
    {f"{t * d}": {"shape": (t, d)} for t, d in ((1, 1), (1, 2), (1, 8), (4, 8), (16, 8), (128, 8))},
    measure_kernels,
)

# Methods on families --------------------------------------------------------------------------------------------------

FAMILIES = {
    "one bag": {"rules": 1, "concentration": inf},
    "c = 8": {"rules": 1, "concentration": 8.0},
    "c = 2": {"rules": 1, "concentration": 2.0},
    "2 rules": {"rules": 2, "concentration": inf},
    "8 rules": {"rules": 8, "concentration": inf},
}
"""From tasks that are all one to tasks that differ: nearly as much as all bags do (c = 2), or in one thing (rules)."""


def measuring(make_arms: Callable[[], Mapping[str, Recipe]], throws: Sequence[int]) -> Measure:
    """Gains of these arms on the family that a condition describes; what another claim has measured of the same trial
    just before is not measured again."""

    def measure(backbone: Backbone, condition: Mapping[str, Any], fit: int, setup: Setup) -> list[Result]:
        trial = family_trial(backbone, tuple(condition.items()), tuple(throws), fit, setup)
        return measure_gains(trial, make_arms())

    return measure


@lru_cache(maxsize=1)
def family_trial(
    backbone: Backbone, condition: tuple[tuple[str, Any], ...], throws: tuple[int, ...], fit: int, setup: Setup
) -> Trial:
    """The trial of a family, kept until another one is asked for."""
    return Trial(backbone, family(fit, **dict(condition)), throws, fit, setup)


def meta_arms() -> dict[str, Recipe]:
    """Meta-learners of one and four inner steps at the rows of multitask, which has them all."""
    inner = {
        f"{name}, {steps}": make_method(name, {"inner_steps": steps})
        for name in ("maml", "fomaml", "reptile")
        for steps in (1, 4)
    }
    return arms("prompt_tuning", "multitask", **inner)


PARTICLES = Claim(
    "particles",
    "When does a particle posterior beat one particle, multitask, and chains that do not see each other?",
    "share",
    FAMILIES,
    measuring(
        lambda: arms(
            "multitask", "multitask_long", "bmtpt_single", "bmtpt_chains", "bmtpt_no_prior", "bmtpt",
            "bmtpt_predictive",
        ),
        THROWS,
    ),
    (("bmtpt", "bmtpt_chains"), ("bmtpt", "multitask_long"), ("bmtpt", "bmtpt_single"), ("bmtpt", "bmtpt_no_prior"),
     ("bmtpt_predictive", "bmtpt")),
)  # fmt: skip

META = Claim(
    "meta",
    "When do MAML, FoMAML and Reptile beat multitask, by diversity of tasks, inner steps and k?",
    "share",
    FAMILIES,
    measuring(meta_arms, THROWS),
    tuple((f"{name}, {steps}", "multitask") for name in ("maml", "fomaml", "reptile") for steps in (1, 4)),
)

RETRIEVAL = Claim(
    "retrieval",
    "When does retrieval beat one prompt, by how much the right prompt depends on the text?",
    "share",
    {
        f"{split} of {len(COINS)} coins": {"rules": 1, "concentration": 32.0, "split": split}
        for split in (0, 2, 4, len(COINS))
    },
    measuring(lambda: arms("prompt_tuning", "multitask", "tpt", "tpt_static", "tpt_random"), THROWS),
    (("tpt", "multitask"), ("tpt", "tpt_static"), ("tpt", "tpt_random")),
)

GAINS = Claim(
    "gains",
    "How much of the gain that Bayes has does each method get?",
    "share",
    {name: FAMILIES[name] for name in ("c = 8", "8 rules")},
    measuring(
        lambda: arms(
            "in_context", "prompt_tuning", "prefix_tuning", "multitask",
            "spot", "prompt_arithmetic", "attempt", "mpt", "bmtpt", "maml", "reptile", "tpt",
        ),
        THROWS,
    ),
)  # fmt: skip

CLAIMS = {claim.name: claim for claim in (MODEL, KERNELS, POSTERIOR, PARTICLES, META, RETRIEVAL, GAINS)}
