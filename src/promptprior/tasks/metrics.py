"""How good answers are: THE list of metrics that a task can name, each computed by the library that is known for it.

An answer that cannot be read is wrong, never class 0. With two classes it counts as the other class; with
more it counts as a class of its own that is never right. A task whose predictions are all alike still has
a score: correlations and F1 are 0 where their definition divides by zero.

Another package adds a metric by an entry point of the group ``promptprior.metrics`` that names a `Metric`.
"""

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from promptprior import plugins
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

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The probability of every choice, normalised over them; none for free text.

        >>> Prediction("1", "yes", 0, (0.0, math.log(3))).probabilities
        (0.75, 0.25)
        """
        least = min(self.choice_nll, default=0.0)
        shares = [math.exp(least - nll) for nll in self.choice_nll]
        total = sum(shares)
        return tuple(share / total for share in shares)


@dataclass(frozen=True)
class AnswerSet:
    """Examples with their predictions, seen the ways metrics need them."""

    task: Task
    examples: Sequence[Example]
    predictions: Sequence[Prediction]

    def take(self, places: Sequence[int]) -> "AnswerSet":
        """The examples at these places, maybe one several times, and what is computed already. Classes stay."""
        some = AnswerSet(self.task, [self.examples[p] for p in places], [self.predictions[p] for p in places])
        known = vars(self)
        taken = {name: known[name][places] for name in ("labels", "guesses", "log_probabilities") if name in known}
        vars(some).update(taken | {"classes": self.classes})
        return some

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
        """The true class of each example. Raises DataError for a target that is none of the classes."""
        labels = [index_of(e.target, self.classes) if e.label is None else e.label for e in self.examples]
        if UNKNOWN in labels:
            example = self.examples[labels.index(UNKNOWN)]
            raise DataError(
                f"task {self.task.name!r}, example {example.id!r}: target {example.target!r} is not one of "
                f"its classes: {', '.join(map(repr, self.classes[:20]))}"
            )
        return np.array(labels)

    @cached_property
    def guesses(self) -> NDArray[np.int64]:
        """The predicted class of each example; where it is unknown, a wrong one (see above)."""
        raw = np.array(
            [
                index_of(p.text, e.choices or self.classes) if p.choice is None else p.choice
                for e, p in zip(self.examples, self.predictions, strict=True)
            ]
        )
        wrong = 1 - self.labels if len(self.classes) == 2 else np.full_like(raw, UNKNOWN)
        return np.where(raw == UNKNOWN, wrong, raw)

    @cached_property
    def exact_matches(self) -> NDArray[np.bool_]:
        """Which answers equal one of their references after SQuAD's normalisation.

        A reference that it empties is compared as it stands: otherwise an empty generation would be right where the
        reference is "+", "-" or "the".
        """
        matches = []
        for text, references in self.texts_and_references:
            answer = squad_normalised(text)
            pairs = ((squad_normalised(reference), reference) for reference in references)
            matches.append(any(answer == wanted if wanted else text.strip() == raw.strip() for wanted, raw in pairs))
        return np.array(matches)

    @cached_property
    def texts_and_references(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each predicted text with all accepted answers of its example."""
        pairs = zip(self.predictions, self.examples, strict=True)
        return [(p.text, e.references or (e.target,)) for p, e in pairs]

    @property
    def have_nll(self) -> bool:
        """Whether every prediction was ranked, so that calibration can be measured."""
        return self.task.is_choice and all(p.choice_nll for p in self.predictions)

    @cached_property
    def log_probabilities(self) -> NDArray[np.float64]:
        """The log-probability in nats of each choice among the choices of its example, [examples, choices]: log-softmax
        of -NLL. Where an example has fewer choices than others, the rest has probability 0.

        Raises DataError unless every choice of every example has a finite likelihood.
        """
        from scipy.special import log_softmax

        if not self.have_nll:
            raise DataError(
                f"task {self.task.name!r}: its metrics need the likelihood of every choice, but some prediction has "
                "none"
            )
        table = np.full((len(self.examples), max(len(e.choices) for e in self.examples)), np.inf)
        for row, example, prediction in zip(table, self.examples, self.predictions, strict=True):
            nll = prediction.choice_nll
            if len(nll) != len(example.choices) or not all(map(math.isfinite, nll)):
                raise DataError(
                    f"task {self.task.name!r}, example {example.id!r}: choice_nll {tuple(nll)} "
                    f"needs one finite number for each of the {len(example.choices)} choices"
                )
            row[: len(nll)] = nll
        return log_softmax(-table, axis=1)


