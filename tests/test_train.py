"""The training loop: killed and resumed it comes to the same bytes, and the best it keeps is the best there was."""

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from promptprior import files
from promptprior.config.training import Training
from promptprior.errors import ArtifactError, DiskError, SpecError, TrainingError
from promptprior.fit import RunControl, fit
from promptprior.interruptions import Interrupted, interruptible
from promptprior.methods import make_method
from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import AdamW, Rate
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.batch import Batch, Tokens
from promptprior.tasks.sampling.draws import MixtureDraws, Pool
from promptprior.train import Run, Trained, train
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, random_batch, short

LENGTH, STEPS, COPIES = 3, 9, 2


@dataclass(frozen=True)
class Walk:
    """A rule without a model: every copy walks by the next of its own given steps."""

    moves: tuple[tuple[float, ...], ...]

    def init(self, params: Params) -> State:
        return State(params, {})

    def step(self, state: State, batch: object, objective: object) -> tuple[State, Info]:
        move = torch.tensor(self.moves[state.step])
        params = {n: p + move.view(-1, *[1] * (p.dim() - 1)) for n, p in state.params.items()}
        return State(params, {}, state.step + 1), {"loss": move}


@dataclass
class NoDraws:
    asked: list[int] = field(default_factory=list)

    def batch(self, step: int) -> int:
        self.asked.append(step)
        return step


def walk(places: tuple[tuple[float, ...], ...], **options: object) -> Run:
    """A run that visits the given places; dev likes 0 best."""
    objective = PromptObjective(tiny("llama", torch.float32), Direct(1, 32))
    visited = torch.tensor(places, dtype=torch.float32)
    starts, moves = visited[0], visited.diff(dim=0)
    return Run(
        key="walk",
        objective=objective,
        rule=Walk(tuple(map(tuple, moves.tolist()))),
        params={"prompt": starts.view(-1, 1, 1)},
        draws=NoDraws(),
        steps=len(places) - 1,
        select=lambda params: (torch.zeros(len(starts)), params["prompt"].abs().flatten()),
        **{"eval_every": 1, **options},  # type: ignore[arg-type]
    )


def real_run(steps: int = STEPS, seed: int = 13) -> Run:
    """AdamW on a tiny model, judged every second step."""
    backbone = tiny("llama", torch.float32)
    objective = PromptObjective(backbone, Direct(LENGTH, backbone.width))
    batch = random_batch(6, seed=4)
    items = [
        Tokens(
            tuple(batch.text_ids[x, : batch.text_lengths[x]].tolist()),
            (tuple(batch.target_ids[x, : batch.target_lengths[x]].tolist()),),
        )
        for x in range(6)
    ]
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(COPIES, LENGTH, backbone.width, generator=g) * backbone.scale

    def select(params: Params) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            nll = torch.stack([objective.losses({"prompt": p[None]}, batch).mean() for p in params["prompt"]])
        return torch.zeros(COPIES, dtype=torch.float64), nll.double()

    return Run(
        key=f"real {steps} {seed}",
        objective=objective,
        rule=Descent(AdamW(Rate((0.5, 20.0), backbone.scale))),
        params={"prompt": start},
        draws=TwoCopies(MixtureDraws([Pool(items)], [1.0], 3, seed)),
        steps=steps,
        select=select,
        eval_every=2,
    )


@dataclass(frozen=True)
class TwoCopies:
    draws: MixtureDraws

    def batch(self, step: int) -> Batch:
        return self.draws.batch(step).tile(COPIES)


class Killed(Exception):
    pass


def killing(at: int) -> Callable[[int, int, Info], None]:
    """A watcher under which the process dies after a step, before that step is saved."""

    def watch(step: int, steps: int, info: Info) -> None:
        if step == at:
            raise Killed

    return watch


def assert_same(a: Trained, b: Trained) -> None:
    assert a.best is not None
    assert b.best is not None
    for one, other in ((a.params, b.params), (a.last, b.last), (a.best.params, b.best.params)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) for n in one)
    assert replace(a.best, params={}) == replace(b.best, params={})
    assert a.history == b.history
    assert (a.steps, a.cost.rows, a.cost.tokens) == (b.steps, b.cost.rows, b.cost.tokens)


