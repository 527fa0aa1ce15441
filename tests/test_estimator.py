"""PromptClassifier and PromptGenerator keep scikit-learn's contract, learn from every example, and are saved whole."""

import copy
import json
import pickle
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import validate_data

import promptprior as pp
from promptprior.adaptation import refit
from promptprior.artifacts.header import read_header
from promptprior.backbone import Backbone
from promptprior.errors import ArtifactError, DataError, InputError, SpecError
from promptprior.tasks.loading.readers import Rows, rows_of
from tests.backbone.tiny import tiny
from tests.test_cli import Cli, cli, model  # noqa: F401
from tests.world import choice_task, early, short, words

SETTINGS = pp.Settings(length=3, target=pp.Training(steps=2, batch_size=4, learning_rates=(0.1,)))
TEXTS = words("texts", 24)
SIDES = np.array([early(word) for word in TEXTS])


@cache
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


def classifier(**changes: Any) -> pp.PromptClassifier:
    return pp.PromptClassifier(
        **{"backbone": backbone(), "method": "linear_probe", "settings": SETTINGS, "folds": 2, **changes}
    )


# scikit-learn's own checks --------------------------------------------------------------------------------


class OfNumbers(pp.PromptClassifier):
    """The classifier behind a translation of numbers to text: scikit-learn checks nothing that reads only text."""

    def _rows(self, X: Any, reset: bool = False) -> Rows:
        X = validate_data(self, X, reset=reset, dtype="numeric")
        return rows_of([{"text": " ".join(f"{v:.0f}" for v in row)} for row in X.tolist()], "X")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = True, False, False
        tags.classifier_tags.poor_score = True  # a random model of two layers
        return tags


NOT_FOR_TEXT = {"check_estimators_pickle": "pickles of fitted models are refused; save and load take their place"}


def test_scikit_learns_checks_pass(model: Path, is_thorough: bool) -> None:  # noqa: F811
    """All with --thorough; otherwise those of the interface."""
    one = OfNumbers(str(model), method="zero_shot_calibrated", settings=SETTINGS, folds=2, dtype="float32")
    problems = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator, check in estimator_checks_generator(one, legacy=is_thorough):
            name = getattr(check, "__name__", None) or check.func.__name__
            try:
                check(estimator)
            except Exception as error:
                if name not in NOT_FOR_TEXT and type(error).__name__ != "SkipTest":
                    problems.append(f"{name}: {type(error).__name__}: {error}")
    assert problems == []


def test_its_tags_say_that_it_reads_text() -> None:
    tags = classifier().__sklearn_tags__().input_tags
    assert (tags.string, tags.one_d_array, tags.two_d_array) == (True, True, False)


def test_it_works_in_pipelines_and_searches() -> None:
    lower = make_pipeline(FunctionTransformer(lambda texts: [text.lower() for text in texts]), classifier())
    scores = cross_val_score(lower, [word.upper() for word in TEXTS], SIDES, cv=2)
    assert scores.shape == (2,)
    alone = cross_val_score(classifier(), TEXTS, SIDES, cv=2)
    assert scores.tolist() == alone.tolist()
    search = GridSearchCV(classifier(), {"method": ["zero_shot_calibrated", "linear_probe"]}, cv=2).fit(TEXTS, SIDES)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert clone(search.best_estimator_).backbone is backbone()  # no copy of the model for each fold


# What it answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [["low", "high"], [0, 1], [False, True], [-1, 7], np.array([2.0, 1.0])], ids=lambda x: str(x[0])
)
def test_labels_of_any_kind_come_back_as_they_were(labels: Any) -> None:
    y = [labels[side] for side in SIDES]
    fitted = classifier().fit(TEXTS, y)
    assert fitted.classes_.tolist() == sorted(labels)
    shares = fitted.predict_proba(TEXTS)
    assert shares.shape == (24, 2)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    answers = fitted.predict(TEXTS)
    assert type(answers.tolist()[0]) is type(fitted.classes_.tolist()[0])
    assert answers.tolist() == fitted.classes_[shares.argmax(axis=1)].tolist()
    assert fitted.score(TEXTS, y) == np.mean(answers == np.array(y))


def test_probabilities_are_those_of_the_library() -> None:
    fitted = classifier(label_words={0: "yes", 1: "no"}).fit(TEXTS, SIDES)
    task = choice_task("of the words", early, ("yes", "no"))
    texts = [example.text for example in task.split("test")]
    read = [replace(example, text=f"{example.text}\nLabel:") for example in task.split("test")]
    answers = pp.predict(fitted.prompt_, task, backbone(), read)
    logs = -torch.tensor([answer.choice_nll for answer in answers], dtype=torch.float64)
    np.testing.assert_allclose(fitted.predict_proba(texts), torch.softmax(logs, 1).numpy(), atol=1e-9)


