"""One fit of the proving ground: sources and targets of a family, the library's own fit and adapt, and exact scores."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from promptprior.adapt import adapt
from promptprior.adaptation.adapted import Adapted
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings, Training
from promptprior.evaluate import PromptRequest, answer_requests
from promptprior.fit import fit
from promptprior.methods import Episode, Recipe
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.draws import Shots, generator
from proving_ground.coin_world import CELLS, Bag, Family, broad, counts, make_bag, make_shots

Result = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """Sizes of a trial, one for all methods: dev picks each target's rate among the same three, as in
    experiments/core.yaml. Lengths come from development fits (seeds from 1,000; docs/proving_ground.md)."""

    targets: int = 10
    sources: int = 8
    source_throws: int = 200
    settings: Settings = field(
        default_factory=lambda: Settings(
            length=8,
            source=Training(steps=150, batch_size=16, learning_rates=(1.0,), eval_every=0),
            target=Training(steps=40, batch_size=8, learning_rates=(0.1, 0.3, 1.0), eval_every=8),
        )
    )


def make_bags(of: Family, kind: str, count: int, throws: int, seed: int) -> list[Bag]:
    """Tasks of a family, each a function of kind ("source" or "target"), seed and place."""
    draws = [(f"{kind}{i}", generator(kind, seed, i)) for i in range(count)]
    return [make_bag(name, of.draw(g), throws, g) for name, g in draws]


def make_episode(method: Recipe, bag: Bag, throws: int, seed: int) -> Episode:
    """An episode of so many throws: half to learn from and half to choose by, or all to read where nothing trains."""
    shots = make_shots(bag, throws, seed)
    if not method.trains:
        shots = Shots((*shots.train, *shots.dev), shots.dev)
    return Episode(bag.task, throws, seed, shots)


@dataclass(frozen=True, eq=False)
class Trial:
    """One fit of a family: its sources, its targets, and every arm that was measured on them, so that claims which
    share an arm pay for it once."""

    backbone: Backbone
    family: Family
    throws: Sequence[int]
    seed: int
    setup: Setup
    priors: dict[str, Prior] = field(default_factory=dict)
    answered: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    @cached_property
    def sources(self) -> list[Bag]:
        """The tasks that priors are fitted to."""
        return make_bags(self.family, "source", self.setup.sources, self.setup.source_throws, self.seed)

    @cached_property
    def cells(self) -> list[tuple[int, Bag]]:
        """Every target with every number of throws."""
        targets = make_bags(self.family, "target", self.setup.targets, 2, self.seed)
        return [(n, bag) for n in self.throws for bag in targets]

    def references(self) -> list[Result]:
        """What those pay who know the world: `broad_bayes` (the best without sources: the throws and the pretraining
        distribution), `bayes` (the best with sources: the throws and the family), `entropy` (the coins themselves)."""
        shots = [make_shots(bag, n, self.seed) for n, bag in self.cells]
        known = torch.stack([counts(own.train) + counts(own.dev) for own in shots])
        return [
            *rows_of("broad_bayes", self.cells, broad().posterior(known)[1]),
            *rows_of("bayes", self.cells, self.family.posterior(known)[1]),
            *rows_of("entropy", self.cells, torch.stack([bag.theta for _, bag in self.cells])),
        ]

    def prior(self, recipe: Recipe) -> Prior:
        """A recipe's prior of the sources."""
        key = repr(recipe)
        if key not in self.priors:
            tasks = [bag.task for bag in self.sources]
            self.priors[key] = fit(recipe, tasks, self.backbone, self.setup.settings, self.seed)
        return self.priors[key]

    def answers(self, arm: Recipe) -> tuple[Float[Tensor, "E hands coins"], int]:
        """P(heads) of every text in every cell as an arm answers, and the rows that its source stage read."""
        key = repr(arm)
        if key not in self.answered:
            prior = self.prior(arm.source_recipe()) if arm.needs_sources else None
            episodes = [make_episode(arm, bag, n, self.seed) for n, bag in self.cells]
            heads = predict_heads(self.backbone, adapt(arm, episodes, self.backbone, prior, self.setup.settings))
            cost: Any = prior.header.diagnostics["cost"] if prior is not None else {"rows": 0}
            self.answered[key] = heads, cost["rows"]
        return self.answered[key]


def measure_gains(trial: Trial, arms: Mapping[str, Recipe]) -> list[Result]:
    """What every arm pays on the targets of one fit, and what those pay who know the world, in nats a text.

    A row has the arm, the number of throws, the mean over targets ("nats") and the rows of the backbone that its source
    stage read. Arms that are no method: `untrained` (no prompt) and `Trial.references`. All are given the same throws.
    """
    rows = trial.references()
    for label, arm in arms.items():
        heads, source_rows = trial.answers(arm)
        rows += [{**row, "source_rows": source_rows} for row in rows_of(label, trial.cells, heads)]
    return rows


def rows_of(arm: str, cells: Sequence[tuple[int, Bag]], heads: Float[Tensor, "E hands coins"]) -> list[Result]:
    """A row for each number of throws, with the mean over its targets."""
    nats = defaultdict[int, list[float]](list)
    for (throws, bag), p in zip(cells, heads, strict=True):
        nats[throws].append(float(bag.nats(p)))
    return [{"arm": arm, "throws": n, "nats": mean(own), "targets": len(own)} for n, own in nats.items()]


def mean(values: Iterable[float]) -> float:
    """The mean, added up in order."""
    numbers = list(values)
    total = 0.0
    for value in numbers:
        total += value
    return total / len(numbers)


def predict_heads(backbone: Backbone, adapted: Sequence[Adapted]) -> Float[Tensor, "E hands coins"]:
    """P(heads) of every text under every adapted prompt; all tasks of the world have the same texts."""
    task = adapted[0].episode.task
    texts = task.split("test")
    answers = answer_requests(backbone, [PromptRequest(one.prompt, task, texts) for one in adapted])
    nll = torch.tensor([of_prompt.nll for of_prompt in answers], dtype=torch.float64)  # [E, texts, sides]
    return torch.softmax(-nll, -1)[..., 0].unflatten(1, CELLS)


def shares(rows: Sequence[Mapping[str, Any]], throws: int) -> dict[str, float]:
    """Each arm's share of the gain that is to be had: 0 as the untrained model, 1 as Bayes who knows the family.

    Of the rows of one fit at one number of throws; rows must have `untrained` and `bayes`.
    """
    nats = {row["arm"]: row["nats"] for row in rows if row["throws"] == throws}
    gain = nats["untrained"] - nats["bayes"]
    return {arm: (nats["untrained"] - value) / gain for arm, value in nats.items()}
