# ruff: noqa: F811  (fixtures of test_cli)
"""No command destroys what it did not write itself: outputs, the plans beside them, and what commands read."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from promptprior.config.plan_file import check_output, is_plan_of, plan_beside, save_plan
from promptprior.config.training import Training
from promptprior.errors import ArtifactError
from tests.test_cli import TINY, Cli, cli, compare_words, data, model, prior  # noqa: F401

OTHERS = "what somebody else wrote\n"


@pytest.fixture
def prompt(cli: Cli, data: Path, model: Path, tmp_path: Path) -> Path:
    words = ["--data", data, "--target", "edges", "--backbone", model, *TINY, "--shots", 2, "--steps", 1]
    assert cli("adapt", *words, "--output", tmp_path / "prompt")[0] == 0
    return tmp_path / "prompt"


@pytest.fixture
def results(cli: Cli, data: Path, model: Path, tmp_path: Path) -> Path:
    output = tmp_path / "compared"
    words = ["--methods", "prompt_tuning", "--targets", "edges", "--shots", 2, "--seeds", 13, "--steps", 1]
    assert cli("compare", "--data", data, *words, "--backbone", model, *TINY, "--output", output)[0] == 0
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(cli: Cli, root: Path, *words: object) -> str:
    """The message of a command that is refused; nothing below `root` changes."""
    before = contents(root)
    code, out, err = cli(*words)
    assert (code, out) == (2, ""), err
    assert err.startswith("promptprior: ")
    assert "Traceback" not in err
    assert contents(root) == before
    return err


def test_a_file_of_somebody_else_is_replaced_only_by_force(
    cli: Cli, data: Path, model: Path, prompt: Path, results: Path, tmp_path: Path
):
    file = tmp_path / "notes.txt"
    common = ["--data", data, "--dtype", "float32"]
    commands: dict[str, list[object]] = {
        "--output": ["evaluate", "--prompt", prompt, *common],
        "--output ": ["predict", "--prompt", prompt, *common, "--input", data / "edges" / "test.jsonl"],
        "--output  ": [
            "similar", "--target", "edges", "--sources", "vowels", *common, "--backbone", model, "--length", 3,
            "--shots", 2, "--steps", 1,
        ],
        "--output   ": ["report", results],
        "--markdown": ["report", results],
    }  # fmt: skip
    for flag, words in commands.items():
        file.write_text(OTHERS)
        command = [*words, flag.strip(), file]
        error = refused(cli, tmp_path, *command)
        assert f"({flag.strip()})" in error, error
        assert "--force" in error
        code, _, error = cli(*command, "--force")
        assert code == 0, error
        written = file.read_text()
        assert written != OTHERS
        assert "force: true" not in plan_beside(file).read_text()
        assert cli(*command)[0] == 0, "the command replaces what it wrote itself"
        file.write_text(written + "changed by hand")
        assert "--force" in refused(cli, tmp_path, *command)
        file.unlink()
        plan_beside(file).unlink()


def test_inputs_are_not_replaced_even_by_force(cli: Cli, data: Path, prompt: Path, results: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "xxx"}\n')
    common = ["--data", data, "--dtype", "float32", "--force"]
    predict = ["predict", "--prompt", prompt, *common, "--input", rows, "--output"]
    assert "reads" in refused(cli, tmp_path, *predict, rows)
    assert "reads" in refused(cli, tmp_path, *predict, data / "edges" / "test.jsonl")
    assert "reads" in refused(cli, tmp_path, *predict, prompt / "promptprior.json")
    assert "reads" in refused(cli, tmp_path, "evaluate", "--prompt", prompt, *common, "--output", prompt / "README.md")
    for flag in ("--output", "--markdown", "--csv"):
        assert "reads" in refused(cli, tmp_path, "report", results, flag, results / "results.jsonl", "--force")


def test_export_spares_the_base_model_and_other_adapters(cli: Cli, model: Path, prompt: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(model, base)
    export = ["export", prompt, "--format", "vocabulary", "--output", base]
    assert "--force" in refused(cli, tmp_path, *export)
    assert "reads" in refused(cli, tmp_path, *export, "--backbone", base, "--force")
    theirs = tmp_path / "my_lora"
    theirs.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (theirs / name).write_text(OTHERS)
    peft = ["export", prompt, "--format", "peft", "--output", theirs]
    assert "my_lora" in refused(cli, tmp_path, *peft)
    assert cli(*peft, "--force")[0] == 0
    assert cli(*peft)[0] == 0, "what it wrote itself it replaces"


def test_adapt_spares_priors_and_plans_of_others(cli: Cli, data: Path, prior: Path, prompt: Path, tmp_path: Path):
    adapt = ["adapt", "--prior", prior, "--data", data, "--target", "edges", "--shots", 2, "--dtype", "float32"]
    adapt += ["--target.steps", 1, "--output"]
    assert "reads" in refused(cli, tmp_path, *adapt, prior / "prior", "--force")
    other = tmp_path / "other"
    shutil.copytree(prior / "prior", other)
    assert "--force" in refused(cli, tmp_path, *adapt, other)
    assert cli(*adapt, prompt)[0] == 0, "a prompt that adapt wrote"
    plan_beside(prompt).write_text("shots: 2  # my own\n")
    assert cli(*adapt, prompt)[0] == 0
    plan = tmp_path / "mine.plan.yaml"
    plan.write_text("shots: 2  # my own\n")
    assert "mine.plan.yaml" in refused(cli, tmp_path, *adapt, tmp_path / "mine")


def test_fit_spares_prompts_and_plans_of_others(cli: Cli, data: Path, model: Path, prompt: Path, tmp_path: Path):
    fit = ["fit", "--data", data, "--sources", "vowels", "--steps", 1, "--backbone", model, *TINY, "--output"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.yaml").write_text("seed: 3  # my own\n")
    assert "plan.yaml" in refused(cli, tmp_path, *fit, tmp_path / "mine")
    shutil.copytree(prompt, tmp_path / "odd" / "prior")
    assert "--force" in refused(cli, tmp_path, *fit, tmp_path / "odd")
    assert cli(*fit, tmp_path / "new")[0] == cli(*fit, tmp_path / "new")[0] == 0


def test_compare_spares_files_of_others(cli: Cli, data: Path, model: Path, tmp_path: Path):
    for name in ("plan.yaml", "report.html", "results.jsonl"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(OTHERS)
        assert name in refused(cli, tmp_path, *compare_words(data, model, folder))


def test_import_replaces_what_it_imported(cli: Cli, model: Path, prompt: Path, tmp_path: Path):
    np.save(tmp_path / "prompt.npy", np.full((3, 32), 0.01, np.float32))
    words = ["import", tmp_path / "prompt.npy", "--backbone", model, "--output"]
    assert "--force" in refused(cli, tmp_path, *words, prompt)
    assert cli(*words, tmp_path / "imported")[0] == cli(*words, tmp_path / "imported")[0] == 0


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_an_output_needs_a_name(name: str):
    with pytest.raises(ArtifactError, match="expected the name of a new file"):
        check_output(Path(name), "evaluate")


def test_a_plan_records_files_of_a_folder(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a b.txt").write_text("1")
    save_plan(Training(), plan_beside(folder), "export", [folder])
    assert is_plan_of(plan_beside(folder), "export")
    assert not is_plan_of(plan_beside(folder), "adapt")
    check_output(folder, "export")
    with pytest.raises(ArtifactError, match="exists"):
        check_output(folder, "report")
    (folder / "c.txt").write_text("2")
    with pytest.raises(ArtifactError, match=r"c\.txt exists"):
        check_output(folder, "export")
