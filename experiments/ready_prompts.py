"""The prompts that come with the library, from the prior that does (experiments/ready_prior.yaml).

    python experiments/ready_prompts.py DATA [OUTPUT]

DATA is a folder of task folders. Each prompt is fitted to the first training rows of every class, and scored on the
first test rows of every class. Seconds each; licences of the texts: sms_spam CC BY 4.0 (UCI),
google_wellformed_query CC BY-SA 4.0, dbpedia_14 CC BY-SA 3.0.
"""

import sys
from pathlib import Path

import promptprior as pp
from promptprior.artifacts.artifact import READY
from promptprior.tasks.task import Example, Task

MADE_FROM = {"spam": "sms_spam", "question": "google_wellformed_query", "topic": "dbpedia_14"}
TAUGHT, TESTED = 48, 240


def first_of_each(task: Task, split: str, rows: int) -> list[Example]:
    """The first rows of every class, as many of each."""
    examples = task.examples[split]
    return [e for label in range(len(task.label_names)) for e in [e for e in examples if e.label == label][:rows]]


def main(data: Path, output: Path) -> None:
    """Fit, score and save each."""
    for name, source in MADE_FROM.items():
        task = pp.load_task(data / source)
        taught, tested = (
            first_of_each(task, split, rows)
            for split, rows in (("train", TAUGHT), ("test", TESTED // len(task.label_names)))
        )
        classifier = pp.PromptClassifier("smollm2", prior="smollm2/classification", method="ridge_prior")
        classifier.fit([e.text for e in taught], [task.label_names[e.label or 0] for e in taught])
        score = classifier.score([e.text for e in tested], [task.label_names[e.label or 0] for e in tested])
        classifier.save(output / name)
        print(f"{name}: {len(taught)} texts of {source}, accuracy {score:.3f} on {len(tested)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else READY / "prompts" / "smollm2")
