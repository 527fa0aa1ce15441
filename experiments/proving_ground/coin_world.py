"""A world where every answer is known: bags of coins, and what an optimal learner knows of them after n throws.

A task is a bag of coins, `theta[hand, coin]` = P(heads). A text names a hand and a coin ("17 L c"; the number makes
texts distinct, and the tokenizer does not read it), and the answer is the coin with the side it fell on, cH or cT. In
most tasks hands do not matter: both throw the same coins. In a family with `split` coins each hand has its own.

A family, from which tasks are drawn, is a mixture of R rules. A rule has a centre m for each coin, and a task of it has

    theta ~ Beta(c m, c (1 - m))          independently for each coin; c infinite: the rule itself

so that all that is asked of an optimal learner who knows the family has a closed form, given throws D with n1 heads and
n0 tails of a coin:

    P(D | rule r) = prod over coins of B(c m + n1, c (1 - m) + n0) / B(c m, c (1 - m))
    P(heads | coin, D) = sum_r P(r | D) (c m_r + n1) / (c + n1 + n0)

A family of one rule with centres 1/2 and c = 1 (`broad`) is what the model is pretrained on: its Bayes predictor is
Krichevsky and Trofimov's, coin by coin (the setting of Genewein et al. 2025, arXiv 2505.17010, with as many coins as
the text can name). The families that sources and targets come from are narrower, and that is what can be transferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from promptprior.notation import Bool, Float, Tensor
from promptprior.tasks.sampling.draws import Shots, generator
from promptprior.tasks.task import Example, Task

HANDS, COINS, SIDES = ("L", "R"), tuple("abcdef"), ("H", "T")
ANSWERS = {coin: tuple(coin + side for side in SIDES) for coin in COINS}
CELLS = (len(HANDS), len(COINS))  # the texts there are
SURE = 1e-3  # no coin is surer than 1 - SURE, so that entropies and their gradients stay finite


@dataclass(frozen=True, eq=False)
class Family:
    """A distribution over tasks. `split[coin]`: each hand has its own coin of that name, else both throw one."""

    centres: Float[Tensor, "R hands coins"]
    concentration: float
    split: Bool[Tensor, " coins"]

    def draw(self, g: torch.Generator) -> Float[Tensor, "hands coins"]:
        """The coins of one task."""
        centre = self.centres[int(torch.randint(len(self.centres), (1,), generator=g))]
        theta = beta(self.concentration * centre, self.concentration * (1 - centre), g) if self.is_spread else centre
        return torch.where(self.split, theta, theta[:1]).clamp(SURE, 1 - SURE)

    @property
    def is_spread(self) -> bool:
        """Whether tasks of one rule differ."""
        return self.concentration < inf

    def posterior(
        self, throws: Float[Tensor, "*tasks hands coins sides"]
    ) -> tuple[Float[Tensor, "*tasks R"], Float[Tensor, "*tasks hands coins"]]:
        """P(rule | throws), and P(heads) of the next throw of every coin, given counts of heads and tails."""
        pooled = throws.double().sum(-3, keepdim=True).expand_as(throws)
        counts = torch.where(self.split[:, None], throws.double(), pooled)[
            ..., None, :, :, :
        ]  # [*, 1, hands, coins, 2]
        sides = torch.stack([self.centres, 1 - self.centres], -1)  # [R, hands, coins, 2]
        if self.is_spread:
            alpha = self.concentration * sides
            evidence = log_beta(alpha + counts) - log_beta(alpha)  # [*, R, hands, coins]
            heads = (alpha + counts)[..., 0] / (alpha + counts).sum(-1)
        else:
            sides = sides.clamp(SURE, 1 - SURE)
            evidence = (counts * sides.log()).sum(-1)
            heads = sides[..., 0].expand(evidence.shape)
        once = torch.stack([torch.ones_like(self.split), self.split])  # [hands, coins]; a shared coin counts once
        rules = torch.softmax((evidence * once).sum((-1, -2)), -1)  # [*, R]
        return rules, (rules[..., None, None] * heads).sum(-3)


def beta(a: Tensor, b: Tensor, g: torch.Generator) -> Tensor:
    """Beta(a, b) draws by two gammas, of any shape, seeded."""
    x, y = (torch._standard_gamma(v.double(), generator=g) for v in (a, b))
    return x / (x + y).clamp(min=1e-300)


def log_beta(alpha: Float[Tensor, "*n sides"]) -> Float[Tensor, "*n"]:
    """The logarithm of the beta function."""
    return torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.sum(-1))


def broad() -> Family:
    """What the model is pretrained on: every bag of coins is possible."""
    return Family(torch.full((1, *CELLS), 0.5, dtype=torch.float64), 1.0, torch.zeros(len(COINS), dtype=torch.bool))


def family(seed: int, rules: int = 1, concentration: float = inf, split: int = 0) -> Family:
    """A narrower family: `rules` centres drawn from the broad one, the last `split` coins with one for each hand."""
    centres = beta(*(torch.full((rules, *CELLS), 0.5),) * 2, generator("family", seed)).clamp(0.02, 0.98)
    own = torch.arange(len(COINS)) >= len(COINS) - split
    return Family(torch.where(own, centres, centres[:, :1]), concentration, own)


# As promptprior's tasks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bag:
    """A task with the coins behind it: what the library sees, and what scores it."""

    theta: Float[Tensor, "hands coins"]
    task: Task

    def nats(self, heads: Float[Tensor, "*n hands coins"]) -> Float[Tensor, "*n"]:
        """The expected loss of predictions on a text drawn evenly: exact, so that no test rows add noise."""
        p = heads.double().clamp(1e-12, 1 - 1e-12)
        return -(self.theta * p.log() + (1 - self.theta) * (-p).log1p()).mean((-1, -2))

    def entropy(self) -> float:
        """The loss that no predictor is below, in nats."""
        return float(self.nats(self.theta))


def make_bag(name: str, theta: Float[Tensor, "hands coins"], throws: int, g: torch.Generator) -> Bag:
    """A task of so many training throws. Its test split has each text once; scores are exact (`Bag.nats`)."""
    thrown = make_throws(name, theta, throws, g)
    test = tuple(Example(f"{name}-test-{h}{c}", f"{h} {c}", ANSWERS[c][0], ANSWERS[c], 0) for h in HANDS for c in COINS)
    splits = {"train": thrown, "validation": test, "test": test}
    return Bag(theta, Task(name, "multiple_choice", ("nll",), splits, "coins"))


def make_throws(name: str, theta: Float[Tensor, "hands coins"], count: int, g: torch.Generator) -> tuple[Example, ...]:
    """Throws of coins drawn evenly."""
    cells = torch.randint(theta.numel(), (count,), generator=g)
    tails = (torch.rand(count, generator=g, dtype=torch.float64) >= theta.flatten()[cells]).long()
    made = []
    for i, (cell, side) in enumerate(zip(cells.tolist(), tails.tolist(), strict=True)):
        hand, coin = HANDS[cell // len(COINS)], COINS[cell % len(COINS)]
        made.append(Example(f"{name}-{i}", f"{i} {hand} {coin}", ANSWERS[coin][side], ANSWERS[coin], side))
    return tuple(made)


def make_shots(bag: Bag, count: int, seed: int) -> Shots:
    """`count` throws of a target: half of them to learn from, half to choose by. No text is left out as a repeat."""
    name = bag.task.name
    thrown = make_throws(f"{name}-shots-{seed}", bag.theta, count, generator("shots", name, count, seed))
    return Shots(thrown[: (count + 1) // 2], thrown[(count + 1) // 2 :])


def counts(examples: Sequence[Example]) -> Float[Tensor, "hands coins sides"]:
    """How often each coin of each hand came out on each side."""
    found = torch.zeros(*CELLS, len(SIDES), dtype=torch.float64)
    for example in examples:
        *_, hand, coin = example.text.split()
        found[HANDS.index(hand), COINS.index(coin), example.label or 0] += 1
    return found
