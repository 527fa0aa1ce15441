"""The only training loop: draw, step, log, select, checkpoint. Fitting a prior and adapting to targets both run here.

A run can be killed at any moment: its checkpoint folder is replaced whole, draws are pure functions of the step, so it
resumes to the same result, bit for bit on the CPU. The first checkpoint stands before the first step, so that a full
disk is noticed there; Ctrl-C, SIGTERM and SIGHUP act after a step, when its checkpoint is saved.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic

import torch
from typing_extensions import TypeVar

from promptprior.artifacts.header import tensor_digest
from promptprior.config.mapping import to_mapping
from promptprior.config.record_file import read_record
from promptprior.cost import Cost
from promptprior.errors import ArtifactError, PromptpriorWarning, TrainingError
from promptprior.files import (
    check_room,
    read_tensors,
    read_text,
    replace_folder,
    write_json,
    write_tensors,
    write_text,
)
from promptprior.interruptions import DeferredSignals, raise_if_interrupted
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import copies_of
from promptprior.objectives.weight_objective import Answering
from promptprior.processes import add_up, all_decide, is_first
from promptprior.rules.rule import Info, Rule, State, answer, pick_copies
from promptprior.tasks.sampling.draws import Draws
from promptprior.untrusted import parse_json

LOG_BYTES = 200  # roughly, of the log of a step
CHECKPOINT_FILES = ("state.json", "state.safetensors", "log.jsonl")
FORMAT = 2  # of checkpoints; those of format 1 do not name it, and differ in nothing else

Select = Callable[[Params], tuple[Float[Tensor, " C"], Float[Tensor, " C"]]]
"""Merit (higher is better, whatever the metric) and NLL in nats (breaks ties) of every copy on its dev examples."""

Watch = Callable[[int, int, Info], None]
"""Called after every step: steps done, steps in all, what the step reported."""

Drawn = TypeVar("Drawn", default=Any)


@dataclass(frozen=True)
class Run(Generic[Drawn]):
    """One training run. `key` names everything that decides its result; a checkpoint of another key is refused.

    `select` scores what the rule answers before the first step, every `eval_every` steps, after those in `eval_steps`
    and after the last. A copy that has not improved for `patience` selections in a row keeps its best, as if it trained
    by itself; the run stops when that holds for all.
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
class Standing:
    """Of each copy: the step of its best answer, what dev said of it, and the selections since then."""

    step: tuple[int, ...]
    score: tuple[float, ...]
    nll: tuple[float, ...]
    waited: tuple[int, ...]


@dataclass(frozen=True)
class Best(Standing):
    """The best answer of each copy, and how it stands. Copies of tensors, never references."""

    params: Params


@dataclass(frozen=True)
class Trained:
    """The result of a run. `params` are each copy's best answer where dev selected, the answer at the end otherwise.

    `answer` is what the rule answers at the end (rules/rule.py), `last` the params it moved: most rules answer those.
    `history` has a line per step: {"step", "loss": [C], …} and, where dev was asked, "dev_merit"
    (as `Select` gives it: higher is better, so it is minus the value of a metric that is better when lower) and
    "dev_nll".
    """

    params: Params
    last: Params
    answer: Params
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


@dataclass(frozen=True)
class Checkpoint:
    """What state.json says. `start` has the digests of the params that the run started from, `log` that of log.jsonl.

    `format` is 1 in files that do not name it.
    """

    key: str
    start: Mapping[str, str]
    step: int = field(metadata={"least": 0})
    stopped: bool
    spent: Cost
    best: Standing | None
    format: int = 1
    log: str = ""


def train(
    run: Run, folder: Path | None = None, watch: Watch | None = None, checkpoint_seconds: float = 30.0
) -> Trained:
    """Run to the end, from the checkpoint in `folder` if there is one.

    Raises TrainingError with the evidence when a loss stops being finite, and when the checkpoint is of another run;
    ArtifactError when the checkpoint is damaged. One that misses a file counts as none, with a warning.
    Several processes make the same steps; the first one writes and calls `watch`.
    """
    raise_if_interrupted()
    meter = run.objective.backbone.meter
    start_time, rows, tokens = time.monotonic(), meter.rows, meter.tokens
    resumed = _restore(run, folder) if folder is not None else None
    if resumed is None:
        progress = Progress(run.rule.init({name: value.detach().clone() for name, value in run.params.items()}))
        if run.select is not None:
            progress = _select(run, progress)
    else:
        progress = resumed
    earlier = progress.cost  # of the sessions before this one

    saved = -math.inf
    with DeferredSignals() as signals:
        while True:
            is_finished = progress.state.step >= run.steps or progress.stopped
            is_due = is_finished or time.monotonic() - saved >= checkpoint_seconds
            is_due, signum = all_decide(is_due, signals.received)
            if is_finished or (folder is not None and (is_due or signum)):  # the cost is added over all processes
                read, seconds = torch.tensor([meter.rows - rows, meter.tokens - tokens]), time.monotonic() - start_time
                add_up([read])
                progress = replace(progress, cost=earlier + Cost(seconds, *read.tolist()))
            if folder is not None and (is_due or signum):
                size = _save(run, progress, folder)
                if saved == -math.inf and not is_finished:  # the next one is written beside it, with a longer log
                    check_room(folder.parent, size + LOG_BYTES * (run.steps - progress.state.step))
                saved = time.monotonic()
            if signum:
                signals.deliver(signum)
                raise_if_interrupted()  # if it could not raise there
            if is_finished:
                break
            state, info = run.rule.step(progress.state, run.draws.batch(progress.state.step), run.objective)
            _check_finite(state, info, progress.history)
            line = {"step": state.step, **{name: _six_digits(value) for name, value in info.items()}}
            progress = replace(progress, state=state, history=[*progress.history, line])
            every = run.eval_every > 0 and state.step % run.eval_every == 0
            if run.select is not None and (every or state.step == run.steps or state.step in run.eval_steps):
                progress = _select(run, progress)
            if watch is not None and is_first():
                reported = {name: torch.as_tensor(value) for name, value in progress.history[-1].items()}
                watch(state.step, run.steps, reported)
    answering = answer(run.rule, progress.state)
    return Trained(
        params=progress.best.params if progress.best else answering,
        last=progress.state.params,
        answer=answering,
        best=progress.best,
        history=progress.history,
        steps=progress.state.step,
        cost=progress.cost,
    )


