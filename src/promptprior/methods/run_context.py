"""What a recipe works with: an episode, where a run starts, and the context that makes and trains runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from promptprior.backbone import Backbone, training_tokens
from promptprior.config.mapping import stable_hash
from promptprior.config.training import Settings, Training
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.initial import start_prompt
from promptprior.parameterisations.parameterisation import Parameterisation
from promptprior.parameterisations.prefix import Prefix, prefix_form, prefix_start
from promptprior.rules.descent import Descent, Penalty
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.tasks.metrics import direction_mark
from promptprior.tasks.sampling.batch import Tokens
from promptprior.tasks.sampling.draws import Draws, MixtureDraws, Pool, Shots, generator, mixture_rates
from promptprior.tasks.task import Example, Task
from promptprior.train import Run, Trained


@dataclass(frozen=True)
class Episode:
    """One target with one draw of its few labelled examples, or one `fold` of them (folds.py)."""

    task: Task
    k: int
    seed: int
    shots: Shots
    fold: int = 0

    @property
    def key(self) -> str:
        """A hash that differs between any two episodes."""
        drawn = [[e.id for e in examples] for examples in (self.shots.train, self.shots.dev)]
        return stable_hash([self.task.fingerprint, self.k, self.seed, drawn, *direction_mark(self.task)])


@dataclass(frozen=True)
class InitialParams:
    """Where a source stage starts: params, what reads them, and multipliers of single learning rates (0 freezes)."""

    parameterisation: Parameterisation
    params: Params
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunContext:
    """The backbone, the settings, and the one training loop, `train(run, stage)`, which the caller checkpoints."""

    backbone: Backbone
    settings: Settings
    train: Callable[[Run, str], Trained]

    def direct(self) -> Direct | Prefix:
        """One free prompt of the settings' length: of tokens, or with form prefix of keys and values. Both have params
        "prompt" [C, length, width]; only those of tokens have the width of embeddings. Raises SpecError as
        `prefix_form` does."""
        s = self.settings
        if s.form == "prompt":
            return Direct(s.length, self.backbone.width)
        return prefix_form(self.backbone, s.length, s.layers)

    def initial_prompt(self, *names: object, labels: Sequence[str] = ()) -> Float[Tensor, "L D"]:
        """A starting prompt as the settings say, with form prefix what the model caches of it [L, W]; each sequence of
        names has its own randomness."""
        s = self.settings
        prompt = start_prompt(self.backbone, s.start, s.length, generator("start", *names), s.start_text, labels)
        prompt = prompt.to(self.backbone.frozen.device)
        form = self.direct()
        return prefix_start(form, self.backbone, prompt[None])[0] if isinstance(form, Prefix) else prompt

    def episode_prompts(self, episodes: Sequence[Episode]) -> Params:
        """A starting prompt for every episode, seeded by its task and seed: {"prompt": Float[E, L, D]}."""
        return stacked([self.initial_prompt(e.seed, e.task.name, labels=e.task.label_names) for e in episodes])

    def key(self, *parts: object) -> str:
        """The key of a run: a hash of backbone, settings and whatever else decides its result."""
        return stable_hash(
            [self.backbone.card.fingerprint, str(self.backbone.frozen.dtype), self.settings, *map(str, parts)]
        )

    def mixture(self, sources: Sequence[Task], seed: int) -> MixtureDraws:
        """Batches of mixed sources at the rates the settings name."""
        s = self.settings
        pools = [Pool(self.tokens(task, task.split("train")), i, 0) for i, task in enumerate(sources)]
        rates = mixture_rates([len(p.items) for p in pools], s.mixture, s.mixture_cap, s.mixture_temperature)
        return MixtureDraws(pools, rates.tolist(), s.source.batch_size, seed)

    def tokens(self, task: Task, examples: Sequence[Example]) -> list[Tokens]:
        """Examples of a task, tokenised for training; none for none."""
        return training_tokens(self.backbone, task, examples) if examples else []

    def descent(
        self,
        key: str,
        stage: Training,
        initial: InitialParams,
        draws: Draws,
        penalty: Penalty | None = None,
        objective: PromptObjective | None = None,
    ) -> Run:
        """Descent at the stage's first rate, on the plain loss of the parameterisation unless an objective is given."""
        rate = stage_rate(stage, stage.learning_rates[:1], self.backbone.scale, initial.lr_multipliers)
        rule = Descent(optimiser(stage.optimiser, rate, stage.weight_decay), stage.clip, penalty)
        loss = objective or PromptObjective(self.backbone, initial.parameterisation)
        return Run(key, loss, rule, initial.params, draws, stage.steps)


def stacked(prompts: Sequence[Float[Tensor, "L D"]]) -> Params:
    """Prompts as the copies of a direct parameterisation: {"prompt": Float[C, L, D]}."""
    return {"prompt": torch.stack(list(prompts))}
