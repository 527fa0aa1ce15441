"""What `auto` chooses among: priors as candidates, a budget of seconds by a clock that counts tokens, and resuming."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import promptprior as pp
from promptprior.adapt import adapt, make_episode
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.both_ways import turned
from promptprior.adaptation.budget import RECORD
from promptprior.adaptation.runs import run_all_ways
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.artifacts.blending import blend_members
from promptprior.backbone import Backbone
from promptprior.backbone.engine import Meter
from promptprior.cli import main
from promptprior.cli.verbs.adapt_verb import leaderboard_lines
from promptprior.compare.plan import Plan
from promptprior.config.training import Settings, Training
from promptprior.errors import ArtifactError, SpecError
from promptprior.evaluate import PromptRequest, answer_requests
from promptprior.fit import RunControl, fit
from promptprior.methods import make_method
from promptprior.methods.choosing import trained_alike
from promptprior.rules.rule import Info
from promptprior.tasks.sampling.draws import Shots
from tests.backbone.tiny import tiny
from tests.test_cli import fit_prior, saved_model, write_task
from tests.world import always, choice_task, early

TARGET = choice_task("target", early)
EPISODE = make_episode(TARGET, 4, 13)
SETTINGS = Settings(
    length=4,
    source=Training(steps=4, batch_size=8, learning_rates=(0.5,)),
    target=Training(steps=4, batch_size=4, learning_rates=(0.1,)),
    folds=2,
)
CANDIDATES = ("zero_shot_contextual", "linear_probe", "prompt_tuning")
PACE = 100  # tokens, weighted as in estimates, that the clock of these tests takes a second for


@cache
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@cache
def prior() -> Prior:
    return fit(make_method("multitask"), [choice_task("always", always(0))], backbone(), SETTINGS)


def run_auto(folder: Path | None = None, watch: Any = None, **options: object) -> Adapted:
    method = make_method("auto", {"candidates": CANDIDATES, **options})
    [adapted] = adapt(method, [EPISODE], backbone(), None, SETTINGS, RunControl(folder, watch, checkpoint_seconds=0))
    return adapted


def board(adapted: Adapted) -> dict[str, Any]:
    told: Any = adapted.prompt.header.scores["auto"]
    return {line["method"]: line for line in told["leaderboard"]}


def same(one: Adapted, other: Adapted) -> bool:
    a, b = one.prompt.params, other.prompt.params
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that counts what the backbone reads; a call sets how many tokens it takes a second for."""
    pace = [float(PACE)]
    monkeypatch.setattr(import_module("promptprior.adapt"), "monotonic", lambda: backbone().meter.weighted / pace[0])
    return lambda value: pace.__setitem__(0, value)


def seconds_of(folder: Path) -> dict[str, float]:
    record = json.loads((folder / RECORD).read_text())
    return {d["candidate"]: d["seconds"] for d in record["decisions"]}


# Priors --------------------------------------------------------------------------------------------------


def test_a_priors_method_is_one_more_candidate() -> None:
    method = make_method("auto", {"candidates": CANDIDATES[:2]})
    [adapted] = adapt(method, [EPISODE], backbone(), prior(), SETTINGS)
    [alone] = adapt(make_method("multitask"), [EPISODE], backbone(), prior(), SETTINGS)
    lines = board(adapted)
    assert [name for name in lines if name != "auto"] == [*CANDIDATES[:2], "multitask"]
    nll = sum(answer.right_nll for answer in alone.out_of_fold) / len(alone.out_of_fold)
    assert lines["multitask"]["nll"] == pytest.approx(nll)
    [again] = adapt(method, [EPISODE], backbone(), [prior()], SETTINGS)
    assert same(adapted, again)


def test_a_candidate_that_starts_from_the_prior_takes_it_at_its_place() -> None:
    method = make_method("auto", {"candidates": ("multitask", "linear_probe")})
    [adapted] = adapt(method, [EPISODE], backbone(), prior(), SETTINGS)
    assert [name for name in board(adapted) if name != "auto"] == ["multitask", "linear_probe"]