@dataclass(frozen=True)
class Metric:
    """A metric, its direction and its range. Whoever compares values of metrics compares their `merit`.

    `needs_ranking` says that it is computed from the likelihood of every choice; such metrics are reported for all
    tasks with ranked choices. `each` gives a value for every example where the metric is the mean of these.
    """

    function: Callable[[AnswerSet], float]
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    needs_ranking: bool = False
    each: Callable[[AnswerSet], NDArray[Any]] | None = None


def resampled_score(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> Callable[[Sequence[int]], float]:
    """The first metric of a task as a function of places among the examples: what `score` gives of these alone. Raises
    SpecError for an unknown metric."""
    first, answers = metric(task.metrics[0]), AnswerSet(task, examples, predictions)
    if first.each is not None:
        values = first.each(answers)
        return lambda places: float(values[places].mean())
    if task.is_choice:  # once, for all resamples
        _ = answers.log_probabilities if first.needs_ranking else (answers.labels, answers.guesses)
    return lambda places: float(first.function(answers.take(places)))


def score(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], names: Sequence[str] = ()
) -> dict[str, float]:
    """The metrics of these names, by default all of `task.metrics`, and for ranked choices `acc_norm`, `nll`,
    `brier` and `ece`.

    Predictions stand in the order of their examples. Scores lie in [0, 1] (correlations in [-1, 1], `nll` in nats).
    Raises SpecError for an unknown metric and DataError where predictions do not fit the examples.
    """
    metrics = {name: metric(name) for name in names or task.metrics}
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
    answers = AnswerSet(task, examples, predictions)
    if not names and answers.have_nll:
        metrics |= {name: value for name, value in METRICS.items() if value.needs_ranking}
    return {name: float(value.function(answers)) for name, value in metrics.items()}


def metric(name: str) -> Metric:
    """The metric of a name, built in or of another package. Raises SpecError with the nearest names."""
    if name in METRICS:
        return METRICS[name]
    others = plugins.load_plugins("promptprior.metrics", own_names=METRICS)
    if name not in others:
        raise SpecError(unknown_name("metric", name, [*METRICS, *others]))
    value = others[name]
    if not isinstance(value, Metric):
        raise SpecError(
            f"entry point {others.describe(name)} is {value!r}; expected a promptprior.tasks.metrics.Metric"
        )
    return value


def merit(name: str, value: float) -> float:
    """A metric's value as what selection, the guard and reports compare: higher is better, whatever the metric.

    It is its own inverse: merit(name, merit(name, value)) is the value. Raises SpecError for an unknown metric.

    >>> merit("accuracy", 0.5), merit("nll", 0.5)
    (0.5, -0.5)
    """
    return value if metric(name).higher_is_better else -value


def best_constant(task: Task, examples: Sequence[Example]) -> float | None:
    """The best value of `task.metrics[0]` that one answer for all examples gets; None where there are no classes.

    It is also None for metrics that need the likelihood of every choice. Raises SpecError for an unknown metric.
    """
    main = metric(task.metrics[0])
    if not task.is_choice or main.needs_ranking or len({e.choices for e in examples}) != 1:
        return None
    answers = enumerate(examples[0].choices)
    sets = [AnswerSet(task, examples, [Prediction(e.id, text, i) for e in examples]) for i, text in answers]
    values = [float(main.function(answer_set)) for answer_set in sets]
    return max(values) if main.higher_is_better else min(values)


def direction_mark(task: Task) -> list[str]:
    """What a key gains for a task whose first metric is better when lower: before `merit`, dev picked the worst of it.

    Keys of all other tasks stay as they were. Raises SpecError for an unknown metric.
    """
    return [] if metric(task.metrics[0]).higher_is_better else ["lower is better"]


def index_of(text: str, names: Sequence[str]) -> int:
    """The one name a text equals, ignoring outer space, then also case; UNKNOWN for none or several.

    >>> index_of(" Yes", ["no", "yes"]), index_of("maybe", ["no", "yes"])
    (1, -1)
    """
    stripped = text.strip()
    exact = [i for i, name in enumerate(names) if name.strip() == stripped]
    folded = [i for i, name in enumerate(names) if name.strip().casefold() == stripped.casefold()]
    return next((matches[0] for matches in (exact, folded) if len(matches) == 1), UNKNOWN)


# --- classes ------------------------------------------------------------------------------------------


