"""Train, validation and test: how missing ones are carved, and how shared examples are kept out."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from promptprior.tasks.task import SPLITS, Example, Split, normalised

CARVED_SHARE = 0.1
CARVED_MOST = 1000

Splits = dict[Split, tuple[Example, ...]]


def complete(splits: Mapping[Split, tuple[Example, ...]]) -> tuple[Splits, tuple[str, ...]]:
    """Train, validation and test from whatever is labelled, and a note on each split that was made.

    Without a test split the validation split is the test; what is still missing is carved out of train, by
    content, so that the same file always gives the same splits whatever the order of its rows.
    """
    out = {name: examples for name, examples in splits.items() if examples}
    notes = []
    if "test" not in out and "validation" in out and "train" in out:
        out["test"] = out.pop("validation")
        notes.append("test is the labelled validation split")
    for name in ("test", "validation"):
        if name not in out and "train" in out:
            out["train"], out[name] = carve(out["train"])
            notes.append(f"{name} carved out of train by content ({len(out[name])} examples)")
    return {name: out[name] for name in SPLITS if name in out}, tuple(notes)


def carve(examples: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The examples without a tenth of them (at most 1,000), and that tenth, drawn by content.

    Examples of one group, or with the same normalised text, stay on one side.
    """
    keys = [example.group or normalised(example.text) for example in examples]
    order = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    wanted = min(max(1, round(CARVED_SHARE * len(examples))), CARVED_MOST)
    taken: set[str] = set()
    sizes = Counter(keys)
    for key in order[:-1]:  # the last key stays in train, so that train is never emptied
        if wanted <= 0:
            break
        taken.add(key)
        wanted -= sizes[key]
    pairs = list(zip(examples, keys, strict=True))
    kept = tuple(example for example, key in pairs if key not in taken)
    return kept, tuple(example for example, key in pairs if key in taken)


def drop_shared(splits: Splits) -> tuple[Splits, tuple[str, ...]]:
    """Train and validation without the examples whose normalised text stands in a later split, with notes.

    What is tested is never learned from or selected on, and what selects is never learned from.
    """
    out: Splits = {}
    notes = []
    seen: set[str] = set()
    for name in reversed(SPLITS):
        if name not in splits:
            continue
        keyed = [(normalised(example.text), example) for example in splits[name]]
        out[name] = tuple(example for key, example in keyed if key not in seen)
        seen.update(key for key, _ in keyed)
        dropped = len(keyed) - len(out[name])
        if dropped:
            notes.append(f"{dropped} {name} example(s) dropped whose text stands in a later split")
    return {name: out[name] for name in SPLITS if name in out}, tuple(notes)
