"""Which candidate targets a study may have, by the rule of docs/protocol.md, before any method of it runs.

    promptprior compare --methods zero_shot,prompt_tuning --targets A,B --shots 1000 --target.steps 1000 \\
        --test-rows balanced --test-limit 240 --output runs/candidates --data DIR
    python experiments/choose_targets.py runs/candidates/results.jsonl

A target passes where prompt tuning on all data beats both the best constant answer and zero-shot by 0.10, in the mean
over draws, on at least 240 test rows. Texts of at most 60 tokens are the candidates' own doc_filter's to see to.
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from promptprior.report.protocol.cautions import ENOUGH_ROWS
from promptprior.report.results import read_rows

ROOM = 0.10  # scores that learning must be able to add


def main(path: Path) -> None:
    """Print a line for every candidate, and the names of those that pass."""
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    constants, sizes = {}, {}
    for row in read_rows(path):
        if row.score is not None:
            scores[row.target][row.method].append(row.score)
            constants[row.target], sizes[row.target] = row.constant, row.n_test
    passed = []
    print("| target | rows | constant | zero-shot | prompt tuning, all data | passes |", "|" + "---|" * 6, sep="\n")
    for target, of_method in sorted(scores.items()):
        constant, zero, tuned = constants[target], *(of_method.get(m, []) for m in ("zero_shot", "prompt_tuning"))
        if not zero or not tuned:
            raise SystemExit(f"{target}: needs cells of zero_shot and prompt_tuning; run the same compare again")
        why = []
        if constant is None:
            why.append("no constant answer is known: free text needs another rule")
        if sizes[target] < ENOUGH_ROWS:
            why.append(f"fewer than {ENOUGH_ROWS} rows")
        if mean(tuned) < max(mean(zero), constant or 0.0) + ROOM:
            why.append(f"less than {ROOM} to learn")
        passed += [] if why else [target]
        known = "-" if constant is None else f"{constant:.3f}"
        line = f"{target} | {sizes[target]} | {known} | {mean(zero):.3f} | {mean(tuned):.3f}"
        print(f"| {line} | {', '.join(why) or 'yes'} |")
    print(",".join(passed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
