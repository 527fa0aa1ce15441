"""All claims by one command: the model is pretrained once, then every fit of every condition is measured, in processes.

    python experiments/proving_ground/run.py --output runs/proving_ground                # all, 20 fits
    python experiments/proving_ground/run.py --output runs/quick --claims meta --fits 3  # a first impression

Each fit of a condition is a line of OUTPUT/rows.jsonl; the same command goes on where it was stopped (claims that share
a family are measured together, within a minute), and more fits are added to those there are. Lines of other settings,
or of another model, are never mixed in: their keys differ. OUTPUT/tables.md and OUTPUT/figures.html are written at the
end (--tables: only these).
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
if __name__ == "__main__":  # before torch is imported; processes that are started inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from promptprior.backbone import Backbone, load
from promptprior.config.mapping import stable_hash
from promptprior.files import append_lines, claimed, read_lines
from proving_ground.claims import CLAIMS
from proving_ground.pretrain import cached_model
from proving_ground.tables import Records, write_tables
from proving_ground.trials import Result, Setup

REVISION = 1  # raise it when a change of the code changes what is measured: older rows are then left out


@dataclass(frozen=True)
class Unit:
    """One fit of one condition, the unit of work. `plan` names the settings and the model."""

    claim: str
    condition: str
    fit: int
    setup: Setup
    model: str
    plan: str

    @property
    def key(self) -> str:
        """What its line is found by."""
        return f"{self.plan}/{self.claim}/{self.condition}/{self.fit}"


@cache
def loaded(folder: str) -> Backbone:
    """The backbone, once in each process."""
    torch.set_num_threads(1)
    return load(folder, "float32", "cpu", check=False)  # pretraining has checked the fast route


def measure_units(units: Sequence[Unit]) -> list[Result]:
    """The lines of units that share a trial."""
    return [measure_unit(unit) for unit in units]


def measure_unit(unit: Unit) -> Result:
    """The line of a unit. An arm that the unit before had too is not counted again in its seconds."""
    start, claim = time.process_time(), CLAIMS[unit.claim]
    rows = claim.measure(loaded(unit.model), claim.conditions[unit.condition], unit.fit, unit.setup)
    seconds = round(time.process_time() - start, 3)  # of the processor, whatever else the machine does
    head = {"key": unit.key, "claim": unit.claim, "condition": unit.condition, "fit": unit.fit, "seconds": seconds}
    return {**head, "rows": [{k: _short(v) for k, v in row.items()} for row in rows]}


def _short(value: object) -> object:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def plan_units(claims: Sequence[str], fits: int, setup: Setup, model: str) -> list[Unit]:
    """All units, fit by fit, so that every claim has some fits early."""
    card = loaded(model).card.fingerprint
    return [
        Unit(name, condition, fit, setup, model, stable_hash([REVISION, setup, card, to_plain(name, condition)]))
        for fit in range(fits)
        for name in claims
        for condition in CLAIMS[name].conditions
    ]


def to_plain(claim: str, condition: str) -> str:
    """What a condition says, for its key."""
    return repr(CLAIMS[claim].conditions[condition])


def measure_all(units: Sequence[Unit], workers: int) -> Iterator[Result]:
    """The lines of units, in whatever order they are done; those of one fit of one family in one process."""
    by_trial: dict[tuple[int, str], list[Unit]] = {}
    for unit in units:
        by_trial.setdefault((unit.fit, to_plain(unit.claim, unit.condition)), []).append(unit)
    if workers == 1:
        for own in by_trial.values():
            yield from map(measure_unit, own)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for lines in pool.imap_unordered(measure_units, by_trial.values()):
            yield from lines


def run(units: Sequence[Unit], folder: Path, workers: int) -> Records:
    """Measure what is missing, and return the lines of all units."""
    path = folder / "rows.jsonl"
    done = {line["key"]: line for line in read_lines(path)}
    missing = [unit for unit in units if unit.key not in done]
    start = time.monotonic()
    for number, line in enumerate(measure_all(missing, workers), start=1):
        append_lines(path, [line])
        done[line["key"]] = line
        left = (time.monotonic() - start) / number * (len(missing) - number)
        what = f"{line['claim']}, {line['condition']}, fit {line['fit']}"
        print(
            f"{number} of {len(missing)}: {what} ({line['seconds']:.1f} s of a core); {left / 60:.0f} min left",
            flush=True,
        )
    return [done[unit.key] for unit in units]


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain, measure, tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--claims", default=",".join(CLAIMS), help=f"of {', '.join(CLAIMS)}")
    parser.add_argument("--fits", type=int, default=20)
    parser.add_argument("--targets", type=int, default=10, help="targets of each fit")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each; 1: this one alone")
    parser.add_argument("--model", type=Path, help="folder of the pretrained model; by default it is made and cached")
    parser.add_argument("--tables", action="store_true", help="only write the tables of what was measured")
    chosen = parser.parse_args(arguments)
    names = [name.strip() for name in chosen.claims.split(",")]
    if unknown := [name for name in names if name not in CLAIMS]:
        parser.error(f"--claims {', '.join(unknown)}: expected some of {', '.join(CLAIMS)}")
    for name in ("fits", "targets", "workers"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} {getattr(chosen, name)}: expected at least 1")
    torch.set_num_threads(1)
    model = str((chosen.model or cached_model()).resolve())
    with claimed(chosen.output):
        units = plan_units(names, chosen.fits, replace(Setup(), targets=chosen.targets), model)
        if chosen.tables:
            known = {line["key"]: line for line in read_lines(chosen.output / "rows.jsonl")}
            lines = [known[unit.key] for unit in units if unit.key in known]
        else:
            lines = run(units, chosen.output, chosen.workers)
        write_tables(lines, chosen.output)
    print(f"{chosen.output / 'tables.md'} and {chosen.output / 'figures.html'}")


if __name__ == "__main__":
    main()