@pytest.mark.parametrize("deaths", [(1,), (4,), (9,), (2, 3, 7)])
def test_a_run_killed_at_any_step_resumes_bit_for_bit(tmp_path: Path, deaths: tuple[int, ...]) -> None:
    whole = train(real_run(), tmp_path / "whole")
    for at in deaths:
        with pytest.raises(Killed):
            train(real_run(), tmp_path / "killed", killing(at), checkpoint_seconds=0)
    assert_same(train(real_run(), tmp_path / "killed"), whole)
    names = ("state.safetensors", "log.jsonl")
    assert all((tmp_path / "killed" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_waits_for_the_step_and_its_checkpoint(tmp_path: Path, name: str) -> None:
    signum = getattr(signal, name)

    def watch(step: int, steps: int, info: Info) -> None:
        if step == 4:
            signal.raise_signal(signum)

    with interruptible(), pytest.raises(Interrupted, match=name) as caught:
        train(real_run(), tmp_path / "run", watch)
    assert caught.value.signum == signum
    assert json.loads((tmp_path / "run" / "state.json").read_text())["step"] == 4
    assert_same(train(real_run(), tmp_path / "run"), train(real_run(), tmp_path / "whole"))


def test_a_signal_that_its_handler_ignores_stops_nothing(tmp_path: Path) -> None:
    heard: list[int] = []

    def watch(step: int, steps: int, info: Info) -> None:
        signal.raise_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, lambda signum, _: heard.append(signum))
    try:
        assert train(real_run(), tmp_path / "run", watch).steps == STEPS
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert heard == [signal.SIGTERM] * STEPS


def test_a_full_disk_is_noticed_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = walk(((0.0, 0.0), (1.0, 1.0)))
    for name in ("fsync", "posix_fallocate"):  # no room for a checkpoint, or none for a second one beside it

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", full)
            with pytest.raises(DiskError, match="No space left on device"):
                train(run, tmp_path / name)
    assert isinstance(run.draws, NoDraws)
    assert run.draws.asked == []


def test_a_finished_run_is_read_and_not_run_again(tmp_path: Path) -> None:
    whole = train(real_run(), tmp_path / "run")
    again = train(real_run(), tmp_path / "run", killing(1))
    assert_same(again, whole)


def test_the_best_is_a_copy_that_scores_what_it_scored(tmp_path: Path) -> None:
    run = real_run()
    done = train(run, tmp_path / "run")
    assert done.best is not None
    assert run.select is not None
    _, nll = run.select(done.best.params)
    assert nll.tolist() == list(done.best.nll)
    assert max(done.best.step) > 0
    seen = [line["dev_nll"] for line in done.history if "dev_nll" in line]
    for copy in range(COPIES):
        assert min(values[copy] for values in seen) == pytest.approx(done.best.nll[copy], rel=1e-5)


class WalkInPlace(Walk):
    """A rule that moves the tensors it is given: what a reference to them would follow."""

    def step(self, state: State, batch: object, objective: object) -> tuple[State, Info]:
        move = torch.tensor(self.moves[state.step])
        for value in state.params.values():
            value += move.view(-1, *[1] * (value.dim() - 1))
        return State(state.params, {}, state.step + 1), {"loss": move}


def test_the_best_does_not_follow_the_params_where_training_moves_them() -> None:
    run = walk(((5, 1), (3, 2), (4, -1), (3, 2)))
    done = train(replace(run, rule=WalkInPlace(run.rule.moves)))  # type: ignore[attr-defined]
    assert done.params["prompt"].flatten().tolist() == [3, 1]
    assert done.last["prompt"].flatten().tolist() == [3, 2]
    assert run.params["prompt"].flatten().tolist() == [5, 1]


def test_the_run_leaves_the_params_it_was_given() -> None:
    run = real_run()
    kept = run.params["prompt"].clone()
    train(run)
    assert torch.equal(run.params["prompt"], kept)


def test_dev_is_asked_before_the_first_step_on_schedule_and_after_the_last() -> None:
    done = train(real_run())
    asked = [line["step"] for line in done.history if "dev_nll" in line]
    assert asked == [0, 2, 4, 6, 8, 9]
    assert [line["step"] for line in done.history] == list(range(STEPS + 1))
    assert "loss" not in done.history[0]


def test_without_dev_the_last_params_are_the_result() -> None:
    done = train(replace(real_run(), select=None))
    assert done.best is None
    assert torch.equal(done.params["prompt"], done.last["prompt"])
    assert [line["step"] for line in done.history] == list(range(1, STEPS + 1))


def test_no_steps_judge_the_start() -> None:
    run = real_run(steps=0)
    done = train(run)
    assert done.best is not None
    assert done.best.step == (0, 0)
    assert torch.equal(done.params["prompt"], run.params["prompt"])
    assert done.cost.rows > 0  # what judging cost


def test_every_copy_keeps_its_own_best_and_ties_keep_the_earlier() -> None:
    done = train(walk(((5, 1), (3, 1), (4, -1), (3, 2))))
    assert done.best is not None
    assert done.best.step == (1, 0)
    assert done.params["prompt"].flatten().tolist() == [3, 1]
    assert done.last["prompt"].flatten().tolist() == [3, 2]


def test_patience_stops_when_all_copies_have_waited() -> None:
    done = train(walk(((5, 1), (6, 2), (6, 2), (6, 2), (6, 2)), patience=2))
    assert done.steps == 2
    assert train(walk(((5, 1), (6, 2), (6, 0.5), (6, 2), (6, 2)), patience=2)).steps == 4


def test_a_copy_out_of_patience_is_done_whatever_the_others_do() -> None:
    """Copies of one run equal runs of one copy: by itself copy 0 would have stopped before its late improvement."""
    places = ((5.0, 9.0), (6.0, 8.0), (6.0, 7.0), (1.0, 6.0), (1.0, 5.0))
    joint = train(walk(places, patience=2))
    assert joint.best is not None
    for copy in range(2):
        alone = train(walk(tuple((p[copy],) for p in places), patience=2))
        assert alone.best is not None
        assert joint.best.step[copy] == alone.best.step[0]
        assert torch.equal(joint.params["prompt"][copy], alone.params["prompt"][0])
    assert joint.best.step == (0, 4)


def test_a_stopped_run_stays_stopped(tmp_path: Path) -> None:
    run = walk(((5,), (6,), (6,), (1,), (1,)), patience=2)
    assert train(run, tmp_path / "run").steps == 2
    assert train(run, tmp_path / "run").steps == 2


def test_a_loss_that_is_no_number_stops_with_the_evidence() -> None:
    run = walk(((1, 1), (2, 2), (3, float("nan")), (4, 4)))
    message = (
        r"step 2: the loss of copies \[1\] or the parameters \['prompt'\] are not finite; this step reported "
        r'\{"loss": \[1.0, NaN\]\}, the step before had loss \[1.0, 1.0\]. Lower the learning rate'
    )
    with pytest.raises(TrainingError, match=message):
        train(run)


def test_a_dev_loss_that_is_no_number_stops_too() -> None:
    run = replace(walk(((1, 1), (2, 2))), select=lambda _: (torch.zeros(2), torch.tensor([1.0, float("nan")])))
    with pytest.raises(TrainingError, match=r"step 0: dev NLL .* not finite for copies \[1\]; use --dtype float32"):
        train(run)


def test_a_failed_step_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        train(walk(((1, 1), (2, 2), (3, float("nan")))), tmp_path / "run", checkpoint_seconds=0)
    assert json.loads((tmp_path / "run/state.json").read_text())["step"] == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(real_run(), tmp_path / "run")
    with pytest.raises(
        TrainingError, match=r"run holds a checkpoint of another run \(key real 9 13, this run is real 9"
    ):
        train(real_run(seed=21), tmp_path / "run")
    other = replace(real_run(), params={"prompt": real_run().params["prompt"] + 1})
    with pytest.raises(TrainingError, match="started from other parameters"):
        train(other, tmp_path / "run")


def forget_format(folder: Path) -> None:
    """Make a checkpoint one of the older format, which did not name its format, and called the merit a score."""
    meaning = json.loads((folder / "state.json").read_text())
    assert meaning.pop("format") == 2
    (folder / "state.json").write_text(json.dumps(meaning))
    log = (folder / "log.jsonl").read_text()
    assert "dev_merit" in log
    (folder / "log.jsonl").write_text(log.replace("dev_merit", "dev_score"))


def test_a_checkpoint_of_the_older_format_resumes_bit_for_bit(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(real_run(), tmp_path / "run", killing(5), checkpoint_seconds=0)
    forget_format(tmp_path / "run")
    assert_same(train(real_run(), tmp_path / "run", killing(4)), train(real_run()))


@pytest.mark.parametrize("other", ["key", "start"])
def test_an_older_checkpoint_of_another_run_is_discarded_with_a_warning(tmp_path: Path, other: str) -> None:
    run = real_run()
    start = {"prompt": run.params["prompt"] + 1}
    train(real_run(seed=21) if other == "key" else replace(run, params=start), tmp_path / "run")
    forget_format(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"run holds a checkpoint of .* older format and discarded"):
        done = train(run, tmp_path / "run")
    assert_same(done, train(run))
    assert json.loads((tmp_path / "run/state.json").read_text())["format"] == 2


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train(real_run(), tmp_path / "run", killing(5), checkpoint_seconds=0)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}

    def full(path: Path, value: object) -> None:
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("promptprior.train.write_json", full)
    with pytest.raises(ArtifactError, match=r"cannot write .*run.*No space left on device.*unchanged"):
        train(real_run(), tmp_path / "run", checkpoint_seconds=0)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    monkeypatch.setattr("promptprior.train.write_json", files.write_json)
    assert_same(train(real_run(), tmp_path / "run"), train(real_run()))


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*file/run: "):
        train(walk(((1,), (2,))), tmp_path / "file/run")


def test_watchers_see_every_step() -> None:
    seen: list[tuple[int, int]] = []
    train(real_run(), watch=lambda step, steps, info: seen.append((step, steps)))
    assert seen == [(s, STEPS) for s in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patience": 0}, r"patience 0 \(--patience\)"),
        ({"clip": 0.0}, r"clip 0.0 \(--clip\)"),
        ({"warmup": -1}, r"warmup -1"),
        ({"eval_every": -1}, r"eval every -1"),
        ({"steps": -1}, r"steps -1"),
        ({"learning_rates": ()}, r"learning rates \(\)"),
    ],
)
def test_impossible_training_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Training(**wrong)  # type: ignore[arg-type]