def test_every_example_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[set[str]] = []
    fit_heads = refit.fit_heads

    def spy(head: Any, objective: Any, params: Any, episodes: Any) -> Any:
        taught.append({e.text for episode in episodes for e in episode.shots.train})
        return fit_heads(head, objective, params, episodes)

    monkeypatch.setattr(refit, "fit_heads", spy)
    fitted = classifier().fit(TEXTS, SIDES)
    assert taught[-1] == {f"{word}\nLabel:" for word in TEXTS}
    assert fitted.n_examples_ == 24
    assert len(fitted.prompt_.header.tasks[0].example_ids) == 24
    assert fitted.dev_error_ > 0


def test_a_frame_of_one_column_is_read_whatever_it_is_called_and_options_are_kept(tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": list(TEXTS)})
    kept = {"head": "verbalizer"}
    made = pp.PromptGenerator(backbone(), settings=SETTINGS, folds=2, metric="exact_match", options=kept)
    one = made.fit(frame, [str(side) for side in SIDES])
    assert len(one.predict(frame[:2])) == 2
    one.save(tmp_path / "saved")
    assert pp.PromptGenerator.load(tmp_path / "saved", backbone()).options == kept


def test_auto_chooses_among_candidates_and_takes_a_prior(tmp_path: Path) -> None:
    options = {"candidates": ["zero_shot_calibrated", "linear_probe"]}
    fitted = classifier(method="auto", options=options).fit(TEXTS, SIDES)
    board = fitted.prompt_.header.scores["auto"]["leaderboard"]
    assert {line["method"] for line in board} >= {"zero_shot_calibrated", "linear_probe"}
    settings = short(length=3)
    pp.fit(pp.make_method("multitask"), [choice_task("s", early)], backbone(), settings, 1, pp.RunControl(tmp_path))
    options = {"candidates": ["zero_shot_calibrated"]}
    from_prior = classifier(method="auto", options=options, prior=tmp_path, settings=None).fit(TEXTS, SIDES)
    board = from_prior.prompt_.header.scores["auto"]["leaderboard"]
    assert "multitask" in {line["method"] for line in board}
    with pytest.raises(SpecError, match=r"'linear_probe' starts from no prior: .* method='multitask'"):
        classifier(prior=tmp_path).fit(TEXTS, SIDES)


def test_examples_that_are_all_alike_are_no_reason_to_fail() -> None:
    assert classifier().fit(["a", "b"] * 6, [0, 1] * 6).predict(["a", "b"]).shape == (2,)


def test_random_state_decides() -> None:
    one, same, other = (
        classifier(method="prompt_tuning", random_state=seed).fit(TEXTS, SIDES).prompt_.params["prompt"]
        for seed in (1, np.int64(1), np.random.RandomState(2))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_texts_come_in_many_forms() -> None:
    frame = pd.DataFrame({"subject": TEXTS, "body": TEXTS[::-1], "n": range(24)})
    template = "{{ subject }}: {{ body }} ({{ n }})"
    fitted = classifier(template=template).fit(frame, SIDES)
    assert fitted.feature_names_in_.tolist() == ["subject", "body", "n"]
    assert fitted.n_features_in_ == 3
    expected = fitted.predict_proba(frame)
    np.testing.assert_array_equal(fitted.predict_proba(frame.to_dict("records")), expected)
    by_hand = [f"{a}: {b} ({n})" for a, b, n in zip(TEXTS, TEXTS[::-1], range(24), strict=True)]
    plain = classifier(template="text").fit(by_hand, SIDES)
    np.testing.assert_array_equal(plain.predict_proba(by_hand), expected)
    forms: list[Any] = [
        np.array(TEXTS), np.array(TEXTS, dtype=object)[:, None], pd.Series(TEXTS, index=range(5, 29)),
        tuple(TEXTS), pd.DataFrame({"message": TEXTS}),
    ]  # fmt: skip
    fitted = classifier().fit(TEXTS, SIDES)
    for form in forms:
        np.testing.assert_array_equal(fitted.predict_proba(form), fitted.predict_proba(TEXTS))
    refitted = fitted.fit(pd.DataFrame({"text": TEXTS}), pd.Series(SIDES, dtype="category"))
    assert refitted.n_features_in_ == 1
    assert not hasattr(refitted.fit(TEXTS, SIDES), "n_features_in_")


# Save and load --------------------------------------------------------------------------------------------


def test_a_saved_classifier_answers_the_same(tmp_path: Path) -> None:
    fitted = classifier(label_words={False: "early", True: "late"}, template="{{ text }} ?").fit(TEXTS, SIDES == 1)
    fitted.save(tmp_path / "saved")
    loaded = pp.PromptClassifier.load(tmp_path / "saved", backbone())
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert loaded.predict(TEXTS).tolist() == fitted.predict(TEXTS).tolist()
    assert loaded.classes_.dtype == bool
    same = ("method", "template", "label_words", "folds", "settings", "random_state")
    assert [loaded.get_params()[name] for name in same] == [fitted.get_params()[name] for name in same]
    assert (loaded.dev_score_, loaded.dev_error_) == (fitted.dev_score_, fitted.dev_error_)
    loaded.fit(TEXTS, SIDES == 1).save(tmp_path / "saved")  # over itself
    with pytest.raises(ArtifactError, match=r"not saved by PromptGenerator\.save"):
        pp.PromptGenerator.load(tmp_path / "saved", backbone())


def test_a_folder_that_was_edited_is_refused(tmp_path: Path) -> None:
    classifier().fit(TEXTS, SIDES).save(tmp_path / "saved")
    header = tmp_path / "saved" / "promptprior.json"
    text = header.read_text()
    for before, after in (('"<i8"', '"zebra"'), ('"<i8"', '"|V8"'), ('"n_examples": 24', '"n_examples": "x"')):
        assert before in text
        header.write_text(text.replace(before, after))
        with pytest.raises(ArtifactError, match=r"settings\.estimator was edited"):
            pp.PromptClassifier.load(tmp_path / "saved", backbone())


def test_predict_reads_the_folder_without_the_data(cli: Cli, model: Path, tmp_path: Path) -> None:  # noqa: F811
    one = classifier(backbone=str(model), dtype="float32", label_words={0: "early", 1: "late"})
    fitted = one.fit(TEXTS, SIDES)
    assert clone(one).fit(TEXTS, SIDES).backbone_ is fitted.backbone_  # loaded once
    fitted.save(tmp_path / "saved")
    (tmp_path / "new.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    code, out, err = cli("predict", "--prompt", tmp_path / "saved", "--input", tmp_path / "new.csv")
    assert code == 0, err
    rows = [line.split(",") for line in out.splitlines()]
    assert rows[0] == ["text", "answer", "probability early", "probability late"]
    np.testing.assert_allclose([[float(r[2]), float(r[3])] for r in rows[1:]], fitted.predict_proba(TEXTS), atol=2e-6)
    code, _, err = cli("evaluate", "--prompt", tmp_path / "saved")
    assert code == 2
    assert "(--input FILE)" in err
    labelled = "".join(f"{text},{('early', 'late')[side]}\n" for text, side in zip(TEXTS, SIDES, strict=True))
    (tmp_path / "labelled.csv").write_text("text,label\n" + labelled)
    words = ["evaluate", "--prompt", tmp_path / "saved", "--input", tmp_path / "labelled.csv", "--json"]
    assert json.loads(cli(*words)[1])["scores"]["accuracy"] == pytest.approx(fitted.score(TEXTS, SIDES))


def test_pickles_of_models_are_refused_and_parameters_may_travel() -> None:
    fitted = classifier(backbone="smollm2", method="zero_shot_calibrated")
    again = pickle.loads(pickle.dumps(fitted))  # so that n_jobs works
    assert again.get_params() == fitted.get_params()
    with pytest.raises(ArtifactError, match="backbone is a loaded value: name its folder"):
        pickle.dumps(classifier())
    whole = classifier().fit(TEXTS, SIDES)
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ArtifactError, match=r"it is fitted.*save\(folder\) and PromptClassifier\.load\(folder\)"):
            attempt(whole)
    assert not hasattr(clone(whole), "prompt_")


# What cannot be -------------------------------------------------------------------------------------------

BAD: list[tuple[Any, Any, str]] = [
    (TEXTS, SIDES[:3], "X has 24 rows and y has 3 labels"),
    (TEXTS, [0] * 24, "one class only, 0"),
    (TEXTS, [1] + [0] * 23, "1 sample of class 1"),
    (TEXTS, None, "requires y to be passed, but the target y is None"),
    ([*TEXTS[:23], " "], SIDES, "X row 24: doc_to_text gives an empty text"),
    ([None, *TEXTS[1:]], SIDES, r"X row 1: the text is missing \(None\)"),
    (pd.Series([*TEXTS[:23], pd.NA]), SIDES, r"X row 24: the text is missing"),
    ([1.5, *TEXTS[1:]], SIDES, r"X row 1: expected a text, got 1.5 \(float\)"),
    (TEXTS, [None, *SIDES[1:]], "y row 1: the label is missing"),
    (TEXTS, [float("nan"), *SIDES[1:]], "y row 1: the label is missing"),
    (TEXTS, np.linspace(0, 1, 24), "Unknown label type"),
    ("one text", SIDES, "expected a list of texts"),
    ([], [], "X holds no texts"),
    (pd.DataFrame({"a": TEXTS, "b": TEXTS}), SIDES, "columns a, b; say how they become a text"),
    (TEXTS, [" x", *["x"] * 11, *["y"] * 11, " x"], "different word for each"),
]


@pytest.mark.parametrize(("X", "y", "message"), BAD, ids=[message[:24] for *_, message in BAD])
def test_what_data_cannot_be_is_one_clear_message(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        classifier().fit(X, y)
    assert isinstance(caught.value, InputError) or "Unknown label type" in message


def test_what_parameters_cannot_be_is_one_clear_message() -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"method": "prompt_tunin"}, SpecError, "unknown method 'prompt_tunin'; did you mean 'prompt_tuning'"),
        ({"folds": 1}, SpecError, "folds 1: expected a whole number, at least 2"),
        ({"template": "{{ text "}, SpecError, "bad Jinja"),
        ({"template": "{{ body }}"}, InputError, "missing column 'body'"),
        ({"label_words": {0: "low"}}, InputError, "no word for the label 1"),
        ({"options": {"zebra": 1}}, SpecError, "zebra"),
    ]
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            classifier(**changes).fit(TEXTS, SIDES)
    with pytest.raises(NotFittedError):
        classifier().predict(TEXTS)


