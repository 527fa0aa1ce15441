"""MLflow gets every number of every step once, from fit, adapt and compare, in a file and without a network."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from promptprior.errors import SpecError
from promptprior.watch import mlflow_runs, mlflow_uri
from tests.test_cli import TINY, Cli, cli, data, model, rows_of  # noqa: F401 - fixtures


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a database, which takes seconds to make; whoever looks up a host or connects to one fails."""
    pytest.importorskip("mlflow", reason="needs pip install 'promptprior[mlflow]'")

    def refuse(*words: object, **options: object) -> None:
        raise AssertionError(f"a test of MLflow used the network: {words[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.delenv("CI", raising=False)  # MLflow sends nothing from there in any case
        yield tmp_path_factory.mktemp("mlflow") / "logs"


def runs_of(store: Path, experiment: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow_uri(str(store)))
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])


def points_of(store: Path, run: Any, line: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    history = MlflowClient(mlflow_uri(str(store))).get_metric_history(run.info.run_id, line)
    return [(point.step, point.value) for point in history]


def test_a_resumed_stage_goes_on_in_its_run_and_one_that_begins_again_gets_another(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "resumed")

    def session(first: int, last: int) -> None:
        watch = mlflow_runs(str(store), tmp_path / "out", "fit-spot")("source")
        assert watch is not None
        for step in range(first, last + 1):
            watch(step, 6, {"loss": torch.tensor([step * 1.0, step * 2.0]), "dev_nll": torch.tensor(0.5)})

    session(1, 2)  # killed
    session(1, 4)  # there was no checkpoint; killed again
    session(3, 6)  # from a checkpoint at step 2
    killed, whole = runs_of(store, "resumed")
    assert (killed.info.status, whole.info.status) == ("KILLED", "FINISHED")
    assert whole.info.run_name == f"{tmp_path / 'out'}/fit-spot/source"
    assert points_of(store, killed, "loss/copy0") == [(1, 1.0), (2, 2.0)]
    assert points_of(store, whole, "loss/copy1") == [(step, step * 2.0) for step in range(1, 7)]
    assert len(points_of(store, whole, "dev_nll")) == 6
    session(1, 6)
    assert [run.info.status for run in runs_of(store, "resumed")] == ["KILLED", "FINISHED", "FINISHED"]


def test_mlflow_hears_every_stage_of_fit_adapt_and_compare(
    cli: Cli,  # noqa: F811
    data: Path,  # noqa: F811
    model: Path,  # noqa: F811
    store: Path,
    tmp_path: Path,
) -> None:
    common, prior = ["--data", data, "--backbone", model, *TINY, "--mlflow", store], tmp_path / "prior"
    fit = ["fit", *common, "--sources", "vowels", "--steps", 1, "--output", prior]
    assert cli(*fit)[0] == 0
    adapt = ["adapt", *common, "--prior", prior, "--target", "edges", "--shots", 2, "--steps", 1]
    assert cli(*adapt, "--output", tmp_path / "prompt")[0] == 0
    lists = ["--methods", "multitask", "--sources", "vowels", "--targets", "edges", "--shots", 2, "--seeds", 13]
    compare = ["compare", *common, *lists, "--steps", 1, "--output", tmp_path / "out"]
    code, _, err = cli(*compare)
    assert code == 0, err
    runs = runs_of(store, "promptprior")
    named = [run.info.run_name.removeprefix(f"{tmp_path}/") for run in runs]
    assert named[:2] == ["prior/source", "prompt/target"]
    assert [name.split("-")[0] + name[name.rindex("/") :] for name in named[2:]] == [
        "out/fit/source",
        "out/adapt/target",
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(len(points_of(store, run, "loss")) == 1 for run in runs)
    cells = rows_of(tmp_path / "out")
    assert "0 to run" in cli(*compare)[2]  # where steps are logged decides no result, and no point comes twice
    assert rows_of(tmp_path / "out") == cells
    assert len(runs_of(store, "promptprior")) == 4


def test_mlflow_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(SpecError, match=r"pip install 'promptprior\[mlflow\]'"):
        mlflow_runs(str(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("", "expected a folder, sqlite:///FILE or http://SERVER"),
        ("http://ann:secret@host:5000", r"http://… \(--mlflow\) holds a password.*MLFLOW_TRACKING_PASSWORD"),
        ("http://[1", "Invalid IPv6 URL"),
        ("zebra://host", r"zebra://host \(--mlflow\): .*expected a folder"),
        ("FILE", r"--mlflow\): .*expected a folder that can be written"),
    ],
)
def test_a_place_that_cannot_be_is_one_message(place: str, reason: str, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs pip install 'promptprior[mlflow]'")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpecError, match=reason) as caught:
        mlflow_runs(place.replace("FILE", str(tmp_path / "file")), tmp_path / "out")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
