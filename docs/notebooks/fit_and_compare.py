# %% [markdown]
# # Fit a prior and compare
#
# Does a prior help on your task? Three small tasks about words: two are sources, one is the target.

# %%
import csv
import os
import tempfile
from pathlib import Path

import promptprior as pp

folder = Path(tempfile.mkdtemp())
vowels, letters = "aeiou", "bcdfgklmnprst"
words = [a + b + c + d for a in letters for b in vowels for c in "bcls" for d in "ae"]
rules = {
    "ends": lambda word: "a" if word.endswith("a") else "e",
    "third": lambda word: "early" if word[2] in "bc" else "late",
    "first": lambda word: "early" if word[0] in "bcdfgk" else "late",
}
for place, (name, rule) in enumerate(rules.items()):
    own = words[place::3]  # tasks share no text: `compare` leaves out what a source shares with a target
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((word, rule(word)) for word in own)])

# %% [markdown]
# By hand: fit a prior on the sources, adapt it to an episode (a target, k examples per class, a seed), and score the
# prompt on test rows. Steps are few here so that the page builds in seconds.

# %%
backbone = pp.load(os.environ.get("BACKBONE", "smollm2"), dtype="float32")
settings = pp.Settings(length=4, source=pp.Training(steps=10), target=pp.Training(steps=10))
sources = [pp.load_task(folder / f"{name}.csv") for name in ("ends", "third")]
target = pp.load_task(folder / "first.csv")

method = pp.make_method("multitask")
prior = pp.fit(method, sources, backbone, settings, seed=13)
[adapted] = pp.adapt(method, [pp.make_episode(target, k=4, seed=13)], backbone, prior, settings)
[result] = pp.score_on_test(backbone, [adapted], limit=40)
print(prior.header.method, {name: tuple(value.shape) for name, value in prior.params.items()}, result.scores)

# %% [markdown]
# One run says little. `compare` runs methods on the same draws of several seeds and writes a report, with intervals
# over seeds. `steps` sets both stages.

# %%
plan = pp.Plan(
    methods=("zero_shot", "prompt_tuning", "multitask"),
    sources=(str(folder / "ends.csv"), str(folder / "third.csv")),
    targets=(str(folder / "first.csv"),),
    shots=(4,),
    seeds=(13, 21),
    backbone=os.environ.get("BACKBONE", "smollm2"),
    dtype="float32",
    steps=10,
    test_limit=40,
    output=folder / "first",
    settings=pp.Settings(length=4),
)
report = pp.compare(plan)
print(report.name, f"{report.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# The page is one file that needs no network. The rows that it is made from are beside it. A method that
# is no better than the best constant answer has learned nothing, whatever its score.

# %%
from promptprior.report.results import read_rows

for row in read_rows(folder / "first" / "results.jsonl"):
    print(f"{row.method:14} k = {row.k}  seed {row.seed:2}  {row.metric} {row.score:.3f} of {row.n_test} rows")
print(f"the best constant answer: {row.constant:.3f}")
