"""How good answers are: every metric a task can name, computed by the library that is known for it.

An answer that cannot be read is wrong, never class 0. With two classes it counts as the other class; with
more it counts as a class of its own that is never right. A task whose predictions are all alike still has
a score: correlations and F1 are 0 where their definition divides by zero.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from promptprior.errors import DataError, SpecError, unknown_name
from promptprior.tasks.task import Example, Task

UNKNOWN = -1
ECE_BINS = 15
NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
NUMBER_INSIDE = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])[-+]?\.\d+")


@dataclass(frozen=True)
class Prediction:
    """What a prompt answered to one example.

    `choice` is the index of the ranked answer, or None where the answer was generated. `choice_nll` is the
    summed negative log-likelihood of every choice in nats, `choice_tokens` how many tokens each has; both
    are empty for free text.
    """

    example_id: str
    text: str
    choice: int | None = None
    choice_nll: tuple[float, ...] = ()
    choice_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answers:
    """Examples with their predictions, seen the ways metrics need them."""

    task: Task
    examples: Sequence[Example]
    predictions: Sequence[Prediction]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in label order; of a free-text task, its label names or its sorted targets."""
        if self.task.label_names:
            return self.task.label_names
        if self.task.is_choice:
            return max((e.choices for e in self.examples), key=len)
        return tuple(sorted({e.target.strip() for e in self.examples}))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The true class of each example."""
        return np.array([self._label(e) for e in self.examples])

    @cached_property
    def guesses(self) -> NDArray[np.int64]:
        """The predicted class of each example; where it is unknown, a wrong one (see above)."""
        raw = np.array([self._guess(e, p) for e, p in zip(self.examples, self.predictions, strict=True)])
        wrong = 1 - self.labels if len(self.classes) == 2 else np.full_like(raw, UNKNOWN)
        return np.where(raw == UNKNOWN, wrong, raw)

    @cached_property
    def seen_classes(self) -> list[int]:
        """Classes that are true or predicted somewhere: what macro averages run over, as in scikit-learn."""
        return sorted((set(self.labels.tolist()) | set(self.guesses.tolist())) - {UNKNOWN})

    @cached_property
    def texts(self) -> list[str]:
        """The predicted answers."""
        return [p.text for p in self.predictions]

    @cached_property
    def references(self) -> list[tuple[str, ...]]:
        """All accepted answers of each example."""
        return [e.references or (e.target,) for e in self.examples]

    @cached_property
    def log_probabilities(self) -> list[NDArray[np.float64]]:
        """The log-probability of each choice among the choices of its example: log-softmax of -NLL."""
        return [self._log_probabilities(e, p) for e, p in zip(self.examples, self.predictions, strict=True)]

    @property
    def probabilities(self) -> list[NDArray[np.float64]]:
        """The probability of each choice among the choices of its example."""
        return [np.exp(p) for p in self.log_probabilities]

    @property
    def have_nll(self) -> bool:
        """Whether every prediction was ranked, so that calibration can be measured."""
        return self.task.is_choice and all(p.choice_nll for p in self.predictions)

    def _label(self, example: Example) -> int:
        if example.label is not None:
            return example.label
        label = index_of(example.target, self.classes)
        if label == UNKNOWN:
            raise DataError(
                f"task {self.task.name!r}, example {example.id!r}: target {example.target!r} is not one of "
                f"its classes: {', '.join(map(repr, self.classes[:20]))}"
            )
        return label

    def _guess(self, example: Example, prediction: Prediction) -> int:
        if prediction.choice is not None:
            return prediction.choice
        return index_of(prediction.text, example.choices or self.classes)

    def _log_probabilities(self, example: Example, prediction: Prediction) -> NDArray[np.float64]:
        from scipy.special import log_softmax

        nll = np.array(prediction.choice_nll, dtype=np.float64)
        if len(nll) != len(example.choices) or not np.isfinite(nll).all():
            raise DataError(
                f"task {self.task.name!r}, example {example.id!r}: choice_nll {prediction.choice_nll} "
                f"needs one finite number for each of the {len(example.choices)} choices"
            )
        return log_softmax(-nll)


def score(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Every metric of `task.metrics`; for ranked choices also acc_norm, nll, brier and ece.

    Predictions stand in the order of their examples. Scores lie in [0, 1] (correlations in [-1, 1], nll in
    nats). Raises SpecError for an unknown metric and DataError where predictions do not fit the examples.
    """
    functions = {name: metric(name).function for name in task.metrics}
    check_aligned(task, examples, predictions)
    answers = Answers(task, examples, predictions)
    if answers.have_nll:
        functions |= {name: METRICS[name].function for name in CHOICE_METRICS}
    return {name: float(function(answers)) for name, function in functions.items()}