def fitting(folder: Path) -> multiprocessing.process.BaseProcess:
    """A process that fits a prior on a tiny model, saving a checkpoint after every step."""
    settings = short(source=Training(steps=40, batch_size=4, learning_rates=(0.5,)))
    sources = [choice_task("a", always(0)), choice_task("b", always(1))]
    backbone = tiny("llama", torch.float32)

    def run() -> None:
        torch.set_num_threads(1)
        fit(make_method("multitask"), sources, backbone, settings, control=RunControl(folder, checkpoint_seconds=0))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def saved_step(folder: Path) -> int:
    """The step of the checkpoint in a fit's folder; 0 before the first."""
    try:
        return json.loads((folder / "checkpoints/source/state.json").read_text())["step"]
    except OSError:
        return 0


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kills a forked process")
def test_a_fit_that_is_really_killed_comes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = fitting(tmp_path / "whole")
    whole.join(60)
    assert whole.exitcode == 0
    chance = random.Random(1)
    for least in (4, 15, 26):
        process = fitting(tmp_path / "killed")
        while saved_step(tmp_path / "killed") < chance.randint(least, least + 4):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = fitting(tmp_path / "killed")
    last.join(60)
    assert last.exitcode == 0
    expected = {p.name: p.read_bytes() for p in (tmp_path / "whole/prior").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "killed/prior").iterdir()} == expected
    log = "checkpoints/source/log.jsonl"
    assert (tmp_path / "killed" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()