def class_score(answers: AnswerSet, name: str, over: Literal["seen", "true", "last", "stance"] | None = None) -> float:
    """A score of scikit-learn over true and predicted classes.

    F1 and recall are averaged `over` the classes that are true or predicted somewhere, those that are true, the last
    of two (GLUE's "equivalent", "duplicate"), or `AGAINST` and `FAVOR` (SemEval-2016 task 6); a class that is neither
    true nor predicted has 0. Raises SpecError where a task lacks these classes.
    """
    from sklearn import metrics

    function = getattr(metrics, name)
    if over is None:
        return float(function(answers.labels, answers.guesses))
    classes = sorted({*answers.labels.tolist(), *(answers.guesses.tolist() if over == "seen" else ())} - {UNKNOWN})
    if over == "last":
        if len(answers.classes) != 2:
            raise SpecError(
                f"task {answers.task.name!r}: metric 'f1' needs two classes, got {len(answers.classes)}; use 'macro_f1'"
            )
        classes = [1]
    if over == "stance":
        index = {word.strip().casefold().replace("favour", "favor"): i for i, word in enumerate(answers.classes)}
        missing = {"against", "favor"} - set(index)
        if missing:
            raise SpecError(
                f"task {answers.task.name!r}: metric 'f1_against_favor' needs label_names with "
                f"{' and '.join(sorted(missing))}; got {list(answers.classes)}"
            )
        classes = [index["against"], index["favor"]]
    return float(function(answers.labels, answers.guesses, labels=classes, average="macro", zero_division=0))


def grouped_exact_match(answers: AnswerSet) -> float:
    """Share of groups whose rows are all right (MultiRC); a row without a group is one of its own."""
    right = answers.labels == answers.guesses if answers.task.is_choice else answers.exact_matches
    groups: dict[str, bool] = {}
    for example, ok in zip(answers.examples, right, strict=True):
        key = f"group {example.group}" if example.group else f"row {example.id}"
        groups[key] = groups.get(key, True) and bool(ok)
    return float(np.mean(list(groups.values())))


# --- numbers ----------------------------------------------------------------------------------------------


def correlation(answers: AnswerSet, name: str) -> float:
    """Correlation of predicted and true numbers by a function of scipy.stats; 0 where either side is constant.

    A predicted text that is no number counts as the worst one: the end of the range of true numbers that is farther
    from the truth. Raises DataError for a true answer that is no number.
    """
    from scipy import stats

    true = true_numbers(answers, as_number)
    low, high = true.min(), true.max()
    worst = np.where(true - low > high - true, low, high)
    parsed = [as_number(p.text) for p in answers.predictions]
    predicted = np.array([w if p is None else p for p, w in zip(parsed, worst, strict=True)])
    if len(true) < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input is scored, not announced
        value = float(getattr(stats, name)(true, predicted)[0])
    return value if np.isfinite(value) else 0.0


def true_numbers(answers: AnswerSet, parse: Callable[[str], float | None]) -> NDArray[np.float64]:
    """The number in each target. Raises DataError for a target without one."""
    values = [parse(e.target) for e in answers.examples]
    for example, value in zip(answers.examples, values, strict=True):
        if value is None:
            raise DataError(
                f"task {answers.task.name!r}, example {example.id!r}: target {example.target!r} is not a number"
            )
    return np.array(values, dtype=np.float64)


def as_number(text: str) -> float | None:
    """The finite number a text is, thousands separators allowed, or None where it is anything else.

    >>> as_number(" 1,250.5 "), as_number("about 3"), as_number("nan")
    (1250.5, None, None)
    """
    try:
        value = float(text.strip().replace(",", "")) if NUMBER.fullmatch(text.strip()) else np.nan
    except ValueError:  # a sign or an exponent alone
        return None
    return value if np.isfinite(value) else None


def last_number(text: str) -> float | None:
    """The last number in a text, or None.

    >>> last_number("5 apples cost $1,250."), last_number("none")
    (1250.0, None)
    """
    numbers = NUMBER_INSIDE.findall(text)
    return as_number(numbers[-1]) if numbers else None


# --- text -------------------------------------------------------------------------------------------------


def text_score(answers: AnswerSet, name: Literal["exact_match", "number_match", "squad_f1", "rougeL", "bleu"]) -> float:
    """A score of free text against its references.

    "exact_match" is the share of `exact_matches`, "number_match" that of answers whose last number equals the last
    number of the target (GSM8K). "squad_f1" is the mean F1 of two bags of normalised words, with the best reference, as
    in SQuAD 1.1's evaluation script. "rougeL" is the mean ROUGE-L F1 with the best reference (rouge-score, unstemmed;
    it reads ASCII only). "bleu" is BLEU over all answers together (sacrebleu's defaults), divided by 100. Raises
    DataError where "number_match" meets a target without a number.
    """
    pairs = answers.texts_and_references
    if name == "exact_match":
        return float(np.mean(answers.exact_matches))
    if name == "number_match":
        true = true_numbers(answers, last_number)
        return float(np.mean([last_number(p.text) == t for p, t in zip(answers.predictions, true, strict=True)]))
    if name == "rougeL":
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"])
        return float(np.mean([scorer.score_multi(list(refs), text)["rougeL"].fmeasure for text, refs in pairs]))
    if name == "bleu":
        from sacrebleu import corpus_bleu

        texts, references = zip(*pairs, strict=True)
        most = max(map(len, references))
        streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
        return corpus_bleu(list(texts), streams).score / 100
    best = []
    for text, references in pairs:
        words = Counter(squad_normalised(text).split())
        wanted = [Counter(squad_normalised(reference).split()) for reference in references]
        shared = [(words & bag).total() for bag in wanted]
        f1s = [2 * n / (words.total() + bag.total()) if n else 0.0 for n, bag in zip(shared, wanted, strict=True)]
        best.append(max(f1s))
    return float(np.mean(best))