# Free text ------------------------------------------------------------------------------------------------


def test_a_generator_answers_with_text_and_comes_back(tmp_path: Path) -> None:
    endings = [word[-2:] for word in TEXTS]
    made = pp.PromptGenerator(backbone(), settings=SETTINGS, folds=2, metric="exact_match", max_tokens=2)
    fitted = made.fit(TEXTS, endings)
    answers = fitted.predict(TEXTS)
    assert answers.shape == (24,)
    assert all(isinstance(answer, str) for answer in answers)
    accepted = [["no answer", answer or "nothing"] for answer in answers]
    assert fitted.score(TEXTS, accepted) == np.mean([bool(answer) for answer in answers])
    fitted.save(tmp_path / "saved")
    assert pp.PromptGenerator.load(tmp_path / "saved", backbone()).predict(TEXTS).tolist() == answers.tolist()
    with pytest.raises(InputError, match="y row 2: expected a text"):
        made.fit(TEXTS[:2], ["a", ""])
    with pytest.raises(SpecError, match="unknown metric 'rouge'"):
        clone(made).set_params(metric="rouge").fit(TEXTS, endings)


# Rows in memory -------------------------------------------------------------------------------------------


def test_a_task_of_a_frame_is_that_of_the_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": [("low", "high")[side] for side in SIDES]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    from_file, from_frame = pp.load_task(tmp_path / "rows.csv"), pp.task_from_rows(frame)
    assert from_frame.examples == from_file.examples
    assert from_frame.label_names == from_file.label_names
    spec = {"doc_to_text": "{{ words }}!", "doc_to_target": "label", "doc_to_choice": ["low", "high"]}
    own = pp.task_from_rows({"train": frame.rename(columns={"text": "words"})[:16].to_dict("records"),
                             "test": frame.rename(columns={"text": "words"})[16:]}, spec)  # fmt: skip
    assert len(own.split("test")) == 8
    [adapted] = pp.adapt(pp.make_method("linear_probe"), [pp.make_episode(own, 2, 13)], backbone(), None, SETTINGS)
    adapted.prompt.save_pretrained(tmp_path / "prompt")
    assert read_header(tmp_path / "prompt")[0].tasks[0].spec["doc_to_text"] == "{{ words }}!"
    for rows, message in (([], "no rows"), ([1], "row 1: expected a mapping"), ({"dev": frame}, "unknown split 'dev'")):
        with pytest.raises(DataError, match=message):
            pp.task_from_rows(rows)
