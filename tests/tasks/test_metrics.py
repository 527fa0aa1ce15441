"""Metrics against scikit-learn, scipy, torchmetrics, rouge-score, sacrebleu and numbers worked by hand."""

import dataclasses
import inspect
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from promptprior.errors import DataError, SpecError
from promptprior.tasks.metrics import METRICS, Prediction, best_constant, resampled_score, score, squad_normalised
from promptprior.tasks.task import Example, Task


def choice_task(labels, metrics=("accuracy",), names=("no", "yes"), label_names=(), groups=None):
    groups = groups or [""] * len(labels)
    examples = tuple(
        Example(id=str(i), text=f"t{i}", target=names[y], choices=tuple(names), label=int(y), group=g)
        for i, (y, g) in enumerate(zip(labels, groups, strict=True))
    )
    return Task("toy", "multiple_choice", tuple(metrics), {"test": examples}, label_names=label_names)


def text_task(targets, metrics, references=None, label_names=()):
    references = references or [()] * len(targets)
    examples = tuple(
        Example(id=str(i), text=f"t{i}", target=t, references=tuple(r))
        for i, (t, r) in enumerate(zip(targets, references, strict=True))
    )
    return Task("toy", "generate_until", tuple(metrics), {"test": examples}, label_names=label_names)


def chosen(task, choices, nlls=None):
    nlls = nlls if nlls is not None else [()] * len(choices)
    return [
        Prediction(e.id, e.choices[c] if c is not None else "???", c, tuple(n), (1,) * len(n))
        for e, c, n in zip(task.split("test"), choices, nlls, strict=True)
    ]


def said(task, texts):
    return [Prediction(e.id, text) for e, text in zip(task.split("test"), texts, strict=True)]


def scored(task, predictions):
    return score(task, task.split("test"), predictions)


@pytest.fixture
def three_class():
    rng = np.random.default_rng(0)
    return rng.integers(0, 3, 200), rng.integers(0, 3, 200), ("none", "against", "favor")


def test_class_metrics_are_scikit_learns(three_class):
    from sklearn import metrics as sk

    y, p, names = three_class
    named = ("accuracy", "macro_f1", "matthews_correlation", "macro_recall", "balanced_accuracy", "f1_against_favor")
    task = choice_task(y, named, names)
    got = scored(task, chosen(task, p.tolist()))
    assert got == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, p),
            "macro_f1": sk.f1_score(y, p, average="macro"),
            "matthews_correlation": sk.matthews_corrcoef(y, p),
            "macro_recall": sk.balanced_accuracy_score(y, p),
            "balanced_accuracy": sk.balanced_accuracy_score(y, p),
            "f1_against_favor": sk.f1_score(y, p, average=None)[[1, 2]].mean(),
        }
    )


def test_binary_f1_takes_the_last_label_as_positive():
    from sklearn.metrics import f1_score

    y, p = [0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 1, 0]
    task = choice_task(y, ("f1",))
    assert scored(task, chosen(task, p))["f1"] == pytest.approx(f1_score(y, p, pos_label=1))


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "macro_recall", "matthews_correlation"])
def test_unreadable_answers_score_no_better_than_the_wrong_class(name):
    y = [0, 0, 0, 1, 1, 1]
    task = choice_task(y, (name,))
    unreadable = [Prediction(str(i), "gibberish") for i in (0, 1)]
    rest = chosen(task, y)[2:]
    wrong = chosen(task, [1, 1, 0, 1, 1, 1])
    assert scored(task, unreadable + rest)[name] == pytest.approx(scored(task, wrong)[name])
    assert scored(task, [Prediction(str(i), "gibberish") for i in range(6)])[name] <= 0


def test_unreadable_answers_of_three_classes_are_never_right(three_class):
    y, _, names = three_class
    task = choice_task(y, ("accuracy", "macro_f1", "macro_recall", "matthews_correlation"), names)
    assert set(scored(task, said(task, ["?"] * len(y))).values()) == {0.0}


