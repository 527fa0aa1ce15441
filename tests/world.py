"""A tiny world for tests of the core: easy synthetic tasks for the tiny models, and short settings."""

from collections.abc import Callable, Sequence

import torch

from promptprior.config.training import Settings, Training
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Example, Task

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(name: str, count: int) -> list[str]:
    """Random words of three to eight letters, the same for the same name."""
    g = generator("words", name)
    lengths = torch.randint(3, 9, (count,), generator=g).tolist()
    return ["".join(LETTERS[i] for i in torch.randint(26, (n,), generator=g).tolist()) for n in lengths]


def choice_task(
    name: str, answer: Callable[[str], int], choices: Sequence[str] = ("yes", "no"), size: int = 32
) -> Task:
    """Which of the choices a word gets; half of the words are the test split."""
    made = [
        Example(f"{name}-{i}", word, choices[answer(word)], tuple(choices), answer(word))
        for i, word in enumerate(words(name, 2 * size))
    ]
    return Task(
        name, "multiple_choice", ("accuracy",), {"train": tuple(made[:size]), "test": tuple(made[size:])},
        label_names=tuple(choices),
    )  # fmt: skip


def text_task(name: str, answer: Callable[[str], str], size: int = 32) -> Task:
    """A word to be answered in free text."""
    made = [
        Example(f"{name}-{i}", word, answer(word), references=(answer(word),))
        for i, word in enumerate(words(name, 2 * size))
    ]
    examples = {"train": tuple(made[:size]), "test": tuple(made[size:])}
    return Task(name, "generate_until", ("exact_match",), examples, max_gen_toks=6)


def always(label: int) -> Callable[[str], int]:
    """The easiest task there is."""
    return lambda _: label


def early(word: str) -> int:
    """Whether a word begins in the second half of the alphabet: both classes, seldom learnt by a random model."""
    return int(word[0] > "m")


def short(**changes: object) -> Settings:
    """Settings for prompts of four tokens and runs of a few steps."""
    source = Training(steps=12, batch_size=8, learning_rates=(0.5,), schedule="constant")
    target = Training(steps=6, batch_size=4, learning_rates=(0.3,), eval_every=2)
    return Settings(**{"length": 4, "source": source, "target": target, **changes})  # type: ignore[arg-type]


def random_batch(texts: int, copies: Sequence[int] | None = None, seed: int = 0, choices: int = 1) -> Batch:
    """Ragged random texts and targets."""
    g = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 96, (int(torch.randint(low, high, (1,), generator=g)),), generator=g).tolist())

    return collate([Tokens(some(1, 10), tuple(some(1, 5) for _ in range(choices))) for _ in range(texts)], copies)
