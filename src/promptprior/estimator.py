"""Prompts as estimators that people know: scikit-learn's fit, predict, predict_proba, score, get_params and clone.

A classifier adapts to all labelled texts that `fit` is given: folds of them choose how, then all of them teach
(adaptation/folds.py), and the label's words are what the model answers with. In place of pickles, which run code when
they are read, there are `save` and `load`: a prompt folder as `promptprior adapt` writes it, for `promptprior predict`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from promptprior.adapt import adapt
from promptprior.adaptation.folds import fold_episodes
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.artifacts.header import read_header
from promptprior.backbone import Backbone, load
from promptprior.backbone.quiet_loading import quiet_loading
from promptprior.compare.progress import watch_steps
from promptprior.config.mapping import from_mapping, shorten, to_mapping
from promptprior.config.training import Settings
from promptprior.errors import ArtifactError, DataError, InputError, SpecError
from promptprior.evaluate import predict
from promptprior.fit import RunControl
from promptprior.methods import Episode, Recipe, make_method
from promptprior.methods.choosing import Choosing, options_of_prior, settings_of_prior
from promptprior.tasks.loading.load import task_of
from promptprior.tasks.loading.new_rows import NEVER_READ
from promptprior.tasks.loading.readers import Rows, memory_rows, rows_of
from promptprior.tasks.loading.spec import TaskSpec, spec_from
from promptprior.tasks.metrics import Prediction, metric, score
from promptprior.tasks.sampling.draws import Shots
from promptprior.tasks.task import Example, content_id

LABELLED = "{{ text }}\nLabel:"  # how rows of text and label are read, from a file too
LEAST_FOLDS = 2
SAVED_AS = "estimator"  # the key of a prompt's settings that says how to make the estimator again


@lru_cache(maxsize=2)
def _load_once(name: str, dtype: str, device: str | None) -> Backbone:
    # Clones of an estimator share one backbone: cross-validation would otherwise load it for every fold.
    with quiet_loading():
        return load(name, dtype=dtype, device=device)


def _is_missing(value: object) -> bool:
    # None, NaN, or the missing value of pandas, which answers every comparison with itself.
    return not isinstance(value, str) and (value is None or repr(value) == "<NA>" or value != value)


@dataclass(eq=False, repr=False)
class PromptEstimator(BaseEstimator):  # type: ignore[misc]
    """What PromptClassifier and PromptGenerator share: parameters, how rows become texts, adapting, save and load.

    `backbone`: "smollm2", a Hub id, a folder or .gguf file, or one that `promptprior.load` gave. `prior`: a Prior or
    its folder; with method "auto" its method is one more candidate. `method`: a name of `promptprior methods list`, and
    `options` its options. `template`: how a row becomes text, in Jinja; texts that stand alone are the column `text`.
    `folds`: parts of the examples that are held out in turn to choose steps, rate and method, at least 2. `settings`:
    prompt length, steps and the like; by default those of the prior, or the library's. `random_state`: a number gives
    the same prompt every time. `verbose`: show steps and the time left on stderr.

    After `fit`: `prompt_`, what `promptprior.predict` and `evaluate` take; `dev_score_` and `dev_error_`, the score on
    held-out examples and its standard error (None for free text); `n_examples_`; `backbone_`, `spec_`; and of a
    DataFrame `feature_names_in_` and `n_features_in_`.
    """

    backbone: Any = "smollm2"
    prior: Any = None
    method: Any = "auto"
    template: str = LABELLED
    folds: int = 4
    settings: Settings | None = None
    options: Mapping[str, Any] | None = None
    dtype: str = "auto"
    device: str | None = None
    random_state: Any = 13
    verbose: bool = False

    def _rows(self, X: Any, reset: bool = False) -> Rows:
        # The rows of texts, of a one-column array, of mappings or of a DataFrame; all of them mappings. `fit` resets
        # what is remembered of columns.
        frame, named = X, getattr(X, "columns", None)
        if reset:
            for name in ("feature_names_in_", "n_features_in_"):
                self.__dict__.pop(name, None)
            if named is not None:
                self.feature_names_in_ = np.array(list(map(str, named)), dtype=object)
                self.n_features_in_ = len(self.feature_names_in_)
        if hasattr(X, "toarray"):  # a sparse matrix; scikit-learn wants a TypeError
            raise TypeError(f"{type(self).__name__} reads texts, and X is sparse: give a list of texts")
        if isinstance(X, str | bytes) or not isinstance(X, Iterable):
            raise InputError(f"X is {shorten(repr(X), 60)} ({type(X).__name__}); expected a list of texts")
        values: Any
        try:
            if named is not None:
                columns = list(map(str, named))
                if self.template == type(self).template and "text" not in columns and len(columns) > 1:
                    raise InputError(
                        f"X has the columns {', '.join(columns)}; say how they become a text: "
                        f'template="{{{{ {columns[0]} }}}} {{{{ {columns[1]} }}}}"'
                    )
                is_renamed = len(columns) == 1 and self.template == type(self).template
                return memory_rows(frame.set_axis(["text"], axis="columns") if is_renamed else X, "X")
            values = X.tolist() if hasattr(X, "tolist") else list(X)
            if not values:
                raise InputError("X holds no texts (0 samples); expected at least 1")
            if all(isinstance(value, Mapping) for value in values):
                return memory_rows(values, "X")
        except DataError as error:
            raise InputError(str(error)) from None
        texts = []
        for place, value in enumerate(values, 1):
            if isinstance(value, list | tuple) and len(value) == 1:  # of an array with one column
                [value] = value
            if _is_missing(value):
                raise InputError(f"X row {place}: the text is missing ({value}); fill it in or leave the row out")
            if not isinstance(value, str):
                what = f"{shorten(repr(value), 60)} ({type(value).__name__})"
                raise InputError(f"X row {place}: expected a text, got {what}; write it as text, or give a DataFrame")
            texts.append({"text": str(value)})
        return rows_of(texts, "X")

    def _questions(self, spec: TaskSpec, rows: Rows) -> list[str]:
        # The texts that a model reads. Raises InputError with the number of a row that gives none.
        try:
            return [spec.question(row, rows.place(i)) for i, row in enumerate(rows.values)]
        except DataError as error:
            raise InputError(str(error)) from None

    def _adapt(self, spec: TaskSpec, examples: Sequence[Example]) -> Self:
        # Adapts to all examples; what `fit` learned stands in attributes that end in "_".
        if isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < LEAST_FOLDS:
            raise SpecError(f"folds {self.folds!r}: expected a whole number, at least {LEAST_FOLDS}")
        given: Any = self.method if isinstance(self.method, Recipe) else None
        method = given or make_method(str(self.method), self.options, "option ")
        is_name = isinstance(self.backbone, str | Path)
        backbone = _load_once(str(self.backbone), self.dtype, self.device) if is_name else self.backbone
        prior, settings = self.prior, self.settings
        if isinstance(prior, str | Path):
            prior = Prior.from_pretrained(prior, backbone.card)
        if prior is not None:
            if not method.needs_sources and not isinstance(method, Choosing):
                raise SpecError(
                    f"method {method.name!r} starts from no prior: leave prior out, or say "
                    f"method={prior.header.method!r} or method='auto'"
                )
            if given is None and method.name == prior.header.method:
                options = {**options_of_prior(prior.header), **(self.options or {})}
                method = make_method(method.name, options, "option ")
            settings = settings or settings_of_prior(prior.header, "prior")
        seed = self.random_state
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            seed = check_random_state(seed).randint(2**31 - 1)
        task = replace(task_of(spec, {"train": tuple(examples)}, "fit(X, y)"), spec=spec.keys())
        per_class = min(Counter(example.label for example in examples).values())
        episode = Episode(task, per_class, int(seed), Shots(task.split("train"), ()))  # all of them teach, by folds
        control = RunControl(watch=watch_steps(method.name) if self.verbose else None)
        settings = replace(settings or Settings(), folds=self.folds)
        if isinstance(method, Choosing):  # its candidates that train learn from either half, and the other judges
            choosing: Any = method
            method, settings = replace(choosing, folds=self.folds), replace(settings, folds=0)
            episode = fold_episodes(episode, 2)[0]
        [adapted] = adapt(method, [episode], backbone, prior, settings, control)
        self.prompt_, self.backbone_, self.spec_, self.n_examples_ = adapted.prompt, backbone, spec, len(examples)
        self.dev_score_, self.dev_error_ = adapted.dev_score, adapted.dev_error
        return self

    def _answers(self, X: Any) -> list[Prediction]:
        # What the fitted prompt answers to every row.
        check_is_fitted(self, "prompt_")
        texts, choices = self._questions(self.spec_, self._rows(X)), self.spec_.fixed_choices
        examples = [Example(str(i), text, NEVER_READ, choices) for i, text in enumerate(texts)]
        return predict(self.prompt_, task_of(self.spec_, {"test": tuple(examples)}, "X"), self.backbone_, examples)

    def save(self, folder: Path | str) -> None:
        """Write the fitted prompt as a folder that `load` and `promptprior predict --prompt` read.

        Its header says how rows become text, and the labels of a classifier, as JSON. The device is left out, and a
        prior or backbone that was given as a value. Raises NotFittedError before `fit`, ArtifactError for a folder that
        holds other files.
        """
        check_is_fitted(self, "prompt_")
        params = {}
        for name in (item.name for item in fields(self) if item.name != "device"):
            value = getattr(self, name)
            if value is None or isinstance(value, Settings | Path | str | bool | int | float):
                params[name] = to_mapping(value)
        if self.options:
            params["options"] = to_mapping(self.options)
        if isinstance(self.method, Recipe):
            params["method"] = self.method.name
        said: dict[str, object] = {"kind": type(self).__name__, "params": params, "n_examples": self.n_examples_}
        if (classes := getattr(self, "classes_", None)) is not None:
            said |= {"classes": classes.tolist(), "classes_dtype": classes.dtype.str}
        header = replace(self.prompt_.header, settings={**self.prompt_.header.settings, SAVED_AS: said})
        Prompt(header, self.prompt_.params).save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path | str, backbone: Backbone | str | None = None) -> Self:
        """Read what `save` wrote. `backbone`: where it has moved, or one that is loaded; by default the prompt's own.

        Raises ArtifactError for a folder that is damaged, that another class or `promptprior adapt` wrote, or that
        belongs to another backbone; no code of the folder is run.
        """
        header = read_header(Path(folder))[0]
        said, cards = header.settings.get(SAVED_AS), [card for card in header.tasks if card.role == "target"]
        if not isinstance(said, Mapping) or said.get("kind") != cls.__name__ or not cards or not cards[0].spec:
            raise ArtifactError(
                f"{folder} was not saved by {cls.__name__}.save; read other prompts with promptprior.Prompt."
                "from_pretrained, or answer with promptprior predict"
            )
        try:
            params, known = dict(said["params"]), {item.name for item in fields(cls)}
            settings = params.pop("settings", None)
            if settings is not None:
                params["settings"] = from_mapping(Settings, settings, str(folder))
            made = cls(**{name: value for name, value in params.items() if name in known})
            made.backbone = backbone if backbone is not None else params.get("backbone", header.backbone.name)
            if not isinstance(made.backbone, Backbone | str | Path):
                raise ValueError(f"backbone {made.backbone!r}")
            made.spec_, made.n_examples_ = spec_from(cards[0].spec, str(folder)), int(said["n_examples"])
            if "classes" in said:
                kind = np.dtype(said["classes_dtype"])
                if kind.kind not in "OUbiuf" or kind.shape:
                    raise ValueError(f"classes_dtype {kind}")
                made.__dict__["classes_"] = np.array(said["classes"], dtype="U" if kind.kind == "U" else kind)
                if made.classes_.shape != (len(made.spec_.fixed_choices),):
                    raise ValueError(f"{made.classes_.shape} classes for {len(made.spec_.fixed_choices)} choices")
                if list(map(str, made.classes_)) != list(made.spec_.fixed_choices):
                    words = zip(made.classes_.tolist(), made.spec_.fixed_choices, strict=True)
                    made.__dict__["label_words"] = dict(words)
        except (TypeError, ValueError, KeyError, SpecError) as error:
            raise ArtifactError(f"{folder}: its settings.{SAVED_AS} was edited ({error}); save it again") from error
        own: Any = made.backbone
        made.backbone_ = own if isinstance(own, Backbone) else _load_once(str(own), made.dtype, made.device)
        made.prompt_ = Prompt.from_pretrained(folder, made.backbone_.card)
        dev: Any = made.prompt_.header.scores.get("dev", {})
        made.dev_score_, made.dev_error_ = dev.get("dev_score"), dev.get("dev_error")
        return made

    def __sklearn_clone__(self) -> Self:
        # Backbones and priors are values: a copy of a model for every fold of a cross-validation would fill the memory.
        shared = (Backbone, Prior, Settings, Recipe)
        params: dict[str, Any] = {}
        for name, value in self.get_params(deep=False).items():
            params[name] = value if isinstance(value, shared) else clone(value, safe=False)
        return type(self)(**params)

    def __getstate__(self) -> Any:
        # Parameters alone may go to another process (n_jobs); a model may not, and reading a pickle may run any code.
        fitted, what = hasattr(self, "prompt_"), type(self).__name__
        held = [n for n in ("backbone", "prior") if isinstance(getattr(self, n), Backbone | Prior)]
        if fitted or held:
            why = "it is fitted" if fitted else f"{held[0]} is a loaded value: name its folder instead"
            raise ArtifactError(f"a {what} is not pickled ({why}); use save(folder) and {what}.load(folder)")
        return super().__getstate__()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = False, True, True
        tags.target_tags.required = True
        return tags


@dataclass(eq=False, repr=False)
class PromptClassifier(ClassifierMixin, PromptEstimator):  # type: ignore[misc]
    """Classify texts by a soft prompt on a frozen language model, with scikit-learn's interface.

    X are texts (a list, an array, a pandas Series), mappings, or a DataFrame whose columns the `template` names; y are
    labels of any kind. `label_words` says what the model reads for a label: {0: "negative", 1: "positive"}; without it
    that is the label's own text, and a digit says little. `classes_` are the labels in order. All other parameters and
    attributes: PromptEstimator.
    """

    label_words: Mapping[Any, str] | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Adapt to all labelled texts, n of them; of each class at least 2.

        Raises InputError, a ValueError, for what X and y cannot be: other lengths, an empty or missing text, one class,
        a class of one example; SpecError for parameters.
        """
        if y is None:
            raise InputError(f"{type(self).__name__} requires y to be passed, but the target y is None: give labels")
        rows, labels = self._rows(X, reset=True), column_or_1d(y, warn=True)
        if len(rows) != len(labels):
            raise InputError(f"X has {len(rows)} rows and y has {len(labels)} labels; expected one label for each")
        for place, label in enumerate(labels.tolist(), 1):
            if _is_missing(label):
                raise InputError(f"y row {place}: the label is missing ({label}); fill it in or leave the row out")
        check_classification_targets(labels)
        classes, indices = np.unique(labels, return_inverse=True)
        counts = np.bincount(indices)
        if len(classes) < 2:
            raise InputError(f"y holds one class only, {classes.tolist()[0]!r}; expected at least 2")
        if counts.min() < 2:
            rare = classes.tolist()[int(counts.argmin())]
            raise InputError(f"y has 1 sample of class {rare!r}; expected at least 2: one teaches, one is held out")
        own, words = {} if self.label_words is None else dict(self.label_words), []
        for value in classes.tolist():
            if own and value not in own:
                raise InputError(f"label_words has no word for the label {value!r}; it has {', '.join(map(repr, own))}")
            words.append(str(own[value] if own else value).strip())
        if len(set(words)) < len(words) or "" in words:
            raise InputError(f"labels read as {words}; expected a different word for each: say label_words")
        keys: dict[str, object] = {"task": type(self).__name__, "doc_to_text": self.template}
        keys |= {"doc_to_target": "label", "doc_to_choice": words, "metric_list": ["accuracy", "macro_f1"]}
        spec, examples = spec_from(keys, "template"), []
        seen = Counter[str]()  # equal examples count as often as they come
        for text, label in zip(self._questions(spec, rows), indices.tolist(), strict=True):
            seen[text] += 1
            name = content_id({"text": text, "label": label, "n": seen[text]})
            examples.append(Example(name, text, words[label], tuple(words), label))
        self._adapt(spec, examples)
        self.classes_ = classes
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The probability of each label [n, classes], in the order of `classes_`; rows sum to one."""
        return np.array([answer.probabilities for answer in self._answers(X)], dtype=np.float64)

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest label of each text [n], in the type that `fit` was given."""
        shares = self.predict_proba(X)  # [n, classes]; raises before `fit`
        return self.classes_[shares.argmax(axis=1)]