def test_generated_answers_are_read_by_name_ignoring_space_and_case():
    task = choice_task([1, 0, 1], ("accuracy",))
    assert scored(task, said(task, [" Yes ", "no", "yes."]))["accuracy"] == pytest.approx(2 / 3)


def test_names_that_differ_only_in_case_are_told_apart():
    task = choice_task([0, 1, 1], ("accuracy",), names=("us", "US"))
    assert scored(task, said(task, ["us", "US", "Us"]))["accuracy"] == pytest.approx(2 / 3)


def test_free_text_classes_come_from_label_names_or_targets():
    task = text_task(["b", "a", "b"], ("accuracy", "f1", "matthews_correlation"))
    assert scored(task, said(task, ["b", "a", "b"])) == {
        "accuracy": 1.0,
        "f1": 1.0,
        "matthews_correlation": 1.0,
    }
    with pytest.raises(DataError, match=r"example '1': target 'a' is not one of its classes: 'b', 'c'"):
        scored(text_task(["b", "a"], ("accuracy",), label_names=("b", "c")), said(task, ["b", "a", "b"])[:2])


@pytest.mark.parametrize("name", ["f1", "macro_f1", "matthews_correlation", "macro_recall"])
def test_constant_predictions_score_without_warnings(name):
    task = choice_task([1, 1, 0, 1], (name,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = scored(task, chosen(task, [0, 0, 0, 0]))[name]
    assert value == {"f1": 0.0, "macro_f1": 0.2, "matthews_correlation": 0.0, "macro_recall": 0.5}[name]


def test_grouped_exact_match_needs_every_row_of_a_group():
    task = choice_task([0, 1, 1, 0, 1], ("grouped_exact_match",), groups=["a", "a", "b", "b", ""])
    assert scored(task, chosen(task, [0, 1, 1, 1, 1]))["grouped_exact_match"] == pytest.approx(2 / 3)
    free = text_task(["x", "y"], ("grouped_exact_match",))
    assert scored(free, said(free, ["x", "n"]))["grouped_exact_match"] == 0.5


def test_correlations_are_scipys():
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(1)
    x = rng.normal(size=50).round(2)
    y = (x + rng.normal(size=50)).round(2)
    task = text_task(list(map(str, x)), ("pearson", "spearman"))
    got = scored(task, said(task, [f" {v} " for v in y]))
    assert got == pytest.approx({"pearson": pearsonr(x, y)[0], "spearman": spearmanr(x, y)[0]})


def test_text_that_is_no_number_counts_as_the_worst_number():
    from scipy.stats import pearsonr

    true = [0.0, 1.0, 2.0, 4.0, 5.0]
    task = text_task(list(map(str, true)), ("pearson",))
    got = scored(task, said(task, ["0", "1", "two", "nan", "inf"]))["pearson"]
    assert got == pytest.approx(pearsonr(true, [0, 1, 5, 0, 0])[0])
    assert scored(task, said(task, ["?"] * 5))["pearson"] < 0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_constant_numbers_correlate_with_nothing(name):
    task = text_task(["1", "2", "3"], (name,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scored(task, said(task, ["2", "2", "2"]))[name] == 0.0
        assert scored(task, said(task, ["2", "2", "2.0000000000000004"]))[name] >= 0.0
        single = text_task(["1"], (name,))
        assert scored(single, said(single, ["1"]))[name] == 0.0


def test_a_target_that_is_no_number_is_an_error():
    task = text_task(["1", "high"], ("pearson",))
    with pytest.raises(DataError, match="example '1': target 'high' is not a number"):
        scored(task, said(task, ["1", "2"]))


@pytest.mark.parametrize(
    ("said_text", "right"),
    [
        ("so 3 + 4 = 7", True),
        ("7.0", True),
        ("It is $7.", True),
        ("7 or 8", False),
        ("seven", False),
        ("-7", False),
        ("1,007", False),
        ("x7", False),
        ("", False),
    ],
)
def test_number_match_compares_last_numbers(said_text, right):
    task = text_task(["#### 7"], ("number_match",))
    assert scored(task, said(task, [said_text]))["number_match"] == float(right)


def test_number_match_reads_thousands_and_ranges():
    task = text_task(["1,250", "12", "0.5"], ("number_match",))
    assert scored(task, said(task, ["1250.00", "10-12", ".5"]))["number_match"] == 1.0


SQUAD_PAIRS = [
    ("The Eiffel Tower", ("Eiffel Tower", "tower")),
    ("in the U.S. Army", ("us army",)),
    ("a  cat, and a dog!", ("cat and dog", "dog")),
    ("nothing alike", ("something else",)),
    ("", ("answer",)),
    ("red red blue", ("red blue blue",)),
]


def test_exact_match_and_squad_f1_are_torchmetrics():
    squad = pytest.importorskip("torchmetrics.functional.text.squad").squad
    task = text_task([r[0] for _, r in SQUAD_PAIRS], ("exact_match", "squad_f1"), [r for _, r in SQUAD_PAIRS])
    got = scored(task, said(task, [text for text, _ in SQUAD_PAIRS]))
    want = squad(
        [{"prediction_text": text, "id": str(i)} for i, (text, _) in enumerate(SQUAD_PAIRS)],
        [
            {"answers": {"answer_start": [0] * len(r), "text": list(r)}, "id": str(i)}
            for i, (_, r) in enumerate(SQUAD_PAIRS)
        ],
    )
    assert got["exact_match"] == pytest.approx(want["exact_match"].item() / 100)
    assert got["squad_f1"] == pytest.approx(want["f1"].item() / 100)


def test_squad_words():
    assert squad_normalised("An  apple—the 'theatre'") == "apple— theatre"
    task = text_task(["red blue blue", "a"], ("squad_f1",))
    assert scored(task, said(task, ["red red blue", "the"]))["squad_f1"] == pytest.approx(1 / 3)
    # 2/3, and 0 as in SQuAD 1.1, where two empty bags share nothing


def test_an_empty_generation_is_not_a_punctuation_mark():
    task = text_task(["+", "the", "-"], ("exact_match",))
    assert scored(task, said(task, ["", "", " - "]))["exact_match"] == pytest.approx(1 / 3)


def test_rouge_takes_the_best_reference():
    from rouge_score.rouge_scorer import RougeScorer

    task = text_task(["the cat sat", "x"], ("rougeL",), [("the cat sat on a mat", "a dog stood"), ("x", "y z")])
    got = scored(task, said(task, ["a dog stood up", "y"]))["rougeL"]
    f = [
        RougeScorer(["rougeL"]).score(r, p)["rougeL"].fmeasure
        for r, p in [("a dog stood", "a dog stood up"), ("y z", "y")]
    ]
    assert got == pytest.approx(sum(f) / 2)
    assert scored(task, said(task, ["", ""]))["rougeL"] == 0.0


def test_bleu_is_sacrebleus_with_ragged_references():
    from sacrebleu import corpus_bleu

    refs = [("the cat sat on the mat", "a cat was on the mat"), ("there is a dog in the garden",)]
    task = text_task([r[0] for r in refs], ("bleu",), refs)
    texts = ["the cat was on the mat", "there is a dog in a garden"]
    want = corpus_bleu(texts, [[refs[0][0], refs[1][0]], [refs[0][1], None]]).score / 100
    assert scored(task, said(task, texts))["bleu"] == pytest.approx(want)
    assert scored(task, said(task, ["", ""]))["bleu"] == 0.0


@pytest.fixture
def ranked_three():
    rng = np.random.default_rng(2)
    nll = rng.gamma(2.0, 2.0, (300, 3))
    return rng.integers(0, 3, 300), nll


def test_nll_and_brier_are_scikit_learns(ranked_three):
    from scipy.special import softmax
    from sklearn.metrics import brier_score_loss, log_loss

    if "scale_by_half" not in inspect.signature(brier_score_loss).parameters:
        pytest.skip("this scikit-learn has no Brier score of several classes")
    y, nll = ranked_three
    task = choice_task(y, names=("a", "b", "c"))
    got = scored(task, chosen(task, nll.argmin(1).tolist(), nll.tolist()))
    p = softmax(-nll, axis=1)
    assert got["nll"] == pytest.approx(log_loss(y, p))
    assert got["brier"] == pytest.approx(brier_score_loss(y, p, scale_by_half=True))


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "matthews_correlation", "f1_against_favor", "nll", "ece"])
def test_a_resample_scores_what_these_examples_score(name, ranked_three):
    y, nll = ranked_three
    task = choice_task(y, (name,), ("none", "against", "favor"))
    examples, predictions = task.split("test"), chosen(task, nll.argmin(1).tolist(), nll.tolist())
    of_places = resampled_score(task, examples, predictions)
    for places in np.random.default_rng(0).integers(0, len(y), (3, 100)).tolist():
        some = [examples[p] for p in places], [predictions[p] for p in places]
        assert of_places(places) == pytest.approx(score(task, *some)[name], abs=1e-12)


def test_ece_is_torchmetrics(ranked_three):
    calibration = pytest.importorskip("torchmetrics.functional.classification")
    import torch
    from scipy.special import softmax

    y, nll = ranked_three
    task = choice_task(y, names=("a", "b", "c"))
    got = scored(task, chosen(task, nll.argmin(1).tolist(), nll.tolist()))["ece"]
    p = torch.tensor(softmax(-nll, axis=1))
    want = calibration.multiclass_calibration_error(p, torch.tensor(y), num_classes=3, n_bins=15, norm="l1")
    assert got == pytest.approx(want.item(), abs=1e-6)


def test_certain_and_wrong_is_finite():
    task = choice_task([0], names=("a", "b"))
    got = scored(task, chosen(task, [1], [(2000.0, 0.0)]))
    assert got == {"accuracy": 0.0, "acc_norm": 0.0, "nll": 2000.0, "brier": 1.0, "ece": 1.0}


def test_acc_norm_divides_by_characters():
    task = choice_task([1, 1], names=("no", "certainly so"))
    got = scored(task, chosen(task, [0, 0], [(4.0, 12.0), (2.0, 13.0)]))
    assert (got["accuracy"], got["acc_norm"]) == (0.0, 0.5)


def test_choices_may_differ_in_number():
    examples = (
        Example("0", "t", "a", ("a", "b"), 0),
        Example("1", "t", "c", ("a", "b", "c"), 2),
    )
    task = Task("toy", "multiple_choice", ("accuracy",), {"test": examples})
    got = scored(task, chosen(task, [0, 2], [(0.0, 0.0), (0.0, 0.0, 0.0)]))
    assert got["nll"] == pytest.approx((math.log(2) + math.log(3)) / 2)
    assert got["accuracy"] == 1.0


def test_calibration_is_left_out_where_answers_were_generated():
    task = choice_task([1])
    assert set(scored(task, said(task, ["yes"]))) == {"accuracy"}
    asked = choice_task([1], ("nll",))
    with pytest.raises(DataError, match="need the likelihood of every choice"):
        scored(asked, said(asked, ["yes"]))


def test_only_calibration_is_better_when_lower():
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {
        "nll",
        "brier",
        "ece",
    }


def test_scores_lie_within_the_bounds_that_metrics_declare(ranked_three):
    y, nll = ranked_three
    task = choice_task(
        y,
        tuple(n for n in METRICS if n not in ("f1", "f1_against_favor", "pearson", "spearman", "number_match")),
        names=("a", "b", "c"),
    )
    for name, value in scored(task, chosen(task, nll.argmin(1).tolist(), nll.tolist())).items():
        low, high = METRICS[name].bounds
        assert low <= value <= high
    opposite = text_task(["1", "2", "3"], ("pearson", "spearman"))
    assert scored(opposite, said(opposite, ["3", "2", "1"])) == pytest.approx({"pearson": -1.0, "spearman": -1.0})
    assert METRICS["pearson"].bounds == METRICS["spearman"].bounds == (-1.0, 1.0)


def test_an_unknown_metric_is_named_with_its_nearest():
    task = choice_task([0], ("acuracy",))
    with pytest.raises(SpecError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        scored(task, chosen(task, [0]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p[:1], "1 predictions for 2 examples"),
        (lambda p: p[::-1], "prediction for example '1' stands where '0' is expected"),
        (
            lambda p: [p[0], Prediction("1", "x", 2)],
            "example '1': choice 2 is outside its 2 choices; an unknown answer is None",
        ),
        (
            lambda p: [Prediction("0", "no", 0, (1.0, float("nan"))), Prediction("1", "yes", 1, (1.0, 2.0))],
            "example '0': choice_nll .* needs one finite number for each of the 2 choices",
        ),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change, text):
    task = choice_task([0, 1])
    with pytest.raises(DataError, match=text):
        scored(task, change(chosen(task, [0, 1])))


def test_no_examples_is_an_error():
    with pytest.raises(DataError, match="no examples to score"):
        score(choice_task([0]), [], [])


def test_f1_and_stance_need_their_classes():
    task = choice_task([0, 1, 2], ("f1",), names=("a", "b", "c"))
    with pytest.raises(SpecError, match="metric 'f1' needs two classes, got 3; use 'macro_f1'"):
        scored(task, chosen(task, [0, 1, 2]))
    stance = choice_task([0, 1], ("f1_against_favor",), names=("against", "none"))
    with pytest.raises(SpecError, match=r"needs label_names with favor; got \['against', 'none'\]"):
        scored(stance, chosen(stance, [0, 1]))


def test_stance_is_found_in_label_names_where_choices_are_words():
    task = choice_task(
        [0, 1, 2],
        ("f1_against_favor",),
        ("neutral", "no", "yes"),
        label_names=("none", "against", "favor"),
    )
    assert scored(task, chosen(task, [0, 1, 2]))["f1_against_favor"] == 1.0


# The best constant answer ----------------------------------------------------------------------------------


def test_the_best_constant_answer_by_hand():
    labels = [0] * 6 + [1] * 3 + [2]
    task = choice_task(labels, names=("a", "b", "c"))
    assert best_constant(task, task.split("test")) == 0.6
    balanced = choice_task(labels, ("balanced_accuracy",), names=("a", "b", "c"))
    assert best_constant(balanced, balanced.split("test")) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews_correlation"])
def test_the_best_constant_answer_is_that_of_all_choices_tried(name):
    rng = np.random.default_rng(0)
    task = choice_task(rng.integers(0, 2, 30).tolist(), (name,))
    tried = [score(task, task.split("test"), chosen(task, [c] * 30))[name] for c in range(2)]
    assert best_constant(task, task.split("test")) == max(tried)


def test_without_common_choices_there_is_no_constant_answer():
    task, text = choice_task([0, 1]), text_task(["x", "y"], ("exact_match",))
    first, second = task.split("test")
    assert best_constant(task, (first, dataclasses.replace(second, choices=("no", "perhaps")))) is None
    assert best_constant(choice_task([0, 1], ("nll",)), (first, second)) is None
    assert best_constant(text, text.split("test")) is None


def test_the_best_constant_is_that_of_all_constants():
    from sklearn import metrics as sk

    labels = [0, 0, 1, 2, 2, 2]
    examples = tuple(Example(str(i), "t", "abc"[y], ("a", "b", "c"), y) for i, y in enumerate(labels))
    for name, function in (("accuracy", sk.accuracy_score), ("balanced_accuracy", sk.balanced_accuracy_score)):
        task = Task("t", "multiple_choice", (name,), {"test": examples})
        assert best_constant(task, examples) == pytest.approx(max(function(labels, [c] * 6) for c in range(3)))
    assert best_constant(replace(task, metrics=("nll",)), examples) is None
    assert best_constant(Task("t", "generate_until", ("exact_match",), {"test": examples}), examples) is None
