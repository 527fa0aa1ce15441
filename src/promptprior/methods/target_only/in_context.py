"""In-context learning: the same k examples per class stand before every text; nothing is trained.

Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165). Demonstrations are a prompt made of the
embeddings of their tokens, so the engine computes them once for all rows, and the artifact is an ordinary prompt.
Which are shown where not all fit, and in which order, is drawn by the seed. Dev shots are scored but choose nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone, training_tokens
from promptprior.errors import DataError
from promptprior.methods.method import AdaptationInit, Episode, FitResult, RunContext
from promptprior.methods.target_only.weight_tuning import no_prior
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.sampling.draws import class_of, generator
from promptprior.tasks.task import Example, Task

LOOKED_AT = 1000  # training texts whose length is measured
ROOM = 1.5  # times the longest of them: test texts, which nobody looks at yet, may be longer


@dataclass(frozen=True)
class InContext:
    """A prompt of demonstrations, as many as fit the backbone's context."""

    separator: str = field(default="\n\n", metadata={"help": "text after every demonstration"})
    most: int | None = field(default=None, metadata={"help": "at most this many demonstrations"})
    name: str = "in_context"
    needs_sources: bool = False
    uses_shots: bool = True

    @property
    def one_by_one(self) -> bool:
        """Prompts of episodes differ in length."""
        return True

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Nothing to learn. Raises SpecError."""
        raise no_prior(self.name)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The demonstrations of one episode, as a prompt."""
        [episode] = episodes
        frozen = context.backbone.frozen
        shown, ids = self.shown(context.backbone, episode)
        prompt = frozen.embed(torch.tensor(ids)).detach().to(frozen.prompt_dtype)
        said = {"demonstrations": len(shown), "left_out": len(episode.shots.train) - len(shown)}
        return AdaptationInit(
            Direct(len(ids), context.backbone.width), {"prompt": prompt[None]}, trains=False, variants=(said,)
        )

    def shown(self, backbone: Backbone, episode: Episode) -> tuple[list[Example], list[int]]:
        """The demonstrations that fit, in the order they are shown, and their tokens.

        Raises DataError when the context has no room for one.
        """
        order = drawn(episode)[: self.most]
        room = space(backbone, episode.task)
        for count in range(len(order), 0, -1):
            some = shuffled(order[:count], "order", episode)
            ids = self.tokens(backbone, episode.task, some)
            if room is None or len(ids) <= room:
                return some, ids
        raise DataError(
            f"task {episode.task.name!r}: no demonstration fits into the {room} tokens that the context of "
            f"{backbone.card.name} leaves; use shorter texts, or another method"
        )

    def tokens(self, backbone: Backbone, task: Task, shown: Sequence[Example]) -> list[int]:
        """Demonstrations as the tokens they have in front of another text.

        Tokenizers may join the last separator differently where a text follows, so one does.
        """
        frozen = backbone.frozen
        text = "".join(self.demonstration(task, e) for e in shown)
        after = shown[0].text.lstrip()
        whole = frozen.without_end(frozen.tokenizer(text + after).input_ids)
        end = frozen.alone(after)
        if end and whole[-len(end) :] == end:
            return whole[: -len(end)]
        return frozen.without_end(frozen.tokenizer(text).input_ids)

    def demonstration(self, task: Task, example: Example) -> str:
        """One text with its answer, joined as training joins them."""
        bare = example.text.rstrip()
        return bare + (example.text[len(bare) :] or task.target_delimiter) + example.target + self.separator


def drawn(episode: Episode) -> list[Example]:
    """The training shots, those to keep first: classes take turns, each shuffled by the seed."""
    by_class: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(episode.shots.train, key=lambda e: e.id):
        by_class[str(class_of(episode.task, example))].append(example)
    turns = zip_longest(*(shuffled(some, name, episode) for name, some in sorted(by_class.items())))
    return [example for example in chain.from_iterable(turns) if example is not None]


def shuffled(examples: Sequence[Example], name: str, episode: Episode) -> list[Example]:
    """Examples in a random order that the episode's seed decides."""
    g = generator("in_context", episode.seed, episode.task.name, name)
    return [examples[i] for i in torch.randperm(len(examples), generator=g).tolist()]


def space(backbone: Backbone, task: Task) -> int | None:
    """Tokens that the longest text with its answer leaves of the context; None where the context has no end."""
    context = backbone.frozen.context
    if context is None:
        return None
    longest = max(map(len, training_tokens(backbone, task, task.split("train")[:LOOKED_AT])))
    answer = 0 if task.is_choice else task.max_gen_toks
    return context - int(ROOM * longest) - answer
