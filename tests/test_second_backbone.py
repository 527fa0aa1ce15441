"""The script that trains a second backbone: what it feeds the model is right, and a stopped run goes on."""

import argparse
import importlib.util
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import promptprior

REPOSITORY = Path(__file__).parents[1]
LINES = [
    f"This is sentence number {n} of a small text that says {w} about things."
    for n in range(40)
    for w in ("much", "little")
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("second_backbone", REPOSITORY / "experiments" / "second_backbone.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["second_backbone"] = made
    spec.loader.exec_module(made)
    return made


def test_corrupted_text_and_its_target_are_the_text(script: ModuleType):
    for length in (2, 3, 7, 50, 96):
        ids = list(range(1000, 1000 + length))
        given, answer = script.corrupted(ids, 100, random.Random(length))
        assert given[-1] == answer[-1] == 1
        dropped = {}
        for token in answer[:-1]:
            if token < 1000:
                dropped[token] = place = []
            else:
                place.append(token)
        whole = [t for token in given[:-1] for t in (dropped[token] if token < 1000 else [token])]
        assert whole == ids
        assert sum(map(len, dropped.values())) == max(1, round(0.15 * length))


def test_formats_answer_what_they_ask(script: ModuleType):
    rng, answers = random.Random(0), set()
    for _ in range(200):
        line, other = rng.sample(LINES, 2)
        given, answer = script.occurs(line, other, rng)
        word = re.search(r"\nWord: (\w+)\n", given).group(1)
        assert (word in line) == (answer == "yes")
        given, missing = script.missing(line, other, rng)
        assert given.split("Text: ")[1].split("\nMissing:")[0].replace("_", missing, 1) == line
        given, following = script.continued(line, other, rng)
        assert following in line
        answers |= {answer, script.ordered(line, other, rng)[1], script.follows(line, other, rng)[1]}
    assert answers == {"yes", "no", "right", "swapped"}


def test_no_format_asks_what_the_builtin_suite_asks(script: ModuleType):
    source = "".join(p.read_text() for p in (REPOSITORY / "src/promptprior/tasks/builtin").glob("*.py"))
    asked = set(re.findall(r"\\n([A-Z][\w ]*):\"", source))
    assert "Label" in asked
    rng = random.Random(0)
    fields = {
        script_format(LINES[0], LINES[1], rng)[0].rsplit("\n", 1)[1].rstrip(":") for script_format in script.FORMATS
    }
    assert len(fields) == 5
    assert not fields & asked


def test_a_run_stops_and_goes_on(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    (tmp_path / "sources.json").write_text("{}")
    flags = ["--output", str(tmp_path), "--vocabulary", "400", "--width", "32", "--layers", "1", "--batch", "2"]
    for minutes in ("0.002", "0.01"):
        monkeypatch.setattr(sys, "argv", ["second_backbone.py", *flags, "--minutes", minutes])
        script.main()
    args = argparse.Namespace(seed=13, width=32, layers=1)
    run = script.restored(tmp_path, args, 400)
    assert run.seconds >= 0.6
    assert int(run.optimiser.state_dict()["state"][0]["step"]) == run.step > 0
    backbone = promptprior.load(str(tmp_path / "model"), dtype="float32")
    assert backbone.card.is_encoder_decoder
    assert backbone.frozen.decode(backbone.frozen.tokenizer("This is").input_ids) == "This is"
    assert torch.equal(backbone.frozen.model.shared.weight, run.model.shared.weight)