def test_a_prior_that_does_not_fit_is_refused_before_any_work() -> None:
    before = backbone().meter.tokens
    with pytest.raises(SpecError, match="--length 4"):
        adapt(make_method("auto"), [EPISODE], backbone(), prior(), replace(SETTINGS, length=5))
    with pytest.raises(SpecError, match=r"'multitask' \(--options.candidates\).*only adapt can be given"):
        adapt(make_method("auto", {"candidates": ("multitask",)}), [EPISODE], backbone(), None, SETTINGS)
    with pytest.raises(SpecError, match="does not choose"):
        adapt(make_method("auto", {"candidates": ("auto",)}), [EPISODE], backbone(), None, SETTINGS)
    assert backbone().meter.tokens == before


def test_compare_refuses_candidates_that_need_a_prior() -> None:
    with pytest.raises(SpecError, match="'multitask'"):
        Plan(methods=("auto",), targets=("t",), sources=("s",), options={"auto": {"candidates": ["multitask"]}})


# Candidates that train -----------------------------------------------------------------------------------


def test_dev_shots_judge_what_trains_and_folds_the_rest() -> None:
    """Without a blend: a candidate that trains runs once, as it would alone; all are judged on what it left out."""
    method, unfolded = make_method("auto", {"candidates": CANDIDATES, "blend": False}), replace(SETTINGS, folds=0)
    [adapted] = adapt(method, [EPISODE], backbone(), None, unfolded)
    [trained] = adapt(make_method("prompt_tuning"), [EPISODE], backbone(), None, unfolded)
    [probe] = adapt(make_method("linear_probe"), [EPISODE], backbone(), None, replace(SETTINGS, folds=4))
    dev, lines = {e.id for e in EPISODE.shots.dev}, board(adapted)
    assert lines["prompt_tuning"]["score"] == trained.dev_score
    of_dev = [a.right_nll for a in probe.out_of_fold if a.example.id in dev]
    assert lines["linear_probe"]["nll"] == pytest.approx(sum(of_dev) / len(dev))
    assert {a.example.id for a in adapted.out_of_fold} == dev
    [folded] = adapt(replace(method, trained_folds=2), [EPISODE], backbone(), None, unfolded)
    assert len(folded.out_of_fold) == 2 * len(dev)


def test_what_trains_learns_from_either_half_and_both_runs_answer() -> None:
    """Both runs are those of the method alone, on the shots and on the shots turned round; each judges by the rest."""
    unfolded, other = replace(SETTINGS, folds=0), Shots(EPISODE.shots.dev, EPISODE.shots.train)
    episodes = [EPISODE, replace(EPISODE, shots=other)]
    alone = [adapt(make_method("prompt_tuning"), [e], backbone(), None, unfolded)[0] for e in episodes]
    method = make_method("auto", {"candidates": ("prompt_tuning",)})
    [adapted] = adapt(method, [EPISODE], backbone(), None, unfolded)
    members = blend_members(adapted.prompt)
    assert len(members) == 2
    for member, one in zip(members, alone, strict=True):
        assert all(torch.equal(value, one.prompt.params[name]) for name, value in member.params.items())
    assert {a.example.id for a in adapted.out_of_fold} == {e.id for part in (other.train, other.dev) for e in part}
    for one, judged in zip(alone, (other.train, other.dev), strict=True):
        [asked] = answer_requests(backbone(), [PromptRequest(one.prompt, TARGET, judged)])
        own = {a.example.id: list(a.target_nll) for a in adapted.out_of_fold}
        assert [own[e.id] for e in judged] == [pytest.approx(nll) for nll in asked.nll]

    method = make_method("auto", {"candidates": ("linear_probe", "prompt_tuning")})
    [blend] = adapt(method, [EPISODE], backbone(), None, unfolded)
    lines, tests = board(blend), TARGET.split("test")
    weights = [lines[name]["weight"] for name in ("linear_probe", "prompt_tuning")]
    assert blend.prompt.params["weight"][0].tolist() == pytest.approx([weights[0], weights[1] / 2, weights[1] / 2])
    answers = answer_requests(backbone(), [PromptRequest(p, TARGET, tests) for p in (*members, adapted.prompt)])
    halves = [torch.softmax(-torch.tensor(a.nll, dtype=torch.float64), -1) for a in answers]
    assert torch.allclose((halves[0] + halves[1]) / 2, halves[2])
    [once] = adapt(replace(method, both_ways=False), [EPISODE], backbone(), None, unfolded)
    assert len(once.prompt.params["weight"][0]) == 2


