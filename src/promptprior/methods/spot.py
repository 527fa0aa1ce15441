"""SPoT: a prompt for every source; a target starts from the sources most like it.

Vu et al. 2022, "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer" (arXiv 2110.07904). A task's
embedding is the mean of its prompt's tokens after a short training; similarity is the cosine. Parameterisation direct,
rule descent; all source prompts train as copies of one run. Their settings: 262,144 steps, batch 32, rate 0.3; probing
after 10,000 steps. Ours: the cosine is taken on what training ADDED to the start (all prompts share one start per
seed), because at few-shot step counts the start dominates the prompt itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from promptprior.backbone import training_tokens
from promptprior.methods.method import Beginning, Episode, Lab, Learned, spent, stacked
from promptprior.notation import Float, Tensor
from promptprior.prompts.artifact import Prior
from promptprior.prompts.parameterisation import Direct
from promptprior.rules.descent import Descent
from promptprior.rules.objective import PromptObjective
from promptprior.rules.optimiser import optimiser
from promptprior.tasks.draw import EpisodeDraws, Pool
from promptprior.tasks.task import Task
from promptprior.train import Run


@dataclass(frozen=True)
class Spot:
    """Source prompts retrieved by task embedding.

    `retrieval`: "best" starts from the most similar source, "weighted" from the cosine-weighted mean of the `top` most
    similar. `probe_steps`: steps of the short target training that gives the target its embedding.
    """

    retrieval: Literal["best", "weighted"] = field(
        default="best", metadata={"help": "start from the best source, or the weighted mean of the top ones"}
    )
    top: int = field(default=3, metadata={"help": "sources in the weighted mean"})
    probe_steps: int = field(default=10, metadata={"help": "steps that give a target its embedding"})
    name: str = "spot"
    needs_sources: bool = True
    uses_shots: bool = True

    def learn(self, lab: Lab, sources: Sequence[Task], seed: int) -> Learned:
        """Train one prompt per source, all as copies of one run from one start."""
        form = Direct(lab.settings.length, lab.backbone.width)
        stage = lab.settings.source
        start = lab.start(seed, self.name)
        per_source = max(1, stage.batch_size // len(sources))  # the budget in rows is multitask's
        pools = [lab.pool(task, task_index=i, copy=i) for i, task in enumerate(sources)]
        rate = stage.rate(stage.learning_rates[:1], lab.backbone.scale)
        run = Run(
            key=lab.key(self, seed, *(t.fingerprint for t in sources)),
            objective=PromptObjective(lab.backbone, form),
            rule=Descent(optimiser(stage.optimiser, rate, stage.weight_decay), stage.clip),
            params=stacked([start] * len(sources)),
            draws=EpisodeDraws(pools, per_source, [seed] * len(sources)),
            steps=stage.steps,
        )
        done = lab.train(run, "source")
        params = {**done.params, "start": start[None].expand(len(sources), -1, -1).clone()}
        return Learned(form, params, {"sources": [t.name for t in sources]}, **spent(done))  # type: ignore[arg-type]

    def begin(self, lab: Lab, priors: Sequence[Prior], episodes: Sequence[Episode]) -> Beginning:
        """Embed every episode's target by a short training, then start from the sources most like it."""
        device = lab.backbone.frozen.device
        form = Direct(lab.settings.length, lab.backbone.width)
        begun = stacked([prior.params["start"][0].to(device) for prior in priors])
        probed = lab.train(self.probe(lab, form, begun, episodes), "probe").last["prompt"]
        starts = []
        for prior, before, after in zip(priors, begun["prompt"], probed, strict=True):
            bank = prior.params["prompt"].to(device)
            starts.append(self.retrieve(bank, cosines(bank - before, after - before)))
        return Beginning(form, stacked(starts))

    def probe(self, lab: Lab, form: Direct, begun: dict[str, Tensor], episodes: Sequence[Episode]) -> Run:
        """The short training of every episode's target from the sources' own start."""
        stage = replace(lab.settings.target, steps=self.probe_steps, schedule="constant")
        rate = stage.rate(stage.learning_rates[:1], lab.backbone.scale)
        pools = [
            Pool(training_tokens(lab.backbone, e.task, e.shots.train), task=0, copy=c) for c, e in enumerate(episodes)
        ]
        return Run(
            key=lab.key(self, "probe", *(e.key for e in episodes)),
            objective=PromptObjective(lab.backbone, form),
            rule=Descent(optimiser(stage.optimiser, rate, stage.weight_decay), stage.clip),
            params=begun,
            draws=EpisodeDraws(pools, stage.batch_size, [e.seed for e in episodes]),
            steps=stage.steps,
        )

    def retrieve(self, bank: Float[Tensor, "S L D"], similarity: Float[Tensor, " S"]) -> Float[Tensor, "L D"]:
        """The start that retrieval makes of source prompts and their similarity to the target."""
        if self.retrieval == "best":
            return bank[similarity.argmax()]
        weights, places = similarity.clamp(min=0).topk(min(self.top, len(bank)))
        weights = weights + 1e-6  # sources that are all unlike count alike
        return torch.tensordot(weights / weights.sum(), bank[places], dims=1)


def cosines(bank: Float[Tensor, "S L D"], one: Float[Tensor, "L D"]) -> Float[Tensor, " S"]:
    """Cosine of average tokens: the task embeddings of Vu et al."""
    return torch.cosine_similarity(bank.mean(1), one.mean(0)[None], dim=1)
