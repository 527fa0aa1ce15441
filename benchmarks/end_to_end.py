"""Tokens a second of whole jobs against one large training step: what small batches, ranking and the rest cost.

    python benchmarks/end_to_end.py --json FILE                        # SmolLM2, float32: about eight minutes
    python benchmarks/end_to_end.py --dtype bfloat16 --cases small_step,ranking
    python benchmarks/end_to_end.py --backbone FOLDER --cases compare  # another model

    large_step   32 texts of 32 tokens behind a prompt of 20, loss and gradient: what all others are measured by
    small_step   the same with 8 texts
    adapt        one target, batches of 8 texts, as the library adapts it: dev looks, checkpoints and all
    episodes     40 episodes of it as copies of one run
    ranking      2,000 short rows, each ranked by two choices, no gradient
    large_read   32 texts of 32 tokens, no gradient: what ranking is measured by besides
    generate     32 texts, 32 greedy tokens each
    compare      two methods, two targets, two draws: from the first step to the report

Tokens are those that run through the model, prompts included (`Backbone.meter`), and those that are generated.
`of_large_step` is a case's rate over the large step's in the same run. `engine_share` is how much of a case's seconds
passes inside forward and backward passes; `beside` names what took most of the others.
"""

import cProfile
import pstats
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import finish, options, seconds_of
from workloads import DATA, even_tokens, has_data

import promptprior as pp
from promptprior.backbone import Backbone
from promptprior.evaluate import PromptRequest, answer_requests
from promptprior.tasks.sampling.batch import collate

LENGTH, SIZE = 20, 32
ENGINE = ("chunk_losses", "pooled_states", "generate_texts", "_engine_run_backward")
TARGETS = ("cr", "trec") if has_data() else ("adjective_polarity", "noun_number")


@dataclass(frozen=True)
class Jobs:
    """The cases on one backbone; each returns the tokens that the meter does not count."""

    base: Backbone

    def prompt(self) -> torch.Tensor:
        """One random prompt [1, L, D] on the scale of the embeddings."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, LENGTH, self.base.width, generator=generator) * self.base.scale

    def task(self, name: str) -> pp.Task:
        """A real task where the data folder is at hand, else a built-in one."""
        return pp.load_task(name, data=DATA if has_data() else None)

    def step(self, texts: int) -> int:
        """Loss and gradient of a batch."""
        leaf = self.prompt().to(self.base.frozen.device).requires_grad_()
        self.base.losses(leaf, collate(even_tokens(texts, SIZE))).sum().backward()
        return 0

    @torch.no_grad()
    def read(self) -> int:
        """The losses of the large step alone."""
        self.base.losses(self.prompt(), collate(even_tokens(32, SIZE)))
        return 0

    def adapt(self, episodes: int, steps: int) -> int:
        """Prompt tuning on so many draws of one target."""
        settings = pp.Settings(
            length=LENGTH, target=pp.Training(steps=steps, batch_size=8, learning_rates=(0.3,), eval_every=steps)
        )
        draws = [pp.make_episode(self.task(TARGETS[0]), 4, seed) for seed in range(episodes)]
        pp.adapt(pp.make_method("prompt_tuning"), draws, self.base, None, settings)
        return 0

    def ranking(self) -> int:
        """Rows of a task, as `score_on_test` asks them."""
        task = self.task(TARGETS[0])
        texts = (list(task.split("train")) * 100)[:2000]
        method = pp.make_method("prompt_tuning")
        settings = pp.Settings(length=LENGTH, target=pp.Training(steps=0, learning_rates=(0.3,)))
        [adapted] = pp.adapt(method, [pp.make_episode(task, 1, 0)], self.base, None, settings)
        answer_requests(self.base, [PromptRequest(adapted.prompt, task, texts)])
        return 0

    def generate(self) -> int:
        """Greedy text; what is generated counts too."""
        self.base.generate(self.prompt(), collate(even_tokens(32, SIZE)), 32)
        return 32 * 32

    def compare(self) -> int:
        """A small comparison, its folder and its report."""
        with tempfile.TemporaryDirectory() as folder:
            names = [str(DATA / name) if has_data() else name for name in ("sst2", "mpqa", *TARGETS)]
            source, target = pp.Training(batch_size=16), pp.Training(batch_size=8)
            plan = pp.Plan(
                methods=("prompt_tuning", "multitask"),
                sources=tuple(names[:2]),
                targets=tuple(names[2:]),
                shots=(4,),
                seeds=(13, 21),
                steps=20,
                test_limit=200,
                output=Path(folder) / "out",
                settings=pp.Settings(length=LENGTH, source=source, target=target),
            )
            pp.compare(plan, self.base, say=lambda _: None)
        return 0


def cases(base: Backbone) -> dict[str, Callable[[], int]]:
    """What is measured, by name."""
    jobs = Jobs(base)
    return {
        "large_step": lambda: jobs.step(32),
        "large_read": jobs.read,
        "small_step": lambda: jobs.step(8),
        "adapt": lambda: jobs.adapt(1, 20),
        "episodes": lambda: jobs.adapt(40, 2),
        "ranking": jobs.ranking,
        "generate": jobs.generate,
        "compare": jobs.compare,
    }


def measured(base: Backbone, run: Callable[[], int], trials: int) -> dict[str, Any]:
    """Rates of a job's trials; and of one more, under a profiler, where its seconds pass."""
    seconds, rates, more = [], [], list[int]()
    for _ in range(trials):
        before = base.meter.tokens
        seconds.append(seconds_of(lambda: more.append(run())))
        rates.append((base.meter.tokens - before + more[-1]) / seconds[-1])
    with cProfile.Profile() as profile:
        run()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    engine = sum(whole for (_, _, name), (_, _, _, whole, _) in stats.items() if name in ENGINE)
    # A generator is entered once for each value, so its whole time is counted where it is drawn from
    beside = sorted(
        ((own, name) for (file, _, name), (_, _, own, _, _) in stats.items() if "/backbone/" not in file), reverse=True
    )
    outside = [f"{name} {own / total:.1%}" for own, name in beside if "torch" not in name][:4]
    return {
        "tokens_per_s": median(rates),
        "seconds": median(seconds),
        "range": f"{min(seconds):.3g}-{max(seconds):.3g}",
        "engine_share": min(1.0, engine / total),
        "beside": ", ".join(outside),
    }


def main() -> None:
    """Measure the chosen cases, the large step first."""
    parser = options(__doc__)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cases", help="by default all")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    base = pp.load(chosen.backbone, dtype=chosen.dtype, check=False)
    jobs = cases(base)
    names = chosen.cases.split(",") if chosen.cases else list(jobs)
    if unknown := [name for name in names if name not in jobs]:
        parser.error(f"--cases {', '.join(unknown)}: expected some of {', '.join(jobs)}")
    jobs["large_step"]()  # what is done once
    rows: list[dict[str, Any]] = []
    for name in ["large_step", *(name for name in names if name != "large_step")]:
        row = {"case": name, **measured(base, jobs[name], 1 if name in ("compare", "episodes") else chosen.trials)}
        rows.append({**row, "of_large_step": row["tokens_per_s"] / (rows or [row])[0]["tokens_per_s"]})
        print(f"{name}: {row['tokens_per_s']:.0f} tokens a second, {rows[-1]['of_large_step']:.2f}", flush=True)
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