def squad_normalised(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces: SQuAD's `normalize_answer`.

    >>> squad_normalised("The  U.S. army")
    'us army'
    """
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def wilson_interval(share: float, count: int) -> list[float]:
    """The ends of the 95% interval of a share of `count` rows (Wilson 1927): of few rows it is wide.

    >>> [round(end, 2) for end in wilson_interval(5 / 6, 6)]
    [0.44, 0.97]
    """
    z = 1.959964
    centre, spread = share + z * z / (2 * count), z * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5
    return [(centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)]


# --- ranked choices ---------------------------------------------------------------------------------------


def ranked_score(answers: AnswerSet, name: Literal["acc_norm", "nll", "brier", "ece"]) -> float:
    """A score of the likelihoods of all choices.

    "acc_norm" is accuracy when log-likelihoods are divided by the choice's length in characters, as lm-eval does. "nll"
    is the mean NLL of the right choice in nats. "brier" is Brier's score, halved so that it lies in [0, 1] for any
    number of choices. "ece" is the expected calibration error of the likeliest choice, in 15 equal bins of confidence
    (Guo et al. 2017).
    """
    labels, log_p = answers.labels, answers.log_probabilities
    if name == "acc_norm":
        lengths = [np.maximum([len(choice) for choice in example.choices], 1) for example in answers.examples]
        rows = zip(answers.predictions, lengths, labels, strict=True)
        return float(np.mean([np.argmin(np.array(p.choice_nll) / length) == y for p, length, y in rows]))
    if name == "nll":
        return -float(log_p[np.arange(len(labels)), labels].mean())
    probabilities = np.exp(log_p)  # [examples, choices]
    if name == "brier":
        right_answers = np.eye(probabilities.shape[1])[labels]
        return float(((probabilities - right_answers) ** 2).sum(1).mean() / 2)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    return float(np.abs(np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)).sum() / len(right))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(partial(class_score, name="accuracy_score"), each=lambda a: a.labels == a.guesses),
    "acc_norm": Metric(partial(ranked_score, name="acc_norm"), needs_ranking=True),
    "macro_f1": Metric(partial(class_score, name="f1_score", over="seen")),
    "f1": Metric(partial(class_score, name="f1_score", over="last")),
    "f1_against_favor": Metric(partial(class_score, name="f1_score", over="stance")),
    "macro_recall": Metric(partial(class_score, name="recall_score", over="true")),  # SemEval-2017 task 4
    "balanced_accuracy": Metric(partial(class_score, name="recall_score", over="true")),
    "matthews_correlation": Metric(partial(class_score, name="matthews_corrcoef"), bounds=(-1.0, 1.0)),  # CoLA
    "grouped_exact_match": Metric(grouped_exact_match),
    "pearson": Metric(partial(correlation, name="pearsonr"), bounds=(-1.0, 1.0)),
    "spearman": Metric(partial(correlation, name="spearmanr"), bounds=(-1.0, 1.0)),
    "number_match": Metric(partial(text_score, name="number_match")),
    "exact_match": Metric(partial(text_score, name="exact_match"), each=lambda a: a.exact_matches),
    "squad_f1": Metric(partial(text_score, name="squad_f1")),
    "rougeL": Metric(partial(text_score, name="rougeL")),
    "bleu": Metric(partial(text_score, name="bleu")),
    "nll": Metric(
        partial(ranked_score, name="nll"),
        higher_is_better=False,
        bounds=(0.0, float("inf")),
        needs_ranking=True,
    ),
    "brier": Metric(partial(ranked_score, name="brier"), higher_is_better=False, needs_ranking=True),
    "ece": Metric(partial(ranked_score, name="ece"), higher_is_better=False, needs_ranking=True),
}
"""Name to metric; the one list of metrics in promptprior."""
