"""Write the tables of docs/studies again, from the rows in docs/studies/results.

    python experiments/study_tables.py             all studies
    python experiments/study_tables.py field tpt   some

A test compares what this writes with the files that stand there (tests/test_studies.py).
"""

import sys
from pathlib import Path

from promptprior.errors import unknown_name
from promptprior.report.page import make_report

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
NAMES = sorted(path.stem for path in (STUDIES / "results").glob("*.jsonl"))


def write_tables(name: str, folder: Path = STUDIES) -> Path:
    """Write the tables of a study to a folder and return the file."""
    command = f"python experiments/study_tables.py {name}"
    report = make_report(STUDIES / "results" / f"{name}.jsonl", f"Tables of {name}", command=command)
    return report.write_markdown(folder / f"{name}_tables.md")


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            sys.exit(unknown_name("study", name, NAMES))
        print(write_tables(name))
