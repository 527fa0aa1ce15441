"""Your own CSV: from a file of labelled rows to a prompt, with and without a prior from other tasks.

python examples/own_csv.py                     # writes tickets.csv, if there is none, and uses it
python examples/own_csv.py my.csv              # any CSV with the columns text and label
"""

import csv
import sys
from itertools import product
from pathlib import Path

import promptprior as pp

SUBJECTS = {
    "billing": ["the invoice", "my last payment", "the refund", "a charge on my card", "the yearly price"],
    "technical": ["the app", "the login page", "the export to PDF", "my password reset", "the search field"],
}
COMPLAINTS = {
    "billing": ["is twice what we agreed", "never arrived", "went to the wrong account", "has the wrong VAT number"],
    "technical": ["crashes at start", "shows an empty page", "is slower than yesterday", "says unknown error"],
}
GREETINGS = ["Hello,", "Good morning,", "Dear team,", "Once more:", "Quick question,", "Sorry to bother you,"]


def write_tickets(path: Path) -> None:
    """A small file of made-up support tickets."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for team in SUBJECTS:
            for greeting, subject, complaint in product(GREETINGS, SUBJECTS[team], COMPLAINTS[team]):
                rows.writerow([f"{greeting} {subject} {complaint}.", team])


def main(path: Path, backbone_name: str = "smollm2", steps: int = 40) -> dict[str, float]:
    """Accuracy on the file's test rows: without a prompt, from scratch, and from a prior."""
    if not path.exists():
        write_tickets(path)
    backbone = pp.load(backbone_name, dtype="auto")
    sources = [pp.load_task(name) for name in ("noun_polarity", "concreteness", "part_of_speech")]
    episode = pp.make_episode(pp.load_task(path), k=4, seed=13)
    settings = pp.Settings(length=10, source=pp.Training(steps=steps), target=pp.Training(steps=steps, eval_every=10))

    accuracy = {}
    for name in ("zero_shot", "prompt_tuning", "multitask"):
        method = pp.make_method(name)
        prior = pp.fit(method, sources, backbone, settings) if method.needs_sources else None
        adapted = pp.adapt(method, [episode], backbone, prior, settings)
        accuracy[name] = pp.score_on_test(backbone, adapted)[0].scores["accuracy"]
        print(f"{name:14}{accuracy[name]:.3f}")
    return accuracy


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tickets.csv"))
