# %% [markdown]
# # Serve many prompts
#
# A prompt is only an input of the frozen model, so requests with different prompts share one batch. Three tasks, three
# prompts, one model.

# %%
import csv
import os
import tempfile
import time
from pathlib import Path

import promptprior as pp
from promptprior.evaluate import PromptRequest, answer_requests

folder = Path(tempfile.mkdtemp())
questions = {"starts": ("a", "b"), "season": ("summer", "winter"), "answer": ("yes", "no")}
words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "lmnr"]
for name, labels in questions.items():
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((w, labels[w[0] > "d"]) for w in words)])

# %% [markdown]
# The three prompts are trained as three copies of one run.

# %%
backbone = pp.load(os.environ.get("BACKBONE", "smollm2"), dtype="float32")
settings = pp.Settings(length=8, target=pp.Training(steps=8, batch_size=8))
tasks = [pp.load_task(folder / f"{name}.csv") for name in questions]
episodes = [pp.make_episode(task, k=4, seed=13) for task in tasks]
prompts = [adapted.prompt for adapted in pp.adapt(pp.make_method("prompt_tuning"), episodes, backbone, None, settings)]

# %% [markdown]
# Thirty requests, ten behind each prompt, in one call. Each prompt's keys and values are computed once, whatever the
# number of texts behind it; the meter counts tokens that the model read.

# %%
requests = [PromptRequest(p, task, task.split("test")[:10]) for p, task in zip(prompts, tasks, strict=True)]


def ask(parts: list[list[PromptRequest]]) -> tuple[list[str], int, float]:
    """What is answered, the tokens read, and the processor's seconds."""
    read, started = backbone.meter.tokens, time.process_time()
    answers = [answer for part in parts for answer in answer_requests(backbone, part, reads_targets=False)]
    texts = [prediction.text for answer in answers for prediction in answer.predictions]
    return texts, backbone.meter.tokens - read, time.process_time() - started


together, tokens, seconds = ask([requests])
one_by_one = [[PromptRequest(r.prompt, r.task, [example])] for r in requests for example in r.examples]
single, single_tokens, single_seconds = ask(one_by_one)
print(f"one batch:  {tokens:5} tokens, {1000 * seconds:6.1f} ms")
print(f"one by one: {single_tokens:5} tokens, {1000 * single_seconds:6.1f} ms")
print("same answers:", together == single)

# %% [markdown]
# `pp.evaluate(prompt, task, backbone)` asks one prompt and scores it; `pp.predict` answers texts without labels.
# [Serve it](../how_to/serve_it.md) has the ways out of Python.

# %%
for prompt, task in zip(prompts, tasks, strict=True):
    result = pp.evaluate(prompt, task, backbone, limit=20)
    print(f"{task.name:8} accuracy {result.scores['accuracy']:.3f}, {result.nll:.2f} nats")
