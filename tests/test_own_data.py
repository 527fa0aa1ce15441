# ruff: noqa: F811  (fixtures of test_cli)
"""A user's own file, from adapt to predict and evaluate; the task that a prompt belongs to."""

import csv
import io
import json
import random
import shlex
from pathlib import Path

import pytest

from promptprior.artifacts.header import read_header
from tests.test_cli import REPOSITORY, TINY, Cli, cli, commands, data, model  # noqa: F401

LABELS = ("billing", "bug", "praise")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's own, with tickets.csv and new.csv, where commands run."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shuffled = random.Random(0).sample(range(60), 60)
    write_csv(folder / "tickets.csv", [{"text": f"{LABELS[i % 3]} no {i}", "label": LABELS[i % 3]} for i in shuffled])
    new = [{"ticket": str(100 - i), "text": f'a "quoted", text {i}', "note": ""} for i in range(5)]
    write_csv(folder / "new.csv", new)
    return folder


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(stream.getvalue())


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def prompt(cli: Cli, own: Path, model: Path) -> Path:
    words = ["adapt", "--method", "prompt_tuning", "--target", "tickets.csv", "--shots", 2, "--steps", 2]
    code, _, err = cli(*words, "--backbone", model, *TINY, "--output", "runs/tickets")
    assert code == 0, err
    return Path("runs/tickets")


def test_the_readmes_own_data_runs_to_the_end(cli: Cli, own: Path, model: Path):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Your own data")[2]
    steps = [words[1:] for words in commands(text.partition("\n## ")[0]) if "DIR" not in words]
    assert [words[0] for words in steps] == ["tasks", "adapt", "evaluate", "predict"]
    for words in steps:
        tiny = ["--backbone", model, *TINY, "--steps", 2] if words[0] == "adapt" else []
        code, _, err = cli(*words, *tiny)
        assert code == 0, f"{shlex.join(words)}: {err}"
    answered = read_csv((own / "answered.csv").read_text())
    assert [row["ticket"] for row in answered] == ["100", "99", "98", "97", "96"]