def _select(run: Run, progress: Progress) -> Progress:
    """Ask dev, keep the answer of every copy that improved (score, then NLL), and stop when patience is over.

    A copy that is out of patience stays as it was. Raises TrainingError when a dev loss is not finite: the best could
    not be told from the rest.
    """
    assert run.select is not None
    best, step = progress.best, progress.state.step
    params = answer(run.rule, progress.state)
    score, nll = run.select(params)  # [C] each
    bad = (~(score + nll).isfinite()).nonzero().flatten().tolist()
    if bad:
        raise TrainingError(
            f"step {step}: dev NLL {_six_digits(nll)} and score {_six_digits(score)} are not finite for copies {bad}; "
            "use --dtype float32, or lower the learning rate (--target.learning-rates)"
        )
    if best is None:
        copies = len(score)
        params = {name: value.clone() for name, value in params.items()}
        best = Best((step,) * copies, tuple(score.tolist()), tuple(nll.tolist()), (0,) * copies, params)
    else:
        now = zip(score.tolist(), nll.tolist(), strict=True)
        before = zip(best.score, best.nll, best.waited, strict=True)
        better = [
            (run.patience is None or waited < run.patience) and (s, -n) > (best_s, -best_n)
            for (s, n), (best_s, best_n, waited) in zip(now, before, strict=True)
        ]
        best = Best(
            params=pick_copies(torch.tensor(better), params, best.params),
            step=tuple(step if b else old for b, old in zip(better, best.step, strict=True)),
            score=tuple(s if b else old for b, s, old in zip(better, score.tolist(), best.score, strict=True)),
            nll=tuple(n if b else old for b, n, old in zip(better, nll.tolist(), best.nll, strict=True)),
            waited=tuple(0 if b else waited + 1 for b, waited in zip(better, best.waited, strict=True)),
        )
    *earlier, last = progress.history or [{"step": 0}]
    history = [*earlier, {**last, "dev_merit": _six_digits(score), "dev_nll": _six_digits(nll)}]
    stopped = run.patience is not None and min(best.waited) >= run.patience
    return replace(progress, best=best, history=history, stopped=stopped)


def _check_finite(state: State, info: Info, history: list[dict[str, Any]]) -> None:
    """Stop with the evidence when a loss or a parameter is no longer a number."""
    bad = {name for name, value in state.params.items() if not bool(value.isfinite().all())}
    if bool(info["loss"].isfinite().all()) and not bad:
        return
    copies = (~info["loss"].isfinite()).nonzero().flatten().tolist()
    evidence = {name: _six_digits(value) for name, value in info.items()}
    last = history[-1]["loss"] if history and "loss" in history[-1] else "none"
    raise TrainingError(
        f"step {state.step}: the loss of copies {copies} or the parameters {sorted(bad)} are not finite; this step "
        f"reported {json.dumps(evidence)}, the step before had loss {last}. Lower the learning rate "
        "(--target.learning-rates, --source.learning-rates), set a clip, or use --dtype float32"
    )


def _six_digits(value: Tensor) -> float | list[float]:
    """A logged tensor as plain numbers of six digits."""
    if value.dim() == 0:
        return float(f"{float(value):.6g}")
    return [float(f"{v:.6g}") for v in value.tolist()]


def _save(run: Run, progress: Progress, folder: Path) -> int:
    """Replace the checkpoint folder whole: tensors, then what they mean, then the log as JSON lines. Returns the bytes
    of its tensors."""
    best, state = progress.best, progress.state
    groups = {"params": state.params, "memory": state.memory, "best": best.params if best else {}}
    log = "".join(json.dumps(line) + "\n" for line in progress.history)
    meaning = Checkpoint(
        key=run.key,
        start=_start_digests(run),
        step=state.step,
        stopped=progress.stopped,
        spent=progress.cost,
        best=Standing(best.step, best.score, best.nll, best.waited) if best else None,
        format=FORMAT,
        log=sha256(log.encode()).hexdigest()[:16],
    )

    def write(fresh: Path) -> None:
        write_tensors(
            fresh / "state.safetensors", {f"{group}/{n}": v for group, ts in groups.items() for n, v in ts.items()}
        )
        write_json(fresh / "state.json", to_mapping(meaning))
        write_text(fresh / "log.jsonl", log)

    replace_folder(folder, write)
    return sum(value.nbytes for tensors in groups.values() for value in tensors.values())


