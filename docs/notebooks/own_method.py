# %% [markdown]
# # Add your own method
#
# A method is a frozen dataclass that says where targets start. Training, selection on dev shots, scoring, artifacts and
# cost are the same for all methods. This one is prompt tuning that starts near the mean of the target's own words.

# %%
import csv
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import promptprior as pp
from promptprior.errors import SpecError
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext, fact, option
from promptprior.tasks.sampling.draws import generator


@dataclass(frozen=True)
class OwnWords(Recipe):
    """A prompt for every target that starts at the mean embedding of its training texts."""

    name: str = fact("own_words")
    spread: float = option(0.5, "noise around the mean, in embedding scales", least=0)

    def init(self, context: RunContext, priors: Sequence[pp.Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """One copy per episode; only `shots.train` may be read, for dev selects and test is for the end."""
        frozen, form, starts = context.backbone.frozen, context.direct(), []
        for episode in episodes:
            ids = [i for tokens in context.tokens(episode.task, episode.shots.train) for i in tokens.text]
            mean = frozen.embed(torch.tensor(ids)).to(frozen.prompt_dtype).mean(0)  # [D]
            noise = torch.randn(form.length, len(mean), generator=generator("own_words", episode.seed))  # [L, D]
            starts.append(mean + self.spread * context.backbone.scale * noise.to(mean))
        return AdaptationInit(form, {"prompt": torch.stack(starts)})  # [E, L, D]


# %% [markdown]
# It works at once with everything that takes a method. Here it adapts beside prompt tuning, on equal shots.

# %%
folder = Path(tempfile.mkdtemp())
words = [f"{a}{b}{c}{d}" for a in "bcdf" for b in "aeiou" for c in "lmn" for d in "ae"]
with (folder / "ends.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("text", "label"), *((w, "yes" if w[-1] == "a" else "no") for w in words)])

backbone = pp.load(os.environ.get("BACKBONE", "smollm2"), dtype="float32")
task = pp.load_task(folder / "ends.csv")
settings = pp.Settings(length=6, target=pp.Training(steps=12, batch_size=8))
episodes = [pp.make_episode(task, k=4, seed=seed) for seed in (13, 21)]
for method in (pp.make_method("prompt_tuning"), OwnWords(), OwnWords(name="own_words_tight", spread=0.0)):
    adapted = pp.adapt(method, episodes, backbone, None, settings)
    scores = [result.scores["accuracy"] for result in pp.score_on_test(backbone, adapted)]
    print(f"{method.name:16}", " ".join(f"{score:.3f}" for score in scores), f"{adapted[0].cost.tokens} tokens")

# %% [markdown]
# A wrong option is told by its flag, before any work:

# %%
try:
    OwnWords(spread=-1.0)
except SpecError as error:
    print(error)

# %% [markdown]
# To use it by name in `compare`, enter it for the session, `pp.METHODS["own_words"] = OwnWords()`, or let a package of
# yours declare it by an entry point ([extending](../extending.md)). The contract suite
# (`tests/methods/test_contract.py`) then runs over it too.