def metric(name: str) -> "Metric":
    """The metric of a name. Raises SpecError with the nearest names."""
    if name not in METRICS:
        raise SpecError(unknown_name("metric", name, METRICS))
    return METRICS[name]


def check_aligned(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    """Raise DataError unless each example has its prediction, in order, with a choice that exists."""
    if not examples:
        raise DataError(f"task {task.name!r}: no examples to score")
    if len(examples) != len(predictions):
        raise DataError(f"task {task.name!r}: {len(predictions)} predictions for {len(examples)} examples")
    for example, prediction in zip(examples, predictions, strict=True):
        if example.id != prediction.example_id:
            raise DataError(
                f"task {task.name!r}: the prediction for example {prediction.example_id!r} stands where "
                f"{example.id!r} is expected"
            )
        if prediction.choice is not None and not 0 <= prediction.choice < len(example.choices):
            raise DataError(
                f"task {task.name!r}, example {example.id!r}: choice {prediction.choice} is outside its "
                f"{len(example.choices)} choices; an unknown answer is None"
            )


def index_of(text: str, names: Sequence[str]) -> int:
    """The one name a text equals, ignoring outer space, then also case; UNKNOWN for none or several.

    >>> index_of(" Yes", ["no", "yes"]), index_of("maybe", ["no", "yes"])
    (1, -1)
    """
    for same in (str.strip, lambda s: s.strip().casefold()):
        found = [i for i, name in enumerate(names) if same(name) == same(text)]
        if len(found) == 1:
            return found[0]
    return UNKNOWN


# Classes ------------------------------------------------------------------------------------------------


def accuracy(answers: Answers) -> float:
    """Share of right answers."""
    from sklearn.metrics import accuracy_score

    return accuracy_score(answers.labels, answers.guesses)


def macro_f1(answers: Answers) -> float:
    """F1 averaged over the classes that are true or predicted somewhere."""
    return f1_over(answers, answers.seen_classes)


def f1(answers: Answers) -> float:
    """F1 of the last class (GLUE's "equivalent", "duplicate"). Raises SpecError unless there are two."""
    if len(answers.classes) != 2:
        raise SpecError(
            f"task {answers.task.name!r}: metric 'f1' needs two classes, got {len(answers.classes)}; use 'macro_f1'"
        )
    return f1_over(answers, [1])


def f1_against_favor(answers: Answers) -> float:
    """Mean F1 of AGAINST and FAVOR (SemEval-2016 task 6). Raises SpecError where one of them is missing."""
    named = {name.strip().casefold().replace("favour", "favor"): i for i, name in enumerate(answers.classes)}
    missing = {"against", "favor"} - set(named)
    if missing:
        raise SpecError(
            f"task {answers.task.name!r}: metric 'f1_against_favor' needs label_names with "
            f"{' and '.join(sorted(missing))}; got {list(answers.classes)}"
        )
    return f1_over(answers, [named["against"], named["favor"]])


def f1_over(answers: Answers, classes: list[int]) -> float:
    """F1 averaged over some classes; a class that is neither true nor predicted has 0."""
    from sklearn.metrics import f1_score

    return f1_score(answers.labels, answers.guesses, labels=classes, average="macro", zero_division=0)


def macro_recall(answers: Answers) -> float:
    """Recall averaged over the true classes (balanced accuracy; SemEval-2017 task 4)."""
    from sklearn.metrics import recall_score

    present = sorted(set(answers.labels.tolist()))
    return recall_score(answers.labels, answers.guesses, labels=present, average="macro", zero_division=0)


def matthews_correlation(answers: Answers) -> float:
    """Matthews' correlation (CoLA), in [-1, 1]; 0 where all answers are alike."""
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(answers.labels, answers.guesses)


def grouped_exact_match(answers: Answers) -> float:
    """Share of groups whose rows are all right (MultiRC); a row without a group is one of its own."""
    right = answers.labels == answers.guesses if answers.task.is_choice else exact_matches(answers)
    groups: dict[str, bool] = {}
    for example, ok in zip(answers.examples, right, strict=True):
        key = f"group {example.group}" if example.group else f"row {example.id}"
        groups[key] = groups.get(key, True) and bool(ok)
    return float(np.mean(list(groups.values())))


# Numbers ------------------------------------------------------------------------------------------------


def pearson(answers: Answers) -> float:
    """Pearson's correlation of predicted and true numbers; see `numbers` for text that is none."""
    from scipy.stats import pearsonr

    return correlation(answers, pearsonr)


def spearman(answers: Answers) -> float:
    """Spearman's rank correlation of predicted and true numbers; see `numbers` for text that is none."""
    from scipy.stats import spearmanr

    return correlation(answers, spearmanr)


def correlation(answers: Answers, function: Callable[..., tuple[float, float]]) -> float:
    """A correlation that is 0 where either side is constant."""
    true, predicted = numbers(answers)
    if len(true) < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input is scored, not announced
        value = float(function(true, predicted)[0])
    return value if np.isfinite(value) else 0.0


def numbers(answers: Answers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and predicted numbers. Text that is no number counts as the worst one.

    The worst is the end of the range of true numbers that is farther from the truth. Raises DataError for
    a true answer that is no number.
    """
    true = np.array([true_number(answers.task, e, as_number(e.target)) for e in answers.examples])
    low, high = true.min(), true.max()
    worst = np.where(true - low > high - true, low, high)
    parsed = [as_number(text) for text in answers.texts]
    return true, np.array([w if p is None else p for p, w in zip(parsed, worst, strict=True)])


def number_match(answers: Answers) -> float:
    """Share of answers whose last number equals the last number of the target (GSM8K)."""
    pairs = zip(answers.examples, answers.texts, strict=True)
    return float(
        np.mean([true_number(answers.task, e, last_number(e.target)) == last_number(text) for e, text in pairs])
    )


def as_number(text: str) -> float | None:
    """The number a text is, or None where it is anything else.

    >>> as_number(" 1,250.5 "), as_number("about 3"), as_number("nan")
    (1250.5, None, None)
    """
    stripped = text.strip()
    plain = NUMBER.fullmatch(stripped) and any(c.isdigit() for c in stripped)
    return finite(stripped) if plain else None


def last_number(text: str) -> float | None:
    """The last number in a text, or None.

    >>> last_number("5 apples cost $1,250."), last_number("none")
    (1250.0, None)
    """
    found = NUMBER_INSIDE.findall(text)
    return finite(found[-1]) if found else None


def finite(digits: str) -> float | None:
    """Digits with thousands separators as a float; None where it overflows or is malformed."""
    try:
        value = float(digits.replace(",", ""))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def true_number(task: Task, example: Example, value: float | None) -> float:
    """A parsed target. Raises DataError where it was no number."""
    if value is None:
        raise DataError(f"task {task.name!r}, example {example.id!r}: target {example.target!r} is not a number")
    return value


# Text ---------------------------------------------------------------------------------------------------


def exact_match(answers: Answers) -> float:
    """Share of answers equal to a reference after SQuAD's normalisation."""
    return float(np.mean(exact_matches(answers)))


def exact_matches(answers: Answers) -> list[bool]:
    """Which answers equal one of their references."""
    pairs = zip(answers.texts, answers.references, strict=True)
    return [any(same_answer(text, reference) for reference in references) for text, references in pairs]


def same_answer(text: str, reference: str) -> bool:
    """Equality after SQuAD's normalisation; a reference that it empties is compared as it stands.

    Otherwise an empty generation would be right where the reference is "+", "-" or "the".
    """
    wanted = squad_normalised(reference)
    return squad_normalised(text) == wanted if wanted else text.strip() == reference.strip()


def squad_f1(answers: Answers) -> float:
    """Mean overlap of words with the best reference (SQuAD 1.1's F1)."""
    pairs = zip(answers.texts, answers.references, strict=True)
    return float(np.mean([max(word_f1(text, r) for r in references) for text, references in pairs]))


def word_f1(text: str, reference: str) -> float:
    """F1 of two bags of normalised words, as in SQuAD 1.1's evaluation script."""
    words, wanted = squad_normalised(text).split(), squad_normalised(reference).split()
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def squad_normalised(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces: SQuAD's `normalize_answer`.

    >>> squad_normalised("The  U.S. army")
    'us army'
    """
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def rouge_l(answers: Answers) -> float:
    """Mean ROUGE-L F1 with the best reference (rouge-score, unstemmed; it reads ASCII only)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(answers.texts, answers.references, strict=True)
    return float(np.mean([scorer.score_multi(list(refs), text)["rougeL"].fmeasure for text, refs in pairs]))


def bleu(answers: Answers) -> float:
    """BLEU over all answers together (sacrebleu's defaults), divided by 100."""
    from sacrebleu import corpus_bleu

    width = max(map(len, answers.references))
    streams = [[refs[i] if i < len(refs) else None for refs in answers.references] for i in range(width)]
    return corpus_bleu(answers.texts, streams).score / 100


# Ranked choices -----------------------------------------------------------------------------------------


def acc_norm(answers: Answers) -> float:
    """Accuracy when log-likelihoods are divided by the choice's length in characters, as lm-eval does."""
    rows = zip(ranked(answers).examples, answers.predictions, answers.labels, strict=True)
    return float(np.mean([best_by_length(e, p) == label for e, p, label in rows]))


def best_by_length(example: Example, prediction: Prediction) -> int:
    """The choice with the least negative log-likelihood a character."""
    lengths = np.maximum([len(choice) for choice in example.choices], 1)
    return int(np.argmin(np.array(prediction.choice_nll) / lengths))


def nll(answers: Answers) -> float:
    """Mean negative log-probability of the right choice among the choices, in nats."""
    rows = zip(ranked(answers).log_probabilities, answers.labels, strict=True)
    return -float(np.mean([p[y] for p, y in rows]))


def brier(answers: Answers) -> float:
    """Brier's score, halved so that it lies in [0, 1] for any number of choices."""
    rows = zip(ranked(answers).probabilities, answers.labels, strict=True)
    return float(np.mean([((p - np.eye(len(p))[y]) ** 2).sum() / 2 for p, y in rows]))


def ece(answers: Answers) -> float:
    """Expected calibration error of the likeliest choice, 15 equal bins of confidence (Guo et al. 2017)."""
    probabilities = ranked(answers).probabilities
    confidence = np.array([p.max() for p in probabilities])
    right = np.array([p.argmax() for p in probabilities]) == answers.labels
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(right))


def ranked(answers: Answers) -> Answers:
    """The same answers. Raises DataError unless every choice of every example has a likelihood."""
    if not answers.have_nll:
        raise DataError(
            f"task {answers.task.name!r}: its metrics need the likelihood of every choice, but some prediction has none"
        )
    return answers


@dataclass(frozen=True)
class Metric:
    """A metric and its direction. Only one where higher is better may be a task's first metric."""

    function: Callable[[Answers], float]
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy),
    "acc_norm": Metric(acc_norm),
    "macro_f1": Metric(macro_f1),
    "f1": Metric(f1),
    "f1_against_favor": Metric(f1_against_favor),
    "macro_recall": Metric(macro_recall),
    "matthews_correlation": Metric(matthews_correlation),
    "grouped_exact_match": Metric(grouped_exact_match),
    "pearson": Metric(pearson),
    "spearman": Metric(spearman),
    "number_match": Metric(number_match),
    "exact_match": Metric(exact_match),
    "squad_f1": Metric(squad_f1),
    "rougeL": Metric(rouge_l),
    "bleu": Metric(bleu),
    "nll": Metric(nll, higher_is_better=False),
    "brier": Metric(brier, higher_is_better=False),
    "ece": Metric(ece, higher_is_better=False),
}

CHOICE_METRICS = ("acc_norm", "nll", "brier", "ece")
