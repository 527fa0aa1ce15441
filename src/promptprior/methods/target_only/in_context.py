"""In-context learning: the same k examples per class stand before every text; nothing is trained.

Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165). Demonstrations are a prompt made of the
embeddings of their tokens, so the engine computes them once for all rows, and the artifact is an ordinary prompt.
Which are shown where not all fit, and in which order, is drawn by the seed. Dev shots are scored but choose nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, zip_longest
from typing import ClassVar

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone, training_tokens
from promptprior.errors import DataError
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, RunContext
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.sampling.draws import class_of, generator
from promptprior.tasks.task import Example, Task

MEASURED = 1000  # training texts whose length is measured
JOINED = 2  # tokens that a demonstration may save where it stands behind another
ROOM = 1.5  # times the longest of them: test texts, which nobody reads yet, may be longer


@dataclass(frozen=True)
class InContext(Recipe):
    """A prompt of demonstrations, as many as fit the backbone's context."""

    name: str = fact("in_context")
    separator: str = option("\n\n", "text after every demonstration")
    most: int | None = option(None, "at most this many demonstrations", least=1)

    trains: ClassVar[bool] = False
    adapts_one_by_one: ClassVar[bool] = True  # prompts of episodes differ in length

    def shown_shots(self, shots: int) -> int:
        """All that may be shown."""
        return shots if self.most is None else min(shots, self.most)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The demonstrations of one episode, as a prompt. Raises DataError when the context has no room for one."""
        [episode] = episodes
        frozen = context.backbone.frozen
        shown, ids = self.demonstrations(context.backbone, episode)
        prompt = frozen.embed(torch.tensor(ids)).detach().to(frozen.prompt_dtype)  # [L, D]
        variant = {"demonstrations": len(shown), "left_out": len(episode.shots.train) - len(shown)}
        return AdaptationInit(Direct(len(ids), context.backbone.width), {"prompt": prompt[None]}, variants=(variant,))

    def demonstrations(self, backbone: Backbone, episode: Episode) -> tuple[list[Example], list[int]]:
        """The demonstrations that fit, in the order they are shown, and their tokens.

        Classes take turns, each shuffled by the seed, so that those left out are spread over classes. Raises DataError
        when the context has no room for one.
        """
        by_class: dict[str, list[Example]] = defaultdict(list)
        for example in sorted(episode.shots.train, key=lambda e: e.id):
            by_class[str(class_of(episode.task, example))].append(example)
        turns = zip_longest(*(_shuffled(examples, name, episode) for name, examples in sorted(by_class.items())))
        order = [example for example in chain.from_iterable(turns) if example is not None][: self.most]
        room, count = demonstration_room(backbone, episode.task), len(order)
        while count:
            shown = _shuffled(order[:count], "order", episode)
            ids = self.tokens(backbone, episode.task, shown)
            if room is None or len(ids) <= room:
                return shown, ids
            if count == len(order):  # each by itself says about how many fit; joined they may save a token or two each
                sizes = (len(self.tokens(backbone, episode.task, [example])) - JOINED for example in order)
                count = min(count, 1 + sum(total <= room for total in accumulate(sizes)))
            count -= 1
        raise DataError(
            f"task {episode.task.name!r}: no demonstration fits into the {room} tokens that the context of "
            f"{backbone.card.name} leaves; use shorter texts, or another method"
        )

    def tokens(self, backbone: Backbone, task: Task, shown: Sequence[Example]) -> list[int]:
        """Demonstrations as the tokens they have in front of another text, joined as training joins text and answer.

        Tokenizers may join the last separator differently where a text follows, so one does.
        """
        frozen, text = backbone.frozen, ""
        for example in shown:
            bare = example.text.rstrip()
            text += bare + (example.text[len(bare) :] or task.target_delimiter) + example.target + self.separator
        after = shown[0].text.lstrip()
        whole = frozen.without_end(frozen.tokenizer(text + after).input_ids)
        end = frozen.alone(after)
        if end and whole[-len(end) :] == end:
            return whole[: -len(end)]
        return frozen.without_end(frozen.tokenizer(text).input_ids)


def demonstration_room(backbone: Backbone, task: Task) -> int | None:
    """How many tokens the longest text with its answer leaves of the context; None where that has no end."""
    if (context := backbone.frozen.context) is None:
        return None
    longest = max(map(len, training_tokens(backbone, task, task.split("train")[:MEASURED])))
    return context - int(ROOM * longest) - (0 if task.is_choice else task.max_gen_toks)


def _shuffled(examples: Sequence[Example], name: str, episode: Episode) -> list[Example]:
    g = generator("in_context", episode.seed, episode.task.name, name)
    return [examples[i] for i in torch.randperm(len(examples), generator=g).tolist()]


ARMS = (InContext(), InContext(name="in_context_contextual", head="contextual"))
