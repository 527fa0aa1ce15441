# %% [markdown]
# # Your CSV in ten lines
#
# A CSV with the columns `text` and `label` is a task. Here is one with 120 made-up support tickets; yours would be
# there already.

# %%
import csv
import os
import tempfile
from itertools import product
from pathlib import Path

import promptprior as pp

folder = Path(tempfile.mkdtemp())
teams = {
    "billing": (["the invoice", "my payment", "the refund", "the price"], ["is too high", "never came", "is wrong"]),
    "technical": (["the app", "the login", "the export", "the search"], ["crashes", "shows nothing", "is slow"]),
}
starts = ["Hello,", "Hi,", "Dear team,", "Once more,", "Please help,"]
with (folder / "tickets.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["text", "label"])
    for team, (subjects, troubles) in teams.items():
        rows.writerows((f"{start} {s} {t}", team) for start, s, t in product(starts, subjects, troubles))

# %% [markdown]
# The ten lines. `auto` adapts several methods to 4 examples per class, and 4 more choose among them or blend them. Test
# rows are seen once, at the end.

# %%
backbone = pp.load(os.environ.get("BACKBONE", "smollm2"), dtype="float32")
task = pp.load_task(folder / "tickets.csv")
best = pp.auto(task, backbone, shots=4, seed=13, candidates=("constant", "linear_probe", "knn"))
[test] = pp.score_on_test(backbone, [best])
best.prompt.save_pretrained(folder / "prompt")

prompt = pp.Prompt.from_pretrained(folder / "prompt", backbone.card)
asked = task.split("test")[:3]
for example, answer in zip(asked, pp.predict(prompt, task, backbone, asked), strict=True):
    print(f"{example.text.splitlines()[0]:38}{answer.text:11}(right: {example.target})")

# %% [markdown]
# What was chosen, how far ahead it is on examples that nothing learned from, and the score on the test rows. With so
# few rows one text more or less is a large step.

# %%
print(best.prompt.header.scores["auto"]["says"])
print(f"held-out {best.dev_score:.2f}, test {test.scores['accuracy']:.2f} of {len(task.split('test'))} rows")

# %% [markdown]
# On the command line the same is
#
# ```bash
# promptprior adapt --method auto --target tickets.csv --shots 4 --output runs/tickets
# promptprior predict --prompt runs/tickets --input new.csv --output answered.csv
# ```
