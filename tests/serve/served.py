"""A folder of sixteen prompts of all kinds for a tiny model, and a server of it without a network."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

import promptprior as pp
from promptprior.adapt import adapt, make_episode
from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.blending import blended
from promptprior.backbone import Backbone
from promptprior.config.training import Training
from promptprior.evaluate import prompt_objective
from promptprior.fit import fit
from promptprior.methods import make_method
from promptprior.serve.app import Server
from promptprior.serve.counters import Metrics
from promptprior.serve.gate import Gate
from promptprior.serve.limits import Limits
from promptprior.serve.model_worker import ModelWorker
from promptprior.serve.prompt_folder import PromptFolder
from promptprior.tasks.task import Task
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, short, words

LABELS = ("yes", "no")


@cache
def backbone() -> Backbone:
    return tiny("llama")  # in float64


@cache
def task(folder: Path, name: str) -> Task:
    """A task of a file: of two labels, or free text."""
    shown = words(name, 60)
    answers = [LABELS[word[0] > "m"] for word in shown] if name == "words" else [word[:3] for word in shown]
    columns = "text,label" if name == "words" else "prompt,completion"
    (folder / f"{name}.csv").write_text(
        "\n".join([columns, *(f"{word},{answer}" for word, answer in zip(shown, answers, strict=True))]) + "\n"
    )
    return pp.load_task(folder / f"{name}.csv")


def adapted(name: str, target: Task, seed: int = 13, prior: Any = None) -> Prompt:
    method = make_method(name)
    [one] = adapt(method, [make_episode(target, 4, seed)], backbone(), prior, short())
    return one.prompt


def make_prompts(folder: Path) -> Path:
    """folder/prompts with a folder for each of sixteen prompts: plain ones, heads, prefixes, offsets, a bank, a
    mixture, blends and two that write."""
    choice, free = task(folder, "words"), task(folder, "shorten")
    made = {f"plain-{seed}": adapted("prompt_tuning", choice, seed) for seed in (13, 21, 42)}
    made |= {f"prefix-{seed}": adapted("prefix_tuning", choice, seed) for seed in (13, 21)}
    for name in (
        "zero_shot",
        "linear_probe",
        "zero_shot_calibrated",
        "prompted_linear",
        "dept",
        "residual_prompt_tuning",
    ):
        made[name.replace("_", "-")] = adapted(name, choice)
    sources = [choice_task("a", always(0)), choice_task("b", always(1))]
    for name in ("tpt", "attempt"):
        prior = fit(make_method(name), sources, backbone(), short(source=Training(steps=2, batch_size=4)))
        made[name] = adapted(name, choice, prior=prior)
    members = [made["plain-13"], made["linear-probe"], made["zero-shot"]]
    made["blend"] = blended(members[0].header, members, (0.5, 0.3, 0.2), (1.0, 2.0, 0.5))
    made |= {f"writer-{seed}": adapted("prompt_tuning", free, seed) for seed in (13, 21)}
    for name, prompt in made.items():
        prompt.save_pretrained(folder / "prompts" / name)
    return folder / "prompts"


@dataclass
class Running:
    """A server, a client of it, and what it logged."""

    server: Server
    app: Gate
    client: TestClient
    lines: list[dict[str, Any]] = field(default_factory=list)

    def predict(self, model: str, texts: list[Any], **headers: str) -> Any:
        return self.client.post("/v1/predict", json={"model": model, "texts": texts}, headers=headers)


@contextlib.contextmanager
def running(
    folder: Path, keys: dict[str, bytes] | None = None, hosts: tuple[str, ...] = ("*",), **limits: Any
) -> Iterator[Running]:
    """A server of a folder, asked through ASGI."""
    lines: list[dict[str, Any]] = []

    def say(event: str, level: str = "info", **values: Any) -> None:
        lines.append({"event": event, "level": level, **values})

    model, bounds, metrics = backbone(), Limits(**{"deadline": 600, **limits}), Metrics()  # a busy machine is slow
    worker = ModelWorker(model, bounds, metrics, say)
    prompts = PromptFolder(folder, model.card, lambda p: worker.call(lambda: prompt_objective(p, model)), say)
    prompts.look()
    server = Server(prompts, worker, bounds, metrics, say)
    try:
        app = server.app(keys or {}, hosts)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield Running(server, app, client, lines)
    finally:
        worker.close()
