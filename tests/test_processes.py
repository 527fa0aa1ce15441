"""Two processes train, judge, write and print as one would: through the real loop, and through torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from promptprior.cli import main
from promptprior.cli.entry import all_processes
from promptprior.cli.verb import find_verb
from promptprior.errors import SpecError
from promptprior.evaluate import dev_scores, make_eval_set
from promptprior.files import append_lines, read_tensors, write_text
from promptprior.notation import Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.processes import all_decide, is_first
from promptprior.rules.descent import Descent
from promptprior.rules.inner import Inner, InnerSgd
from promptprior.rules.maml import Maml
from promptprior.rules.optimiser import AdamW, Rate, Sgd
from promptprior.rules.rule import Rule
from promptprior.rules.stein_kernels import PerToken
from promptprior.rules.svgd import Svgd
from promptprior.tasks.sampling.meta_draws import MetaBatch
from promptprior.train import Run, Trained, train
from tests.backbone.tiny import saved_model, tiny
from tests.test_cli import write_task
from tests.world import choice_task, early, random_batch

LENGTH, STEPS, COPIES = 3, 4, 2
RATE = Rate((0.3,))
INNER = Inner(InnerSgd(0.1))
RULES: dict[str, Rule] = {
    "descent": Descent(AdamW(RATE)),
    "svgd": Svgd(Sgd(RATE), PerToken(), count=5.0),
    "fomaml": Maml(Sgd(RATE), INNER, order=1),
    "maml": Maml(Sgd(RATE), INNER),
}


@dataclass(frozen=True)
class Ragged:
    """Batches of one to six texts: never the same number for two processes."""

    kind: str

    def batch(self, step: int) -> object:
        texts = (5, 1, 6, 3)[step]
        if self.kind == "svgd":
            return random_batch(texts, seed=step)
        if self.kind == "descent":
            return random_batch(texts, [x % COPIES for x in range(texts)], seed=step)
        units = [random_batch(texts + 2, [x % 3 for x in range(texts + 2)], seed=10 * step + i) for i in range(3)]
        return MetaBatch(tuple(units[:2]), units[2], torch.tensor([0, 1, 1]))


def trained(kind: str, folder: Path | None = None, watch: Callable[..., None] | None = None) -> Trained:
    """A few steps of a rule, judged on dev before, between and after."""
    backbone = tiny("llama", max_tokens=40)
    objective = PromptObjective(backbone, Direct(LENGTH, backbone.width))
    task = choice_task("early", early, size=7)
    eval_sets = [make_eval_set(objective, task, task.split("train"), copy=c) for c in range(COPIES)]
    shape = (COPIES, LENGTH, backbone.width)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * backbone.scale
    return train(
        Run(
            key=kind,
            objective=objective,
            rule=RULES[kind],
            params={"prompt": start},
            draws=Ragged(kind),
            steps=STEPS,
            select=lambda params: dev_scores(objective, eval_sets, params),
            eval_every=2,
        ),
        folder,
        watch,
        checkpoint_seconds=0,
    )


def results(kind: str, folder: Path) -> dict[str, Tensor]:
    """What a run came to, as tensors, with the steps a watcher was told of."""
    told: list[int] = []
    done = trained(kind, folder / kind, lambda step, *_: told.append(step))
    assert done.best is not None
    nll = [line["dev_nll"] for line in done.history if "dev_nll" in line]
    return {
        "last": done.last["prompt"],
        "best": done.params["prompt"],
        "score": torch.tensor(done.best.score),
        "nll": torch.tensor(nll),
        "cost": torch.tensor([done.cost.rows]),
        "told": torch.tensor(told),
    }


def one_of_two(rank: int, folder: str) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    home = Path(folder) / f"from{rank}"
    torch.save({kind: results(kind, home) for kind in RULES}, f"{folder}/{rank}.pt")
    write_text(home / "text", "only the first writes")
    append_lines(home / "lines", [{"rank": rank}])
    answers = torch.tensor(
        [all_decide(True, 0)[0], all_decide(rank == 0, 0)[0], all_decide(rank == 1, 0)[0], is_first()]
    )
    torch.save(answers, f"{folder}/answers{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("two")
    mp.spawn(one_of_two, (str(made),), nprocs=2)
    return made


@pytest.mark.parametrize("kind", RULES)
def test_two_processes_train_as_one(kind: str, folder: Path, tmp_path: Path) -> None:
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True)[kind] for rank in (0, 1))
    alone = results(kind, tmp_path)
    assert alone["told"].tolist() == first["told"].tolist() == [1, 2, 3, 4]
    assert second["told"].tolist() == []
    for name in ("last", "best", "score", "nll", "cost"):
        assert torch.equal(first[name], second[name]), f"processes differ in {name}"
        torch.testing.assert_close(first[name], alone[name], rtol=1e-6, atol=1e-9)
    assert (first["last"] - first["best"]).abs().max() > 0 or kind != "descent"


def test_only_the_first_process_writes(folder: Path) -> None:
    written = {str(p.relative_to(folder)) for p in folder.glob("from*/**/*") if p.is_file()}
    assert {name for name in written if name.startswith("from1")} == set()
    assert {"from0/text", "from0/lines", *(f"from0/{kind}/state.safetensors" for kind in RULES)} <= written


def test_the_first_process_answers_for_all(folder: Path) -> None:
    answers = [torch.load(folder / f"answers{rank}.pt", weights_only=True).tolist() for rank in (0, 1)]
    assert answers == [[True, True, False, True], [True, True, False, False]]
    assert all_decide(True, 0) == (True, 0)
    assert all_decide(False, 15) == (False, 15)


def test_a_verb_that_is_not_split_refuses_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = pytest.raises(SpecError, match=r"compare runs in one process, and this job has 2 \(WORLD_SIZE\)")
    with said, all_processes(find_verb("compare")):
        pass


@pytest.mark.slow
def test_torchrun_fits_the_same_prior_and_prints_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_model(tmp_path / "model")
    write_task(tmp_path / "data" / "vowels", "ae")
    words = ["fit", "--sources", "vowels", "--data", "data", "--backbone", "model", "--dtype", "float64"]
    words += ["--length", "3", "--steps", "3", "--source.batch-size", "5", "--output"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = [*launcher, "-m", "promptprior", *words, "two"]
    done = subprocess.run(two, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two/prior\n"
    assert done.stderr.count("step 3/3") == 1
    monkeypatch.chdir(tmp_path)
    assert main([*words, "one"]) == 0
    assert capsys.readouterr().out == "one/prior\n"
    alone, split = (read_tensors(next((tmp_path / name / "prior").glob("*.safetensors"))) for name in ("one", "two"))
    for name, value in alone.items():
        torch.testing.assert_close(split[name], value, rtol=1e-6, atol=1e-9)


def test_accelerate_that_started_one_process_for_several_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    said = pytest.raises(SpecError, match=r"started one.*add --multi-gpu")
    with said, all_processes(find_verb("adapt")):
        pass


@pytest.mark.slow
def test_the_pages_accelerate_command_adapts_in_two_processes_as_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is the one of docs/how_to/on_a_cluster.md, with settings that make it short.

    Had the launcher started one process, it would be refused (the test before).
    """
    pytest.importorskip("accelerate", reason="needs accelerate: pip install 'promptprior[demo]'")
    page = (Path(__file__).parents[1] / "docs/how_to/on_a_cluster.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith("accelerate launch")]
    words = line.split()
    split = words.index("promptprior") + 1
    launcher, adapting = words[:split], words[split:]
    assert (adapting[0], adapting[-2:]) == ("adapt", ["--output", "runs/c"])

    saved_model(tmp_path / "model")
    for name in "ac":
        (tmp_path / f"{name}.csv").write_text(
            "text,label\n" + "".join(f"{('low', 'tip')[i % 2]} {i},{('no', 'yes')[i % 2]}\n" for i in range(40))
        )
    monkeypatch.chdir(tmp_path)
    tiny_model = ["--backbone", "model", "--dtype", "float64"]
    fitting = ["fit", "--sources", "a.csv", *tiny_model, "--length", "3", "--steps", "1", "--output", "runs/prior"]
    assert main(fitting) == 0
    short_run = [*tiny_model, "--shots", "3", "--steps", "3", "--target.batch-size", "5", "--test-limit", "0"]

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*launcher, *adapting, *short_run], **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("learned from 6 examples") == 1
    assert done.stderr.count("step 3/3") == 1
    assert main([*adapting[:-1], "runs/alone", *short_run]) == 0
    assert done.stdout.splitlines()[:-1] == capsys.readouterr().out.splitlines()[1:-1]
    alone, both = (read_tensors(next((tmp_path / "runs" / n).glob("*.safetensors"))) for n in ("alone", "c"))
    assert both.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-6, atol=1e-9)
