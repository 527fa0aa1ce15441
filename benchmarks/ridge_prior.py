"""Whether a prompt helps a linear head: a meta-learned one against none, an untrained one and a multi-task one.

    python benchmarks/ridge_prior.py --data FOLDER [--steps N] [--only PROMPT|PRIOR ...] [--json FILE] [--folder FOLDER]

Every head is `linear` and reads the site that ridge_prior trains for, the mean of the middle layer. It is fitted to all
2k shots of each class of the library's draws. Accuracy is over 200 balanced test rows, the mean over draws. Sources and
targets share no text (overlaps.json); none of the test rows chose anything. The multi-task prompt has as many source
steps, and about as many tokens. About six minutes of CPU on one core.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from promptprior.adapt import make_episode
from promptprior.artifacts.artifact import Prior, artifact_folder
from promptprior.backbone import Site, load, training_tokens
from promptprior.config.training import Settings, Training
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.heads.head import Readout
from promptprior.heads.linear import Linear
from promptprior.methods import make_method
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.tasks import collate
from promptprior.tasks.loading.load import load_task
from promptprior.tasks.task import Example, Task

SOURCES = (
    "yahoo_answers_topics",
    "atis_intent",
    "mpqa",
    "sms_spam",
    "hate_speech_offensive",
    "google_wellformed_query",
)
TARGETS = ("trec", "cr", "tweet_eval_emotion")
DRAWS, KS, LENGTH, TESTED = (13, 21, 42), (8, 16), 20, 200
OPTIONS = {"units_per_step": 2, "support": 4, "query": 2, "most_classes": 4}


def balanced(task: Task, count: int) -> list[Example]:
    """The first test rows of each class, `count` in all where each class has enough."""
    classes, seen, kept = len(task.label_names), Counter[object](), []
    for example in task.split("test"):
        seen[example.label] += 1
        if seen[example.label] <= -(-count // classes):
            kept.append(example)
    return kept


def watch(stage: str) -> Any:
    """Prints every tenth step."""
    start = time.monotonic()

    def step(done: int, steps: int, info: Any) -> None:
        if done % 10 == 0 or done == steps:
            seconds = time.monotonic() - start
            print(f"  {stage} {done}/{steps} loss {float(info['loss']):.4f} {seconds:.0f} s", flush=True)

    return step


def main() -> None:
    """Fit what is asked for, answer, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--only", nargs="*", default=["none", "one_token", "start", "ridge_prior", "multitask"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()

    backbone = load("smollm2")
    source = Training(steps=given.steps, batch_size=8, learning_rates=(given.rate,), eval_every=0)
    settings = Settings(length=LENGTH, source=source)
    sources, targets = ([load_task(given.data / name) for name in names] for names in (SOURCES, TARGETS))
    site = Site(backbone.layers // 2, "mean")
    head = Linear(layers=(site.layer,), poolings=(site.pooling,))
    episodes = [make_episode(task, k, seed) for task in targets for k in KS for seed in DRAWS]
    tested = {task.name: balanced(task, TESTED) for task in targets}
    print(f"{site}; test rows: { {name: len(rows) for name, rows in tested.items()} }", flush=True)

    results: list[dict[str, Any]] = []
    for name in given.only:
        begin, diagnostics = time.process_time(), dict[str, Any]()
        control = RunControl(given.folder and given.folder / f"{name}-{given.seed}", watch)
        if artifact_folder(Path(name)).is_dir():
            prompt = Prior.from_pretrained(name, backbone.card).params["prompt"][0]
        elif name == "none":
            prompt = torch.zeros(0, backbone.width)
        elif name == "one_token":  # the end-of-text token alone: a place for attention to go to
            ids = torch.tensor([backbone.frozen.tokenizer.eos_token_id])
            prompt = backbone.frozen.embed(ids).float()
        elif name == "start":
            prompt = make_run_context(backbone, settings, control).initial_prompt(given.seed, "ridge_prior")
        else:
            method = make_method(name, OPTIONS if name == "ridge_prior" else {})
            prior = fit(method, sources, backbone, settings, given.seed, control)
            prompt, diagnostics = prior.params["prompt"][0], dict(prior.header.diagnostics)
        fitted = time.process_time() - begin

        begin, states = time.process_time(), dict[tuple[str, str], torch.Tensor]()
        objective = PromptObjective(backbone, Direct(len(prompt), backbone.width))
        for task in targets:
            shots = [x for e in episodes if e.task is task for x in (*e.shots.train, *e.shots.dev)]
            texts = sorted({x.id: x for x in (*shots, *tested[task.name])}.values(), key=lambda x: len(x.text))
            for first in range(0, len(texts), 64):
                some = texts[first : first + 64]
                with torch.no_grad():
                    read = objective.text_states(
                        {"prompt": prompt[None]}, collate(training_tokens(backbone, task, some)), [site]
                    )
                states |= {(task.name, x.id): own.double() for x, own in zip(some, read, strict=True)}
        cells = defaultdict[tuple[str, int], list[tuple[float, float]]](list)
        for e in episodes:
            readouts = []
            for rows in ((*e.shots.train, *e.shots.dev), tested[e.task.name]):
                none = torch.zeros(len(rows), len(e.task.label_names), dtype=torch.float64)
                labels = torch.tensor([x.label for x in rows])
                readouts.append((Readout(none, torch.stack([states[e.task.name, x.id] for x in rows])), labels))
            (shown, taught), (asked, right) = readouts
            nll = head.choice_nll(head.fit(shown, taught, None), asked)
            accuracy = (nll.argmin(1) == right).double().mean()
            cells[e.task.name, e.k].append((float(accuracy), float(nll.gather(1, right[:, None]).mean())))
        for (task_name, k), values in cells.items():
            row = {"prompt": name, "seed": given.seed, "task": task_name, "k": k}
            results.append({**row, "accuracy": [a for a, _ in values], "nll": [n for _, n in values]})
        every = [value for values in cells.values() for value in values]
        line = "  ".join(f"{task}/{k} {mean(a for a, _ in values):.3f}" for (task, k), values in cells.items())
        seconds = f"CPU: {fitted:.0f} s fit, {time.process_time() - begin:.0f} s heads"
        print(
            f"{Path(name).name:12} {mean(a for a, _ in every):.3f} nll {mean(n for _, n in every):.3f}",
            f"{line}  ({seconds})",
            flush=True,
        )
        if diagnostics:
            print("  ", {key: diagnostics.get(key) for key in ("strength", "scale", "source_loss", "cost")}, flush=True)
        if given.json:
            given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
