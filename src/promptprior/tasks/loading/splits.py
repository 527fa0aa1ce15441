"""Train, validation and test: how missing ones are carved, and how shared examples are kept out."""

import hashlib
from collections import Counter
from collections.abc import Mapping

from promptprior.tasks.task import SPLITS, Example, Split, normalised

CARVED_SHARE = 0.1
CARVED_MOST = 1000
MOVED = "test is the labelled validation split"

Splits = dict[Split, tuple[Example, ...]]


def complete_splits(splits: Mapping[Split, tuple[Example, ...]]) -> tuple[Splits, tuple[str, ...]]:
    """Train, validation and test that share no text, from whatever is labelled, and a note on each change.

    Without a test split the validation split is the test; what is still missing is carved out of train, by content, so
    that the same file always gives the same splits whatever the order of its rows. Then train and validation lose the
    examples whose normalised text stands in a later split: what is tested is never learned from or selected on, and
    what selects is never learned from.
    """
    out = {name: examples for name, examples in splits.items() if examples}
    notes = []
    if "test" not in out and "validation" in out and "train" in out:
        out["test"] = out.pop("validation")
        notes.append(MOVED)
    carvable: tuple[Split, Split] = ("test", "validation")
    for name in carvable:
        if name not in out and "train" in out:
            # A tenth, at most 1,000: whole groups, and all examples with one normalised text, on one side.
            keys = [example.group or normalised(example.text) for example in out["train"]]
            sizes = Counter(keys)
            order = sorted(sizes, key=lambda key: hashlib.sha256(key.encode()).digest())
            wanted = min(max(1, round(CARVED_SHARE * len(keys))), CARVED_MOST)
            carved: set[str] = set()
            for key in order[:-1]:  # the last key stays in train, so that train is never emptied
                if wanted <= 0:
                    break
                carved.add(key)
                wanted -= sizes[key]
            pairs = list(zip(out["train"], keys, strict=True))
            out["train"] = tuple(example for example, key in pairs if key not in carved)
            out[name] = tuple(example for example, key in pairs if key in carved)
            notes.append(f"{name} carved out of train by content ({len(out[name])} examples)")
    seen: set[str] = set()
    for name in reversed([name for name in SPLITS if name in out]):
        keyed = [(normalised(example.text), example) for example in out[name]]
        out[name] = tuple(example for key, example in keyed if key not in seen)
        seen.update(key for key, _ in keyed)
        if dropped := len(keyed) - len(out[name]):
            notes.append(f"{dropped} {name} example(s) dropped whose text stands in a later split")
    return {name: out[name] for name in SPLITS if name in out}, tuple(notes)
