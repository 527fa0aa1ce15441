"""The only training loop: draw, step, log, select, checkpoint. Fitting a prior and adapting to targets both run here.

A run can be killed at any moment: its checkpoint folder is replaced whole, draws are pure functions of the step, so it
resumes to the same result, bit for bit on the CPU.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from typing_extensions import TypeVar

from promptprior.artifacts.header import tensor_digest
from promptprior.cost import Cost
from promptprior.errors import TrainingError
from promptprior.files import read_json, read_tensors, replace_folder, write_json, write_tensors
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.weight_objective import Answering
from promptprior.processes import add_up, agreed, is_first
from promptprior.rules.rule import Info, Rule, State
from promptprior.tasks.sampling.draws import Draws

Select = Callable[[Params], tuple[Float[Tensor, " C"], Float[Tensor, " C"]]]
"""Score (higher is better) and NLL (breaks ties) of every copy on its dev examples."""

Watch = Callable[[int, int, Info], None]
"""Told after every step: steps done, steps in all, what the step reported."""


Drawn = TypeVar("Drawn", default=Any)


@dataclass(frozen=True)
class Run(Generic[Drawn]):
    """One training run. `key` names everything that decides its result; a checkpoint of another key is refused.

    `select` is asked every `eval_every` steps, before the first and after the last. A copy that has not improved for
    `patience` selections in a row keeps its best, as if it were alone; the run stops when that holds for all.
    """

    key: str
    objective: Answering
    rule: Rule[Drawn]
    params: Params
    draws: Draws[Drawn]
    steps: int
    select: Select | None = None
    eval_every: int = 0
    patience: int | None = None
    eval_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Best:
    """The best each copy has been: its params, the step, and what dev said. Copies, never references."""

    params: Params
    step: tuple[int, ...]
    score: tuple[float, ...]
    nll: tuple[float, ...]
    waited: tuple[int, ...]


@dataclass(frozen=True)
class Trained:
    """What a run came to. `params` are each copy's best where dev selected, the last otherwise.

    `history` has a line per step: {"step", "loss": [C], …} and, where dev was asked, "dev_score" and "dev_nll".
    """

    params: Params
    last: Params
    best: Best | None
    history: list[dict[str, Any]]
    steps: int
    cost: Cost


@dataclass(frozen=True)
class Progress:
    """Everything a checkpoint holds."""

    state: State
    best: Best | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = Cost()
    stopped: bool = False


def train(
    run: Run, folder: Path | None = None, watch: Watch | None = None, checkpoint_seconds: float = 30.0
) -> Trained:
    """Run to the end, from the checkpoint in `folder` if there is one.

    Raises TrainingError with the evidence when a loss stops being finite, and when the checkpoint is of another run.
    Several processes make the same steps together; the first one writes and tells `watch`.
    """
    clock = Clock(run)
    progress = restored(run, folder) or opened(run)
    saved = time.monotonic()
    while progress.state.step < run.steps and not progress.stopped:
        progress = advanced(run, progress)
        if watch is not None and is_first():
            watch(progress.state.step, run.steps, as_info(progress.history[-1]))
        if folder is not None and agreed(time.monotonic() - saved >= checkpoint_seconds):
            save(run, with_cost(progress, clock), folder)
            saved = time.monotonic()
    progress = with_cost(progress, clock)
    if folder is not None:
        save(run, progress, folder)
    return trained(progress)


class Clock:
    """Seconds, rows and tokens since it was made."""

    def __init__(self, run: Run) -> None:
        self.meter = run.objective.backbone.meter
        self.start, self.rows, self.tokens = time.monotonic(), self.meter.rows, self.meter.tokens

    def read(self, before: Cost) -> Cost:
        """What has been spent by now by all processes, on top of what had been spent before."""
        seconds = time.monotonic() - self.start
        counted = torch.tensor([self.meter.rows - self.rows, self.meter.tokens - self.tokens])
        add_up([counted])
        rows, tokens = counted.tolist()
        return before + Cost(seconds, rows, tokens)


def with_cost(progress: Progress, clock: Clock) -> Progress:
    """The same progress with its cost up to now."""
    return Progress(progress.state, progress.best, progress.history, clock.read(progress.cost), progress.stopped)


def opened(run: Run) -> Progress:
    """The beginning of a run: no step taken, the start already judged."""
    state = run.rule.init({name: value.detach().clone() for name, value in run.params.items()})
    return selected(run, Progress(state)) if run.select is not None else Progress(state)


def advanced(run: Run, progress: Progress) -> Progress:
    """One step further, logged, and judged where it is time to."""
    state, info = run.rule.step(progress.state, run.draws.batch(progress.state.step), run.objective)
    check_finite(state, info, progress.history)
    line = {"step": state.step, **{name: rounded(value) for name, value in info.items()}}
    after = Progress(state, progress.best, [*progress.history, line], progress.cost)
    due = run.select is not None and is_due(run, state.step)
    return selected(run, after) if due else after


def is_due(run: Run, step: int) -> bool:
    """Whether dev is asked after this many steps."""
    return step == run.steps or step in run.eval_steps or (run.eval_every > 0 and step % run.eval_every == 0)


def selected(run: Run, progress: Progress) -> Progress:
    """Ask dev, keep the params of every copy that improved (score, then NLL), and stop when patience is over."""
    assert run.select is not None
    score, nll = run.select(progress.state.params)
    check_judged(progress.state, score, nll)
    history = [*progress.history]
    if history:
        history[-1] = {**history[-1], "dev_score": rounded(score), "dev_nll": rounded(nll)}
    else:
        history = [{"step": 0, "dev_score": rounded(score), "dev_nll": rounded(nll)}]
    best = improved(progress.best, progress.state, score.tolist(), nll.tolist(), run.patience)
    stopped = run.patience is not None and min(best.waited) >= run.patience
    return Progress(progress.state, best, history, progress.cost, stopped)


def improved(best: Best | None, state: State, score: list[float], nll: list[float], patience: int | None) -> Best:
    """The best of what was and what is, copy by copy; a copy that is out of patience stays as it was."""
    if best is None:
        params = {name: value.clone() for name, value in state.params.items()}
        return Best(params, (state.step,) * len(score), tuple(score), tuple(nll), (0,) * len(score))
    better = [
        (patience is None or waited < patience) and (s, -n) > (bs, -bn)
        for s, n, bs, bn, waited in zip(score, nll, best.score, best.nll, best.waited, strict=True)
    ]
    return Best(
        params={name: pick(better, value, best.params[name]) for name, value in state.params.items()},
        step=tuple(state.step if b else old for b, old in zip(better, best.step, strict=True)),
        score=tuple(s if b else old for b, s, old in zip(better, score, best.score, strict=True)),
        nll=tuple(n if b else old for b, n, old in zip(better, nll, best.nll, strict=True)),
        waited=tuple(0 if b else waited + 1 for b, waited in zip(better, best.waited, strict=True)),
    )


def pick(better: list[bool], new: Float[Tensor, "C *s"], old: Float[Tensor, "C *s"]) -> Float[Tensor, "C *s"]:
    """New values for copies that are better, old ones for the others."""
    mask = torch.tensor(better, device=new.device).view(-1, *[1] * (new.dim() - 1))
    return torch.where(mask, new, old)


def check_finite(state: State, info: Info, history: list[dict[str, Any]]) -> None:
    """Stop with the evidence when a loss or a parameter is no longer a number."""
    bad = {name for name, value in state.params.items() if not bool(value.isfinite().all())}
    if bool(info["loss"].isfinite().all()) and not bad:
        return
    copies = (~info["loss"].isfinite()).nonzero().flatten().tolist()
    evidence = {name: rounded(value) for name, value in info.items()}
    last = history[-1]["loss"] if history and "loss" in history[-1] else "none"
    raise TrainingError(
        f"step {state.step}: the loss of copies {copies} or the parameters {sorted(bad)} are not finite; this step "
        f"reported {json.dumps(evidence)}, the step before had loss {last}. Lower the learning rate "
        "(--target.learning-rates, --source.learning-rates), set a clip, or use --dtype float32"
    )


def check_judged(state: State, score: Float[Tensor, " C"], nll: Float[Tensor, " C"]) -> None:
    """Stop when dev examples got a loss that is no number: the best could not be told from the rest."""
    bad = (~(score + nll).isfinite()).nonzero().flatten().tolist()
    if bad:
        raise TrainingError(
            f"step {state.step}: dev NLL {rounded(nll)} and score {rounded(score)} are not finite for copies {bad}; "
            "use --dtype float32, or lower the learning rate (--target.learning-rates)"
        )


def rounded(value: Tensor) -> float | list[float]:
    """A logged tensor as plain numbers of six digits."""
    if value.dim() == 0:
        return float(f"{float(value):.6g}")
    return [float(f"{v:.6g}") for v in value.tolist()]


def as_info(line: Mapping[str, Any]) -> Info:
    """A line of history as what watchers see."""
    return {name: torch.as_tensor(value) for name, value in line.items()}


def trained(progress: Progress) -> Trained:
    """What a finished run came to."""
    return Trained(
        params=progress.best.params if progress.best else progress.state.params,
        last=progress.state.params,
        best=progress.best,
        history=progress.history,
        steps=progress.state.step,
        cost=progress.cost,
    )


def save(run: Run, progress: Progress, folder: Path) -> None:
    """Replace the checkpoint folder whole: tensors, then what they mean, then the log as JSON lines."""
    best = progress.best
    tensors = {f"params/{n}": v for n, v in progress.state.params.items()}
    tensors |= {f"memory/{n}": v for n, v in progress.state.memory.items()}
    tensors |= {f"best/{n}": v for n, v in best.params.items()} if best else {}
    meaning = {
        "key": run.key,
        "start": start_of(run),
        "step": progress.state.step,
        "stopped": progress.stopped,
        "spent": vars(progress.cost),
        "best": {k: v for k, v in vars(best).items() if k != "params"} if best else None,
    }

    def write(made: Path) -> None:
        write_tensors(made / "state.safetensors", tensors)
        write_json(made / "state.json", meaning)
        (made / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in progress.history))

    replace_folder(folder, write)


def restored(run: Run, folder: Path | None) -> Progress | None:
    """The progress a checkpoint folder holds; None without one. Raises TrainingError for another run's checkpoint."""
    if folder is None or not (folder / "state.json").exists():
        return None
    meaning = read_json(folder / "state.json")
    if meaning["key"] != run.key:
        raise TrainingError(
            f"{folder} holds a checkpoint of another run (key {meaning['key']}, this run is {run.key}): settings, data "
            "or backbone changed; use another --output folder or delete this one"
        )
    if meaning["start"] != start_of(run):
        raise TrainingError(
            f"{folder} holds a checkpoint of a run that started from other parameters (another prior?); use another "
            "--output folder or delete this one"
        )
    device = next(iter(run.params.values())).device
    tensors = {n: v.to(device) for n, v in read_tensors(folder / "state.safetensors").items()}
    state = State(named(tensors, "params/"), named(tensors, "memory/"), meaning["step"])
    best = meaning["best"] and Best(
        named(tensors, "best/"),
        tuple(meaning["best"]["step"]),
        tuple(meaning["best"]["score"]),
        tuple(meaning["best"]["nll"]),
        tuple(meaning["best"]["waited"]),
    )
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return Progress(state, best, history, Cost(**meaning["spent"]), meaning["stopped"])


def start_of(run: Run) -> dict[str, str]:
    """Digests of the parameters a run starts from."""
    return {name: tensor_digest(value) for name, value in sorted(run.params.items())}


def named(tensors: Mapping[str, Tensor], prefix: str) -> Params:
    """The tensors whose name has a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