def test_a_candidate_that_differs_in_its_head_alone_answers_with_what_the_other_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if it had trained by itself, and nothing is trained twice."""
    pytest.importorskip("peft")
    unfolded, trained = replace(SETTINGS, folds=0), list[str]()
    refit = import_module("promptprior.adaptation.refit")
    monkeypatch.setattr(refit, "run_all_ways", lambda m, *rest: trained.append(m.name) or run_all_ways(m, *rest))
    method = make_method("auto", {"candidates": ("lora", "lora_linear")})
    [adapted] = adapt(method, [EPISODE], backbone(), None, unfolded)
    assert trained == ["lora", "lora"]
    turned_round = replace(EPISODE, shots=Shots(EPISODE.shots.dev, EPISODE.shots.train))
    alone = [adapt(make_method("lora_linear"), [e], backbone(), None, unfolded)[0] for e in (EPISODE, turned_round)]
    members = [member for member in blend_members(adapted.prompt) if member.header.method == "lora_linear"]
    assert len(members) == 2
    for member, one in zip(members, alone, strict=True):
        assert member.header.settings == one.prompt.header.settings
        assert member.header.head == "linear"
        assert all(torch.equal(value, one.prompt.params[name]) for name, value in member.params.items())
    judged = [answer.right_nll for one in alone for answer in one.out_of_fold]
    assert board(adapted)["lora_linear"]["nll"] == pytest.approx(sum(judged) / len(judged))


def test_what_trains_alike_is_known_by_its_settings() -> None:
    def alike(candidate: str, *others: str, folds: int = 0) -> str | None:
        settings = replace(SETTINGS, folds=folds)
        found = trained_alike(make_method(candidate), [make_method(name) for name in others], settings)
        return found and found.name

    assert alike("lora_linear", "linear_probe", "lora") == "lora"
    assert alike("multitask_linear", "multitask") == "multitask"  # both start from a prior of multitask
    for pair in (("lora", "lora_linear"), ("multitask_linear", "reptile"), ("prompted_linear", "zero_shot")):
        assert alike(*pair) is None
    assert alike("lora_linear", "lora", folds=2) is None, "runs of folds are not kept"
    rank = make_method("lora_linear", {"rank": 2})
    assert trained_alike(rank, [make_method("lora")], replace(SETTINGS, folds=0)) is None


def test_a_half_that_lacks_a_class_or_is_much_smaller_teaches_nothing() -> None:
    whole, label = EPISODE.shots, EPISODE.shots.dev[0].label
    lacking = Shots(whole.train, tuple(e for e in whole.dev if e.label == label))
    few = Shots((*whole.train, *TARGET.split("train")), whole.dev)
    assert [turned(replace(EPISODE, shots=shots)) for shots in (lacking, few)] == [None, None]
    assert turned(EPISODE) == replace(EPISODE, shots=Shots(whole.dev, whole.train))


def test_a_method_that_adapts_its_episodes_together_never_sees_both_halves_in_one_run() -> None:
    """Joint steps share a prompt over episodes of one draw: two ways in one run would teach it what judges it."""
    unfolded = replace(SETTINGS, folds=0)
    recipe = make_method("mpt", {"joint_steps": 2})
    prior = fit(recipe, [choice_task("always", always(0))], backbone(), unfolded)
    second = turned(EPISODE)
    assert second is not None
    alone = [adapt(recipe, [e], backbone(), prior, unfolded)[0] for e in (EPISODE, second)]
    method = make_method("auto", {"candidates": ("linear_probe",)})
    [adapted] = adapt(method, [EPISODE], backbone(), prior, unfolded)
    members = [member for member in blend_members(adapted.prompt) if member.header.method == "mpt"]
    for member, one in zip(members, alone, strict=True):
        assert all(torch.equal(value, one.prompt.params[name]) for name, value in member.params.items())


def test_lora_is_left_out_where_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptprior.methods.target_only.weight_tuning.find_spec", lambda name: None)
    [adapted] = adapt(
        make_method("auto", {"candidates": ("linear_probe", "lora")}), [EPISODE], backbone(), None, SETTINGS
    )
    assert [*board(adapted)] == ["linear_probe"]
    told: Any = adapted.prompt.header.scores["auto"]
    assert "promptprior[peft]" in told["cannot"]["lora"]
    assert "lora cannot answer here: it needs a package" in leaderboard_lines(told)[1]
    with pytest.raises(SpecError, match=r"'lora' cannot answer task 'target'.*promptprior\[peft\]"):
        adapt(make_method("lora"), [EPISODE], backbone(), None, SETTINGS)


# The budget ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_candidate_that_would_end_too_late_is_not_started(tmp_path: Path, clock: Callable[[float], None]) -> None:
    run_auto(tmp_path / "free")
    took = seconds_of(tmp_path / "free")
    assert list(took) == [*CANDIDATES]
    first_two = sum(took[name] for name in CANDIDATES[:2])
    enough = run_auto(tmp_path / "enough", seconds=first_two + 1.4 * took["prompt_tuning"])
    assert "prompt_tuning" in board(enough)
    short = run_auto(tmp_path / "short", seconds=first_two + 0.6 * took["prompt_tuning"])
    told: Any = short.prompt.header.scores["auto"]
    assert told["not_run"].keys() == {"prompt_tuning"}
    assert told["not_run"]["prompt_tuning"] == pytest.approx(took["prompt_tuning"], rel=0.3)
    assert "prompt_tuning" not in board(short)
    assert same(short, run_auto(candidates=CANDIDATES[:2]))


def test_what_trains_runs_once_where_there_is_no_time_for_both_ways(tmp_path: Path, clock: Callable[[float], None]):
    unfolded = replace(SETTINGS, folds=0)

    def run(seconds: float | None, folder: Path) -> Adapted:
        method = make_method("auto", {"candidates": ("linear_probe", "prompt_tuning"), "seconds": seconds})
        [adapted] = adapt(method, [EPISODE], backbone(), None, unfolded, RunControl(folder))
        return adapted

    def runs(folder: Path) -> list[int]:
        return [d["runs"] for d in json.loads((folder / RECORD).read_text())["decisions"]]

    run(1e6, tmp_path / "free")
    took = seconds_of(tmp_path / "free")
    assert runs(tmp_path / "free") == [1, 2]
    short = run(took["linear_probe"] + 0.75 * took["prompt_tuning"], tmp_path / "short")
    assert runs(tmp_path / "short") == [1, 1]
    assert len(short.prompt.params["weight"][0]) == 2, "one member for each candidate"
    hasty: Any = run(took["linear_probe"] + 0.25 * took["prompt_tuning"], tmp_path / "hasty").prompt.header.scores
    assert list(hasty["auto"]["not_run"]) == ["prompt_tuning"]


def test_there_is_an_answer_however_short_the_time(clock: Callable[[float], None]) -> None:
    told: Any = run_auto(seconds=1e-6).prompt.header.scores["auto"]
    assert told["chosen"] == CANDIDATES[0]
    assert list(told["not_run"]) == [*CANDIDATES[1:]]


def test_a_cheap_candidate_runs_after_one_that_was_too_long(tmp_path: Path, clock: Callable[[float], None]) -> None:
    order = ("zero_shot_contextual", "prompt_tuning", "linear_probe")
    run_auto(tmp_path, candidates=order)
    took = seconds_of(tmp_path)
    told: Any = run_auto(candidates=order, seconds=2 * (took[order[0]] + took[order[2]])).prompt.header.scores["auto"]
    assert list(told["not_run"]) == ["prompt_tuning"]


def test_the_meter_weighs_what_is_read_without_a_gradient() -> None:
    meter = Meter()
    meter.add(10)
    with torch.no_grad():
        meter.add(10)
    assert (meter.tokens, meter.weighted) == (20, 14)


# Resuming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [PACE / 1e6, PACE * 1e6], ids=["slow", "fast"])
def test_a_resumed_choice_follows_what_was_decided(
    after: float, tmp_path: Path, clock: Callable[[float], None]
) -> None:
    """Killed in the last candidate that had time; what the clock says later changes nothing that was decided."""
    run_auto(tmp_path / "free")
    took = seconds_of(tmp_path / "free")
    seconds = sum(took[name] for name in CANDIDATES[:2]) + 1.4 * took["prompt_tuning"]
    expected = run_auto(tmp_path / "whole", seconds=seconds)

    def watch_stage(stage: str) -> Callable[[int, int, Info], None]:
        def watch(step: int, steps: int, info: Info) -> None:
            if steps and step == 2:
                raise KeyboardInterrupt

        return watch

    with pytest.raises(KeyboardInterrupt):
        run_auto(tmp_path / "killed", watch_stage, seconds=seconds)
    clock(after)
    assert same(expected, run_auto(tmp_path / "killed", seconds=seconds))


def test_what_had_no_time_is_not_run_by_a_faster_resumed_choice(tmp_path: Path, clock: Callable[[float], None]) -> None:
    told: Any = run_auto(tmp_path, seconds=1e-6).prompt.header.scores["auto"]
    clock(1e12)
    again: Any = run_auto(tmp_path, seconds=1e-6).prompt.header.scores["auto"]
    assert again["not_run"] == told["not_run"]
    other: Any = run_auto(tmp_path, seconds=1e6).prompt.header.scores["auto"]  # another choice decides for itself
    assert other["not_run"] == {}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    for text in ("[]", '{"key": 1}', "{"):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(ArtifactError, match=f"{RECORD}.*delete {tmp_path}"):
            run_auto(tmp_path)


# How sure, and the two front doors -----------------------------------------------------------------------


def test_the_choice_says_how_sure_it_is() -> None:
    told: Any = run_auto(blend=False).prompt.header.scores["auto"]
    scores = {line["method"]: line["score"] for line in told["leaderboard"]}
    others = max(score for name, score in scores.items() if name != told["chosen"])
    assert told["gap"]["mean"] == pytest.approx(scores[told["chosen"]] - others)
    assert told["gap"]["low"] <= told["gap"]["mean"] <= told["gap"]["high"]
    assert told["says"].startswith(f"{told['chosen']} answers. Ahead of {told['gap']['to']} by ")


def test_auto_in_python_takes_a_file_and_a_folder(tmp_path: Path) -> None:
    write_task(tmp_path / "data" / "edges", "xz")
    model = saved_model(tmp_path / "model", seed=0)
    found = pp.auto(
        "edges", str(model), shots=2, data=tmp_path / "data", candidates=CANDIDATES[:2], settings=SETTINGS, seconds=600
    )
    found.prompt.save_pretrained(tmp_path / "prompt")
    loaded = pp.load(str(model), dtype="auto")
    again = Prompt.from_pretrained(tmp_path / "prompt", loaded.card)
    assert again.header.method == "auto"
    task = pp.load_task("edges", tmp_path / "data")
    assert pp.evaluate(again, task, loaded, "test") == pp.evaluate(found.prompt, task, loaded, "test")
    same_draw = pp.auto(task, loaded, shots=2, candidates=CANDIDATES[:2], settings=SETTINGS)
    assert same(found, same_draw)


def test_adapt_auto_with_a_prior_and_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = fit_prior(tmp_path)
    words = ["adapt", "--method", "auto", *common, "--prior", tmp_path / "prior", "--target", "edges", "--shots", 2,
             "--steps", 2, "--folds", 2, "--options.candidates", "linear_probe,prompt_tuning"]  # fmt: skip
    assert main([str(w) for w in (*words, "--dry-run")]) == 0
    assert main([str(w) for w in (*words, "--output", tmp_path / "prompt")]) == 0
    out = capsys.readouterr().out
    header = json.loads((tmp_path / "prompt" / "promptprior.json").read_text())
    assert "multitask" in [line["method"] for line in header["scores"]["auto"]["leaderboard"]]
    assert header["scores"]["auto"]["says"] in out
    hasty = (*words, "--options.seconds", 1e-6, "--output", tmp_path / "hasty")
    assert main([str(w) for w in hasty]) == 0
    assert "not run" in capsys.readouterr().out
