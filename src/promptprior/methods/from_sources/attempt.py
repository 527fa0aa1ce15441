"""ATTEMPT: a prompt for every text, its task's own plus an attention-weighted sum of frozen source prompts.

Asai, Salehi, Peters, Hajishirzi 2022 (EMNLP, arXiv 2205.11961); docs/rivals.md compares their released code with ours.
Source stage: SPoT's, a prompt for each source. Targets train their own prompt and the attention network, at two speeds.
Parameterisation mixture, rule descent. Released settings are `attempt_as_released`; `attempt` is ours: temperature and
queries free of the backbone's scale, a rate for the attention network that is applied, and the most similar source as
the target's start, where they take the first one that is listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import training_tokens
from promptprior.config.training import setting
from promptprior.errors import SpecError
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.method import AdaptationInit, Episode, FitResult, Method, RunContext, viewed
from promptprior.methods.shared.joint_targets import Joint, grouped, places_of
from promptprior.methods.shared.source_prompts import similarities, source_bank, source_names
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.mixture import NETWORK, Attends, Mixture, init_attention_network
from promptprior.parameterisations.text_queries import Query, pooled
from promptprior.tasks.sampling.batch import Tokens, collate
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Task
from promptprior.train import Run

SAMPLE = 64  # texts of each source that queries are centred on
TARGETS_ONLY = ("start", "probe_steps", "joint_steps")


@dataclass(frozen=True)
class Attempt:
    """An attentional mixture of source prompts and the target's own."""

    start: Literal["similar", "first", "fresh"] = setting(
        "similar", "the target's prompt: the most similar source's, the first source's (as released), or a fresh one"
    )
    probe_steps: int = setting(10, "steps that give a target its embedding (start similar)")
    attends: Attends = setting("all", "all: sources and the target's own prompt (as released); sources")
    query: Query = setting("max", "pool of the text's word embeddings: max (as released) or mean")
    centre: bool = setting(False, "take the mean query of the target's shots from every query: texts differ more")
    rank: int = setting(100, "width of the attention network's bottleneck")
    temperature: float = setting(1.0, "of attention; 1 starts with scores of about one, on any backbone")
    absolute: bool = setting(False, "temperature and queries in absolute numbers (as released)")
    attention_rate: float | None = setting(
        0.003, "rate of the attention network, times the prompt's in embedding scales; none: the prompt's own rate"
    )
    freeze_norm: bool = setting(False, "leave the network's LayerNorm as it starts (as released)")
    attention_steps: int = setting(0, "steps that train the attention network on the sources first")
    joint_steps: int = setting(0, "steps in which all targets of a seed first train one attention network together")
    source_prompts: tuple[Path, ...] = setting((), "prompts that others trained, instead of training on sources")
    source_start: Path | None = setting(None, "the start that given source prompts share; none: their mean")
    name: str = "attempt"
    needs_sources: bool = True
    uses_shots: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.temperature <= 0 or (self.attention_rate is not None and self.attention_rate < 0):
            raise SpecError(
                f"rank {self.rank}, temperature {self.temperature}, attention rate {self.attention_rate} (--rank, "
                "--temperature, --attention-rate): expected at least 1, a positive number, and none below 0"
            )

    # Sources

    def source_view(self) -> Method:
        """SPoT's source prompts; a network trained on sources is this method's own."""
        if not self.attention_steps:
            return self.spot()
        return viewed(self, type(self), TARGETS_ONLY)

    def spot(self) -> Spot:
        """The method that trains the source prompts."""
        return Spot(source_prompts=self.source_prompts, source_start=self.source_start)

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Source prompts and, where it is trained on them, the attention network."""
        taught = self.spot().fit(context, sources, seed)
        return self.with_network(context, sources, seed, taught) if self.attention_steps else taught

    def with_network(self, context: RunContext, sources: Sequence[Task], seed: int, taught: FitResult) -> FitResult:
        """What was taught, with an attention network that served every source, beside its own prompt, as a target."""
        bank = taught.params["prompt"]
        if len(sources) != len(bank):
            raise SpecError(
                f"--options.attention-steps trains on the tasks of the source prompts: {len(bank)} prompts, "
                f"{len(sources)} tasks (--sources)"
            )
        form = self.form(context, taught.diagnostics["sources"])  # type: ignore[arg-type]
        draws = context.mixture(sources, seed)
        params = {**self.network(context, seed, 1), "sources": bank[None], "target": bank[None]}
        if self.centre:
            params["centre"] = self.mean_query(context, [one for pool in draws.pools for one in pool.items[:SAMPLE]])
        key = context.key(self, "network", seed, *(t.fingerprint for t in sources))
        stage = replace(context.settings.source, steps=self.attention_steps)
        lr_multipliers = {**self.lr_multipliers(context), "target": 0.0}
        run = context.descent(key, stage, PromptObjective(context.backbone, form), params, draws, lr_multipliers)
        done = context.train(run, "network")
        # every tensor of a prior has as many copies as there are sources
        network = {name: done.last[name].repeat_interleave(len(bank), dim=0) for name in self.kept}
        return replace(taught, params={**taught.params, **network}, cost=taught.cost + done.cost)

    # Targets

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at its start, with a network that no other episode trains (unless in `joint_steps` before)."""
        form = self.form(context, source_names(priors[0]))
        params = self.started(context, priors, episodes)
        if self.joint_steps:
            params = self.joined(context, form, params, priors, episodes)
        return AdaptationInit(form, params, lr_multipliers=self.lr_multipliers(context))

    def form(self, context: RunContext, names: Sequence[str]) -> Mixture:
        """The mixture of these sources."""
        return Mixture(
            context.backbone,
            context.settings.length,
            names,
            query=self.query,
            attends=self.attends,
            temperature=self.temperature,
            absolute=self.absolute,
        )

    @property
    def kept(self) -> tuple[str, ...]:
        """The tensors that make attention of texts."""
        return (*NETWORK, "centre") if self.centre else NETWORK

    def mean_query(self, context: RunContext, texts: Sequence[Tokens]) -> Float[Tensor, "1 D"]:
        """What texts ask on average: most of what each of them asks (docs/rivals.md)."""
        return pooled(context.backbone, collate(texts), self.query).mean(0, keepdim=True)

    def lr_multipliers(self, context: RunContext) -> dict[str, float]:
        """Rates beside the target prompt's: the network's weights are ratios and know no scale."""
        rate = 1.0 if self.attention_rate is None else self.attention_rate / context.backbone.scale
        norm = 0.0 if self.freeze_norm else rate
        fixed = {"sources": 0.0, "centre": 0.0} if self.centre else {"sources": 0.0}
        return {**fixed, "down": rate, "up": rate, "gain": norm, "shift": norm}

    def network(self, context: RunContext, seed: int, copies: int) -> Params:
        """An untrained attention network, the same in every copy."""
        made = init_attention_network(context.backbone.width, self.rank, generator("attention", seed))
        frozen = context.backbone.frozen
        return {n: v.to(frozen.device, frozen.prompt_dtype).repeat(copies, *[1] * v.dim()) for n, v in made.items()}

    def started(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> Params:
        """The parameters that each episode starts from."""
        frozen = context.backbone.frozen
        banks = [source_bank(context, prior)[0] for prior in priors]
        if self.attention_steps:
            networks = [{name: prior.params[name][:1].to(frozen.device) for name in self.kept} for prior in priors]
        else:
            networks = [self.fresh(context, e) for e in episodes]
        params = {
            **{name: torch.cat([network[name] for network in networks]) for name in self.kept},
            "sources": torch.stack(banks),
            "target": self.target_starts(context, priors, banks, episodes)[:, None],
        }
        return {name: value.to(frozen.prompt_dtype) for name, value in params.items()}

    def fresh(self, context: RunContext, episode: Episode) -> Params:
        """An episode's untrained network, centred on its shots."""
        network = self.network(context, episode.seed, 1)
        if not self.centre:
            return network
        return {
            **network,
            "centre": self.mean_query(context, training_tokens(context.backbone, episode.task, episode.shots.train)),
        }

    def target_starts(
        self, context: RunContext, priors: Sequence[Prior], banks: Sequence[Tensor], episodes: Sequence[Episode]
    ) -> Float[Tensor, "E L D"]:
        """The prompt that each target starts from."""
        if self.start == "fresh":
            return torch.stack([context.start(e.seed, e.task.name, labels=e.task.label_names) for e in episodes])
        if self.start == "first":
            return torch.stack([bank[0] for bank in banks])
        task_similarity = similarities(context, priors, episodes, self.probe_steps)
        return torch.stack([bank[like.argmax()] for bank, like in zip(banks, task_similarity, strict=True)])

    def joined(
        self, context: RunContext, form: Mixture, params: Params, priors: Sequence[Prior], episodes: Sequence[Episode]
    ) -> Params:
        """The parameters after all targets of a group (one prior, k and seed) have shared an attention network."""
        groups = grouped(places_of(priors), episodes)
        done = context.train(self.joint_run(context, form, params, groups, episodes), "joint").last
        after = {name: value.clone() for name, value in params.items()}
        for copy, members in enumerate(groups):
            after["target"][members, 0] = done["target"][copy, : len(members)]
            for name in self.kept:
                after[name][members] = done[name][copy]
        return after

    def joint_run(
        self,
        context: RunContext,
        form: Mixture,
        params: Params,
        groups: Sequence[Sequence[int]],
        episodes: Sequence[Episode],
    ) -> Run:
        """Every group a copy, its targets the copy's tasks, one network for all of them."""
        most = max(map(len, groups))
        filled = torch.tensor([[*members, *[members[0]] * (most - len(members))] for members in groups])
        shared = {name: value[filled[:, 0]] for name, value in params.items() if name != "target"}
        if self.centre:
            shared["centre"] = torch.stack([params["centre"][members].mean(0) for members in groups])
        joint = Joint(context, episodes, groups, self.joint_steps, self.lr_multipliers(context))
        return joint.run(self, form, {**shared, "target": params["target"][filled, 0]})


@dataclass(frozen=True)
class AttemptAsReleased(Attempt):
    """The released code's attention: temperature 2087, queries as they are, one rate for all, a fixed LayerNorm."""

    start: Literal["similar", "first", "fresh"] = setting(
        "first", "the target's prompt: the first source's, the most similar one's, or a fresh one"
    )
    temperature: float = setting(2087.0, "of attention")
    absolute: bool = setting(True, "temperature and queries in absolute numbers")
    attention_rate: float | None = setting(
        None, "rate of the attention network, times the prompt's in embedding scales; none: the prompt's own rate"
    )
    freeze_norm: bool = setting(True, "leave the network's LayerNorm as it starts")
    name: str = "attempt_as_released"