def test_predict_keeps_rows_and_adds_answers_and_probabilities(cli: Cli, own: Path, prompt: Path):
    code, out, err = cli("predict", "--prompt", prompt, "--input", "new.csv")
    assert code == 0, err
    assert "answering 5 rows" in err
    rows, given = read_csv(out), read_csv((own / "new.csv").read_text())
    assert list(rows[0]) == ["ticket", "text", "note", "answer", *(f"probability {label}" for label in LABELS)]
    assert [{column: row[column] for column in given[0]} for row in rows] == given
    for row in rows:
        shares = {label: float(row[f"probability {label}"]) for label in LABELS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["answer"] == max(shares, key=shares.__getitem__)

    lines = [{"text": "first", "answer": 1, "more": [1, None]}, {"more": "x", "text": "second", "answer": 2}]
    (own / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, _ = cli("predict", "--prompt", prompt, "--input", "rows.jsonl", "--target", "tickets.csv")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer.pop("input answer") for answer in answers] == [1, 2]  # its own column of that name
    assert [answer["more"] for answer in answers] == [[1, None], "x"]
    assert list(answers[0]["probabilities"]) == list(LABELS)
    code, out, _ = cli("predict", "--prompt", prompt, "--input", "rows.jsonl", "--output", "rows.csv")
    assert (code, out.strip()) == (0, "rows.csv")
    assert [row["more"] for row in read_csv((own / "rows.csv").read_text())] == ["[1, null]", "x"]


def test_a_row_that_the_spec_refuses_keeps_its_place(cli: Cli, own: Path, prompt: Path):
    spec = "task: tickets\ndoc_to_text: text\ndoc_to_target: label\ndoc_to_choice: [billing, bug]\n"
    (own / "spec.yaml").write_text(spec + "doc_filter: \"{{ ticket != '99' }}\"\n")
    code, out, err = cli("predict", "--prompt", prompt, "--input", "new.csv", "--target", "spec.yaml")
    assert code == 0, err
    assert [bool(row["answer"]) for row in read_csv(out)] == [True, False, True, True, True]


def test_answers_of_two_prompts_stand_side_by_side(cli: Cli, own: Path, prompt: Path):
    """Rows that were answered are answered again: no column is lost, and the file can be read once more."""
    write_csv(own / "gold.csv", [{"text": "bug no 1", "answer": "gold"}])
    for given, output in (("gold.csv", "one.csv"), ("one.csv", "two.csv"), ("two.csv", "three.csv")):
        assert cli("predict", "--prompt", prompt, "--input", given, "--output", output)[0] == 0
    [row] = read_csv((own / "three.csv").read_text())
    assert row["input answer"] == "gold"
    assert row["answer"] == row["input input answer"] == row["input input input answer"] in LABELS


def test_rows_of_another_file_are_scored_as_the_prompts_own_are(cli: Cli, own: Path, prompt: Path):
    """Equal to scoring a task of these rows; those that taught the prompt are counted, and nothing else is read."""
    fresh = [{"note": "x", "label": LABELS[i % 3], "text": f"about {LABELS[i % 2]} {i}"} for i in range(9)]
    write_csv(own / "fresh.csv", fresh)
    code, out, err = cli("evaluate", "--prompt", prompt, "--input", "fresh.csv", "--json", "--output", "scores.json")
    assert (code, "warning" in err) == (0, False)
    report = json.loads(out)
    assert (report["task"], report["input"], report["examples"]) == ("tickets", "fresh.csv", 9)
    predicted = read_csv(cli("predict", "--prompt", prompt, "--input", "fresh.csv")[1])
    right = sum(row["answer"] == row["label"] for row in predicted)
    assert report["scores"]["accuracy"] == pytest.approx(right / 9)
    assert json.loads((own / "scores.json").read_text()) == report

    code, out, err = cli("evaluate", "--prompt", prompt, "--input", "tickets.csv")
    assert code == 0
    assert out.startswith("tickets, 60 rows of tickets.csv")
    assert "warning: 12 of the 60 rows of tickets.csv taught this prompt or chose it" in err  # 2 shots, dev, 3 labels


@pytest.mark.parametrize(
    ("rows", "words", "text"),
    [
        ([{"text": "a", "label": "refund"}], [], "fresh.csv line 2: label 'refund'"),
        ([{"text": "a"}], [], "fresh.csv line 2"),
        ([{"text": "a", "label": "bug"}], ["--target", "noun_number"], "is built in and reads no answers from columns"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(cli: Cli, own: Path, prompt: Path, rows, words, text):
    write_csv(own / "fresh.csv", rows)
    code, out, err = cli("evaluate", "--prompt", prompt, "--input", "fresh.csv", *words)
    assert (code, out) == (2, "")
    assert text in err


def test_free_text_has_answers_without_probabilities(cli: Cli, own: Path, model: Path):
    write_csv(own / "sums.csv", [{"prompt": f"{i} plus one", "completion": str(i + 1)} for i in range(20)])
    write_csv(own / "more.csv", [{"prompt": "7 plus one"}])
    words = [
        "adapt",
        "--target",
        "sums.csv",
        "--shots",
        2,
        "--steps",
        1,
        "--backbone",
        model,
        *TINY,
        "--output",
        "sums",
    ]
    assert cli(*words)[0] == 0
    assert cli("evaluate", "--prompt", "sums")[0] == 0
    assert "free text: abstention ranks answers" in cli("evaluate", "--prompt", "sums", "--abstention")[2]
    code, out, _ = cli("predict", "--prompt", "sums", "--input", "more.csv")
    assert (code, list(read_csv(out)[0])) == (0, ["prompt", "answer"])


def test_a_prompt_finds_its_file_from_anywhere_and_says_when_it_has_moved(
    cli: Cli, own: Path, prompt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert read_header(prompt)[0].tasks[0].path == str(own / "tickets.csv")
    folder = own / prompt
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("evaluate", "--prompt", folder)
    assert code == 0, err
    assert out.startswith("tickets, 6 test rows")
    assert "scoring 6 rows" in err
    (own / "tickets.csv").rename(own / "old.csv")
    for words in (["evaluate"], ["predict", "--input", own / "new.csv"]):
        code, _, err = cli(*words, "--prompt", folder)
        assert code == 2
        assert f"of {own / 'tickets.csv'}, which is not there any more" in err
        assert "(--target FILE)" in err
        assert cli(*words, "--prompt", folder, "--target", own / "old.csv")[0] == 0


def test_evaluate_refuses_another_task_of_the_name(cli: Cli, own: Path, prompt: Path, data: Path):
    own_scores = cli("evaluate", "--prompt", prompt, "--json")[1]
    with (own / "tickets.csv").open("a") as file:
        file.write("one more bug,bug\n")
    code, out, err = cli("evaluate", "--prompt", prompt)
    assert (code, out) == (2, "")
    assert "'tickets'" in err
    assert "fingerprint" in err
    assert "--target" in err
    assert cli("evaluate", "--prompt", prompt, "--target", "tickets.csv")[0] == 0

    (data / "tickets").mkdir()
    (data / "tickets" / "train.csv").write_text((data.parent / "own" / "tickets.csv").read_text())
    assert "fingerprint" in cli("evaluate", "--prompt", prompt, "--data", data)[2]
    assert cli("evaluate", "--prompt", prompt, "--data", data, "--target", "tickets")[0] == 0
    assert json.loads(own_scores)["task"] == "tickets"


def test_an_older_prompt_of_a_file_says_how_to_name_it(cli: Cli, own: Path, prompt: Path):
    header = json.loads((prompt / "promptprior.json").read_text())
    header["tasks"][0].pop("path")
    (prompt / "promptprior.json").write_text(json.dumps(header))
    code, _, err = cli("evaluate", "--prompt", prompt)
    assert code == 2
    assert "unknown task 'tickets'" in err
    assert "--target FILE" in err


def test_evaluate_uses_the_dtype_of_the_prompt(cli: Cli, own: Path, prompt: Path):
    scored = json.loads((prompt / "promptprior.json").read_text())["scores"]["test"]
    assert cli("evaluate", "--prompt", prompt, "--output", "scores.json")[0] == 0
    assert "dtype: float32" in Path("scores.json.plan.yaml").read_text()
    assert json.loads(Path("scores.json").read_text())["scores"] == scored
    assert cli("evaluate", "--prompt", prompt, "--dtype", "float64", "--output", "scores.json")[0] == 0
    assert "dtype: float64" in Path("scores.json.plan.yaml").read_text()


def test_one_text_with_two_answers_is_said_before_training(cli: Cli, own: Path, model: Path):
    with (own / "tickets.csv").open("a") as file:
        file.write("Bug no 1!,praise\n")
    words = ["--backbone", model, *TINY, "--shots", 2, "--steps", 1]
    adapted = cli("adapt", "--target", "tickets.csv", *words, "--output", "prompt")
    seeds = ["--seeds", 13, "--methods", "prompt_tuning"]
    compared = cli("compare", "--targets", "tickets.csv", *seeds, *words, "--output", "out")
    fitted = cli("fit", "--sources", "tickets.csv", "--backbone", model, *TINY, "--steps", 1, "--output", "prior")
    for code, _, err in (adapted, compared, fitted):
        assert code == 0, err
        assert "warning: task tickets: 1 text(s) of train have two different answers: 'bug no 1" in err
