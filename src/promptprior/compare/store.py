"""What a comparison keeps on disk. One process writes: the one that was started, whoever does the work."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.artifacts.header import HEADER_FILE
from promptprior.backbone import BackboneCard
from promptprior.compare.plan import Cell
from promptprior.compare.schedule import COST
from promptprior.cost import Cost
from promptprior.files import append_line, read_json, write_json
from promptprior.report.results import Row, read_rows

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Fitted:
    """A prior, and what fitting it cost."""

    prior: Prior
    cost: Cost


@dataclass(frozen=True)
class Finished:
    """A cell's result and its prompt."""

    row: Row
    prompt: Prompt


def finished_rows(output: Path, wanted: Sequence[Cell]) -> dict[str, Row]:
    """The good rows of these cells that are on disk; of several for one cell the last."""
    keys = {cell.key for cell in wanted}
    return {row.cell: row for row in read_rows(output / RESULTS) if row.is_ok and row.cell in keys}


def keep_prior(folder: Path, fitted: Fitted) -> None:
    """Save a fitted prior, unless the fit has done so itself, then its cost; its checkpoints are no longer needed."""
    if not (folder / "prior" / HEADER_FILE).exists():
        fitted.prior.save_pretrained(folder / "prior")
    write_json(folder / COST, asdict(fitted.cost))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def kept_prior(folder: Path, backbone: BackboneCard) -> Fitted:
    """A prior that is kept. Raises ArtifactError when it is damaged or of another backbone."""
    return Fitted(Prior.from_pretrained(folder / "prior", backbone), Cost(**read_json(folder / COST)))


def keep_finished(output: Path, results: Sequence[Finished]) -> None:
    """Save the prompts of finished cells, each before its row: a row says that all of its cell is there."""
    for result in results:
        result.prompt.save_pretrained(output / "prompts" / result.row.cell)
        keep_row(output, result.row)


def keep_row(output: Path, row: Row) -> None:
    """Append a row to the results."""
    append_line(output / RESULTS, row.to_json())