def _restore(run: Run, folder: Path) -> Progress | None:
    """The progress that a checkpoint folder holds; None for none, for one that misses a file, and for another run's
    checkpoint of an older format.

    Raises TrainingError for another run's checkpoint of this format, ArtifactError for a damaged one.
    """
    absent = [name for name in CHECKPOINT_FILES if not (folder / name).exists()]
    if len(absent) == len(CHECKPOINT_FILES):
        return None
    if absent:
        text = f"{folder}: the checkpoint misses {' and '.join(absent)} and is discarded: the run begins again"
        warnings.warn(text, PromptpriorWarning, stacklevel=3)
        return None
    meaning = read_checkpoint(folder / "state.json")
    problem = None
    if meaning.key != run.key:
        problem = (
            f"{folder} holds a checkpoint of another run (key {meaning.key}, this run is {run.key}): settings, data "
            "or backbone changed"
        )
    elif meaning.start != _start_digests(run):
        problem = f"{folder} holds a checkpoint of a run that started from other parameters (another prior?)"
    if problem and meaning.format == 1:
        text = f"{problem}; it is of an older format and discarded: the run begins again"
        warnings.warn(text, PromptpriorWarning, stacklevel=3)
        return None
    if problem:
        raise TrainingError(f"{problem}; use another --output folder or delete this one")

    device = next(iter(run.params.values())).device
    groups: dict[str, Params] = {"params": {}, "memory": {}, "best": {}}
    try:
        tensors, log = read_tensors(folder / "state.safetensors"), read_text(folder / "log.jsonl")
        numbered = enumerate(log.splitlines(), start=1)
        history = [parse_json(x, str(folder / "log.jsonl"), ArtifactError, n, infinity=True) for n, x in numbered]
    except ArtifactError as error:
        raise ArtifactError(f"{error}; delete {folder} to begin again") from error
    for line in history:  # what earlier versions called dev_score was the merit too
        if isinstance(line, dict) and "dev_score" in line:
            line["dev_merit"] = line.pop("dev_score")
    for full_name, value in tensors.items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = value.to(device)
    state = State(groups["params"], groups["memory"], meaning.step)
    first = run.rule.init(run.params)
    expected: dict[str, Params] = {"params": first.params, "memory": first.memory}
    expected["best"] = answer(run.rule, first) if meaning.best else {}
    forms = [
        {
            f"{group}/{name}": (list(t.shape), str(t.dtype))
            for group, params in side.items()
            for name, t in params.items()
        }
        for side in (groups, expected)
    ]
    odd = sorted(name for name in forms[0].keys() | forms[1].keys() if forms[0].get(name) != forms[1].get(name))
    lines = [h.get("step") if isinstance(h, dict) and ("loss" in h or h.get("step") == 0) else None for h in history]
    if odd:
        found, wanted = (forms[side].get(odd[0], "none") for side in (0, 1))
        wrong = f"state.safetensors: tensor {odd[0]!r} is {found}; expected {wanted}"
    elif meaning.step > run.steps:
        wrong = f"state.json: step is {meaning.step:,}; expected at most the {run.steps:,} of this run"
    elif (meaning.best is None) != (run.select is None):
        wrong = f"state.json: best is {meaning.best}; expected {'none' if run.select is None else 'what dev chose'}"
    elif meaning.best and {len(each) for each in vars(meaning.best).values()} != {copies_of(first.params)}:
        wrong = f"state.json: best has not {copies_of(first.params)} entries, one for each copy"
    elif meaning.log not in ("", sha256(log.encode()).hexdigest()[:16]):
        wrong = "log.jsonl: it is not the one that state.json was written with"
    elif lines[lines[:1] == [0] :] != [*range(1, meaning.step + 1)]:
        wrong = f"log.jsonl: expected a line with step and loss for each of the {meaning.step} steps"
    else:
        best = Best(**vars(meaning.best), params=groups["best"]) if meaning.best else None
        return Progress(state, best, history, meaning.spent, meaning.stopped)
    raise ArtifactError(f"{folder}/{wrong}; delete {folder} to begin again")


def read_checkpoint(path: Path) -> Checkpoint:
    """What a state.json says. Raises ArtifactError naming the file and what is wrong with it."""
    meaning = read_record(Checkpoint, path)
    if meaning.format > FORMAT:
        raise ArtifactError(
            f"{path}: format is {meaning.format}; this promptprior reads {FORMAT}; delete {path.parent} to begin again"
        )
    return meaning


def _start_digests(run: Run) -> dict[str, str]:
    return {name: tensor_digest(value) for name, value in sorted(run.params.items())}
