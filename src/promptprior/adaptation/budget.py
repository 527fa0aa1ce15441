"""Which candidates a budget of seconds lets start, decided once: a run that resumes follows what is on record."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from promptprior.config.record_file import read_record
from promptprior.files import write_json
from promptprior.processes import all_decide

RECORD = "candidates.json"


@dataclass(frozen=True)
class Decision:
    """Whether a candidate starts, and the seconds that one run was expected to take, None while nothing was measured.

    Where there is time for one run of two (both_ways.py), `runs` is 1. `seconds` and `tokens` (weighted as in
    cost_estimate.py) are what it took, 0 until it has ended.
    """

    candidate: str
    starts: bool
    expected: float | None
    seconds: float = 0.0
    tokens: float = 0.0
    runs: int = 1


@dataclass(frozen=True)
class Record:
    """The decisions of one choice; `key` is a hash of all that the choice is among."""

    key: str
    decisions: tuple[Decision, ...]


def decide(
    candidate: str,
    work: float,
    runs: tuple[int, int],
    before: Sequence[Decision],
    seconds: float | None,
    is_needed: bool,
) -> Decision:
    """What a budget lets a candidate do whose runs have so much `work` each, in weighted tokens: as many of its `runs`
    (least, most) as there is time for at the pace of the candidates `before` it. One that `is_needed` for an answer
    starts in any case. All processes decide alike."""
    if seconds is None:
        return Decision(candidate, starts=True, expected=None, runs=runs[1])
    spent, read = sum(d.seconds for d in before), sum(d.tokens for d in before)
    expected, left = work * spent / read if read else None, seconds - spent
    starts, _ = all_decide(is_needed or runs[0] * (expected or 0) <= left, 0)
    fits, _ = all_decide(expected is not None and runs[1] * expected <= left, 0)
    return Decision(candidate, starts, expected, runs=runs[1] if fits else runs[0])


def read_decisions(folder: Path | str | None, key: str) -> tuple[Decision, ...]:
    """What was decided before, in order; nothing without a folder, without a record, or where it is of another choice.

    Raises ArtifactError for a record that is damaged.
    """
    if folder is None or not (path := Path(folder) / RECORD).exists():
        return ()
    record = read_record(Record, path)
    return record.decisions if record.key == key else ()


def write_decisions(folder: Path | str | None, key: str, decisions: Sequence[Decision]) -> None:
    """Put what is decided on record, whole or not at all."""
    if folder is not None:
        write_json(Path(folder) / RECORD, asdict(Record(key, tuple(decisions))))