@dataclass(eq=False, repr=False)
class PromptGenerator(PromptEstimator):
    """Answer texts with free text by a soft prompt on a frozen language model, with scikit-learn's interface.

    `fit(X, completions)` learns from pairs, `predict` gives the first line that the model writes, `score` the mean of
    `metric` (`exact_match`, `rougeL`, `bleu`, …). `max_tokens` bounds an answer. All else: PromptEstimator.
    """

    method: Any = "prompt_tuning"
    template: str = "text"
    metric: str = "exact_match"
    max_tokens: int = 32

    def _pairs(self, X: Any, y: Any, reset: bool = False) -> tuple[TaskSpec, list[Example]]:
        # The examples of rows and completions. Raises InputError for what they cannot be.
        if y is None:
            raise InputError(f"{type(self).__name__} requires y to be passed, but the target y is None: completions")
        rows, answers = self._rows(X, reset), y.tolist() if hasattr(y, "tolist") else list(y)
        if len(rows) != len(answers):
            raise InputError(f"X has {len(rows)} rows and y has {len(answers)} completions; expected one for each")
        metric(self.metric)  # an unknown name is said here
        keys = {"task": type(self).__name__, "doc_to_text": self.template, "doc_to_target": "completion"}
        length = {"generation_kwargs": {"max_gen_toks": self.max_tokens}, "metric_list": [self.metric]}
        spec, examples = spec_from({**keys, **length}, "template"), []
        seen = Counter[str]()
        for place, (text, answer) in enumerate(zip(self._questions(spec, rows), answers, strict=True), 1):
            seen[text] += 1
            accepted = tuple(answer) if isinstance(answer, list | tuple) else (answer,)
            if not accepted or not all(isinstance(one, str) and one.strip() for one in accepted):
                raise InputError(f"y row {place}: expected a text, or a list of accepted ones, got {answer!r}")
            accepted = tuple(one.strip() for one in accepted)
            name = content_id({"text": text, "completion": accepted, "n": seen[text]})
            examples.append(Example(name, text, accepted[0], references=accepted))
        return spec, examples

    def fit(self, X: Any, y: Any = None) -> Self:
        """Adapt to all pairs of texts and completions, at least 2. Raises InputError and SpecError as PromptClassifier
        does."""
        spec, examples = self._pairs(X, y, reset=True)
        if len(examples) < 2:
            raise InputError("X holds 1 sample; expected at least 2: one teaches, one is held out")
        return self._adapt(spec, examples)

    def predict(self, X: Any) -> NDArray[Any]:
        """What the model writes after each text [n], its first line."""
        return np.array([answer.text for answer in self._answers(X)], dtype=object)

    def score(self, X: Any, y: Any) -> float:
        """The mean of `metric` over the completions of `predict`; of several accepted ones the best counts. Raises
        InputError where `y` does not fit the texts."""
        spec, examples = self._pairs(X, y)
        answers = [replace(a, example_id=e.id) for a, e in zip(self._answers(X), examples, strict=True)]
        task = task_of(spec, {"test": tuple(examples)}, "score(X, y)")
        return float(score(task, examples, answers, [self.metric])[self.metric])
