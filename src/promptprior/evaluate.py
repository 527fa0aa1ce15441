"""Honest scores of prompts: choices are ranked by their likelihood, free text is generated, metrics are the task's own.

Everything is batched over copies: the dev sets of all episodes, or the test sets of all targets, are answered at once.
Several prompts of one target can answer as an ensemble, the posterior predictive (ours: BMTPT keeps one prompt):

    p(y | x) = mean over prompts of p(y | x, prompt), over the choices of each example
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.blending import BLEND, blend_members
from promptprior.artifacts.header import tensor_digest
from promptprior.backbone import Backbone, Site, own_texts, ranking_tokens, training_tokens
from promptprior.config.mapping import from_mapping, stable_hash
from promptprior.errors import ArtifactError, DataError, SpecError, unknown_name
from promptprior.heads.fitted import PREFIX, FittedHead, without_head
from promptprior.heads.head import Head, Readout
from promptprior.heads.named_heads import HEADS
from promptprior.interruptions import raise_if_interrupted
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import copies_of
from promptprior.objectives.weight_objective import Answering, objective_of
from promptprior.parameterisations.registry import parameterisation
from promptprior.preflight import check_lengths, length_of_prompt
from promptprior.processes import add_up
from promptprior.tasks.metrics import Prediction, merit, score
from promptprior.tasks.sampling.batch import Tokens, collate
from promptprior.tasks.task import Example, Split, Task

TEXTS_AT_ONCE = 512  # texts collated together; the engine cuts them further to fit its memory

TargetNLL = list[list[float]]
"""Of an evaluation set: for every text, the summed NLL of each of its targets, in nats."""


@dataclass(frozen=True)
class EvalSet:
    """Examples of a task that one copy of the parameters answers. `tokens` hold every choice, or the right answer.

    With `ensemble_size` above 1 as many copies, from `copy` on, answer by the mean of their probabilities. `heads`: the
    fitted head of each of them; without, choices are ranked by the likelihood of their words.
    """

    task: Task
    examples: Sequence[Example]
    tokens: Sequence[Tokens]
    copy: int = 0
    task_index: int = 0
    ensemble_size: int = 1
    heads: tuple[FittedHead, ...] = ()


@dataclass(frozen=True)
class EvalResult:
    """The task's metrics on an evaluation set, and the mean loss that selection falls back on (nats)."""

    scores: dict[str, float]
    nll: float


@dataclass(frozen=True)
class PromptRequest:
    """A prompt, and examples of a task that it is asked."""

    prompt: Prompt
    task: Task
    examples: Sequence[Example]


@dataclass(frozen=True)
class PromptAnswers:
    """What a prompt answers to each example: the NLL in nats of every target, and the prediction."""

    eval_set: EvalSet
    nll: TargetNLL
    predictions: list[Prediction]

    @property
    def result(self) -> EvalResult:
        """The scores of these answers by every metric, and their mean loss."""
        return self.scored()

    def scored(self, names: Sequence[str] = ()) -> EvalResult:
        """The scores by the metrics of these names (by default all), none without predictions; and the mean of
        `right_nll`."""
        e, total = self.eval_set, 0.0  # not sum(), which adds up in another way from Python 3.12 on
        for example, values, tokens in zip(e.examples, self.nll, e.tokens, strict=True):
            total += right_nll(example, values, tokens.target_lengths)
        scores = score(e.task, e.examples, self.predictions, names) if self.predictions else {}
        return EvalResult(scores, total / len(e.examples))

    @property
    def confusion(self) -> list[list[int]]:
        """How many examples of each class (row) got each answer (column), in label order; [] where classes differ by
        example, and for free text."""
        examples = self.eval_set.examples
        if not self.eval_set.task.is_choice or len({example.choices for example in examples}) > 1:
            return []
        counts = Counter((e.label, p.choice) for e, p in zip(examples, self.predictions, strict=True))
        labels = range(len(examples[0].choices))
        return [[counts[right, answered] for answered in labels] for right in labels]


def make_eval_set(
    objective: Answering, task: Task, examples: Sequence[Example], copy: int = 0, task_index: int = 0
) -> EvalSet:
    """An evaluation set, tokenised once."""
    encode = ranking_tokens if task.is_choice else training_tokens
    return EvalSet(task, examples, encode(objective.backbone, task, examples), copy, task_index)


def evaluate(
    prompt: Prompt, task: Task, backbone: Backbone, split: Split = "test", limit: int | None = None
) -> EvalResult:
    """Scores of a prompt on a split of a task (its first `limit` examples).

    Raises ArtifactError for a prompt of another backbone, DataError when the task has no such split or a text does not
    fit into the context, SpecError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise SpecError(f"limit {limit} (--limit): expected at least 1, or None for all")
    [answers] = answer_requests(backbone, [PromptRequest(prompt, task, task.split(split)[:limit])])
    return answers.result


def predict(prompt: Prompt, task: Task, backbone: Backbone, examples: Sequence[Example]) -> list[Prediction]:
    """What a prompt answers to examples of a task: the most likely choice, or generated text. Targets are not read.

    Raises ArtifactError for a prompt of another backbone, DataError for a text that does not fit into the context.
    """
    [answers] = answer_requests(backbone, [PromptRequest(prompt, task, examples)], reads_targets=False)
    return answers.predictions


def answer_requests(
    backbone: Backbone, requests: Sequence[PromptRequest], reads_targets: bool = True, generate: bool = True
) -> list[PromptAnswers]:
    """What prompts answer, those of one form in one evaluation.

    The members of a blend are asked like all other prompts; it answers by minus the log of each choice's weighted mean
    probability, in nats. Free text has no NLL without `reads_targets`, and no predictions without `generate`. Raises
    ArtifactError for a prompt of another backbone, and DataError where a text does not fit into the context, where a
    head knows other choices than the examples, and for a blend that is asked for free text.
    """
    members = dict[int, list[PromptRequest]]()  # of blends, by place
    for place, r in enumerate(requests):
        if r.prompt.header.parameterisation == BLEND:
            if not r.task.is_choice:
                raise DataError(f"task {r.task.name!r}: a blend averages probabilities of choices; this is free text")
            members[place] = [replace(r, prompt=member) for member in blend_members(r.prompt)]
    single = [one for place, r in enumerate(requests) for one in members.get(place, [r])]

    alike = defaultdict[str, list[int]](list)  # places in `single`, by form
    for place, one in enumerate(single):
        header = one.prompt.header
        header.backbone.check(backbone.card, f"the prompt of {header.method}")
        alike[stable_hash([header.parameterisation, header.parameterisation_settings])].append(place)
    of_single: dict[int, PromptAnswers] = {}
    for places in alike.values():
        group = [single[place] for place in places]
        of_single |= zip(places, _answer_as_copies(backbone, group, reads_targets, generate), strict=True)

    remaining, answers = iter([of_single[place] for place in range(len(single))]), list[PromptAnswers]()
    for place, r in enumerate(requests):
        own = [next(remaining) for _ in members.get(place, [r])]
        if place in members:
            weights, temperatures = (r.prompt.params[name][0].tolist() for name in ("weight", "temperature"))
            mixed = average_predictions(r.examples, [one.predictions for one in own], weights, temperatures)
            own = [PromptAnswers(own[0].eval_set, [list(p.choice_nll) for p in mixed], mixed)]
        answers += own
    return answers


@torch.no_grad()
def _answer_as_copies(
    backbone: Backbone, requests: Sequence[PromptRequest], reads_targets: bool, generate: bool
) -> list[PromptAnswers]:
    """What prompts of one form answer. Equal ones are one copy: a text is read once behind it, whatever heads read."""
    objective = prompt_objective(requests[0].prompt, backbone)
    encoded = dict[tuple[str, int], EvalSet]()  # by task and examples
    distinct, first_copy = list[Params](), dict[tuple[object, ...], int]()  # prompts, and where their copies start
    eval_sets, places, asked = list[EvalSet](), dict[tuple[object, ...], int](), list[int]()
    for r in requests:
        what = r.task.fingerprint, id(r.examples)
        if what not in encoded:
            check_lengths(backbone, r.task, r.examples, length_of_prompt(r.prompt, backbone))
            encoded[what] = make_eval_set(objective, r.task, r.examples)
        params, size = without_head(r.prompt.params), copies_of(r.prompt.params)
        prompt = size, *(tensor_digest(value) for _, value in sorted(params.items()))
        if prompt not in first_copy:
            first_copy[prompt] = sum(copies_of(others) for others in distinct)
            distinct.append(params)
        heads = prompt_heads(r.prompt, r.task, r.examples)
        key = *what, *prompt, len(eval_sets) if heads else None  # a fitted head is like no other
        if key not in places:
            places[key] = len(eval_sets)
            eval_sets.append(replace(encoded[what], copy=first_copy[prompt], ensemble_size=size, heads=heads))
        asked.append(places[key])

    copies = {name: torch.cat([params[name] for params in distinct]) for name in distinct[0]}
    answers = evaluate_requests(objective, copies, eval_sets, reads_targets, generate)
    return [answers[place] for place in asked]


def prompt_heads(prompt: Prompt, task: Task, examples: Sequence[Example]) -> tuple[FittedHead, ...]:
    """The fitted head of a prompt; () where the choices' likelihood answers.

    Raises DataError where the head knows other choices than those of the examples, and ArtifactError for an unknown
    name and for settings that the head does not have.
    """
    header = prompt.header
    if not header.head:
        return ()
    for example in examples:
        if example.choices != header.choices:
            raise DataError(
                f"task {task.name!r}: example {example.id!r} has the choices {list(example.choices)}; the "
                f"{header.head} head of this prompt was fitted to {list(header.choices)}, in this order"
            )
    if header.head not in HEADS:
        raise ArtifactError(unknown_name("head", header.head, HEADS))
    try:
        head: Head = from_mapping(HEADS[header.head], header.head_settings, f"head_settings of {header.head!r}")
    except SpecError as error:
        raise ArtifactError(f"{error}; the file was edited: copy it again") from error
    params = {n.removeprefix(PREFIX): v[0] for n, v in prompt.params.items() if n.startswith(PREFIX)}
    return (FittedHead(head, params),)


def prompt_objective(prompt: Prompt, backbone: Backbone) -> Answering:
    """The losses of a backbone that reads this prompt. Raises ArtifactError when it is another's."""
    header = prompt.header
    header.backbone.check(backbone.card, f"the prompt of {header.method}")
    form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
    return objective_of(backbone, form)


@torch.no_grad()
def evaluate_requests(
    objective: Answering,
    params: Params,
    eval_sets: Sequence[EvalSet],
    reads_targets: bool = True,
    generate: bool = True,
) -> list[PromptAnswers]:
    """What every evaluation set is answered. Free text has no NLL without `reads_targets`, no predictions without
    `generate`."""
    scored = [e for e in eval_sets if reads_targets or e.task.is_choice]
    losses = iter(eval_set_losses(objective, params, scored))
    nll = [next(losses) if reads_targets or e.task.is_choice else [] for e in eval_sets]
    predictions = predictions_of(objective, params, eval_sets, nll, generate)
    return [PromptAnswers(*of) for of in zip(eval_sets, nll, predictions, strict=True)]


def ranked(eval_set: EvalSet, nll: TargetNLL) -> list[Prediction]:
    """The likeliest choice of each example."""
    of_each = zip(eval_set.examples, nll, eval_set.tokens, strict=True)
    return [likeliest(example, values, tokens.target_lengths) for example, values, tokens in of_each]


def likeliest(example: Example, nll: Sequence[float], lengths: tuple[int, ...]) -> Prediction:
    """The choice of the lowest NLL, from the NLL in nats of every choice and their tokens; of equal ones the first."""
    best = min(range(len(nll)), key=nll.__getitem__)
    return Prediction(example.id, example.choices[best], best, tuple(nll), lengths)


def dev_scores(
    objective: Answering, eval_sets: Sequence[EvalSet], params: Params
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """What selection sees of each copy: the merit of its task's first metric (higher is better), and its NLL in nats.

    Free text is selected by NLL alone.
    """
    answers = evaluate_requests(objective, params, eval_sets, generate=False)
    firsts = [e.task.metrics[0] for e in eval_sets]
    results = [of.scored([name]) for of, name in zip(answers, firsts, strict=True)]
    values = [merit(name, r.scores[name]) if r.scores else 0.0 for name, r in zip(firsts, results, strict=True)]
    return torch.tensor(values, dtype=torch.float64), torch.tensor([r.nll for r in results], dtype=torch.float64)


def eval_set_losses(objective: Answering, params: Params, eval_sets: Sequence[EvalSet]) -> list[TargetNLL]:
    """Summed NLL in nats of every target of every text of every evaluation set, in float64.

    For an ensemble it is minus the log of the mean probability; a head's are normalised over the choices.
    """
    members = [
        replace(e, copy=e.copy + c, ensemble_size=1, heads=e.heads[c : c + 1])
        for e in eval_sets
        for c in range(e.ensemble_size)
    ]
    plain = iter(likelihoods(objective, params, [m for m in members if not m.heads]))
    headed, blocks = [m for m in members if m.heads], objective.backbone.layers
    sites = [[h.head.sites(blocks)[i] for i in h.head.used(h.params)] for h in (m.heads[0] for m in headed)]
    read = iter(readouts(objective, params, headed, sites))
    of_heads = (m.heads[0].head.choice_nll(m.heads[0].params, next(read)).tolist() for m in headed)
    remaining = iter([next(of_heads if m.heads else plain) for m in members])
    ensembles = [[next(remaining) for _ in range(e.ensemble_size)] for e in eval_sets]
    return [
        own[0] if len(own) == 1 else [mean_probability(of_text) for of_text in zip(*own, strict=True)]
        for own in ensembles
    ]


def readouts(
    objective: Answering, params: Params, members: Sequence[EvalSet], sites: Sequence[Sequence[Site]]
) -> list[Readout]:
    """What the model hands to the head of each evaluation set (of one copy each), with states at the sites named.

    A text is read once behind equal copies, up to the highest layer that one of its sets asks for: draws and folds of a
    target share texts.
    """
    alike = defaultdict[tuple[object, ...], list[int]](list)  # places of the members of equal copies
    for place, member in enumerate(members):
        digests = (tensor_digest(value[member.copy]) for _, value in sorted(params.items()))
        alike[*digests, member.task_index].append(place)
    read: dict[int, Readout] = {}
    for places in alike.values():
        first, order = members[places[0]], sorted({site for place in places for site in sites[place]})
        texts = sorted(
            {t for place in places for t in members[place].tokens}, key=lambda t: (len(t), t.text, t.targets)
        )
        row = {tokens: place for place, tokens in enumerate(texts)}
        reads_nll = any(members[place].heads[0].head.reads_nll for place in places)
        nll = likelihoods(objective, params, [replace(first, tokens=texts)])[0] if reads_nll else []
        parts = []
        for start in range(0, len(texts) if order else 0, TEXTS_AT_ONCE):
            raise_if_interrupted()
            chunk = texts[start : start + TEXTS_AT_ONCE]
            batch = collate(chunk, [first.copy] * len(chunk), [first.task_index] * len(chunk))
            parts.append(objective.text_states(params, batch, order).cpu().double())  # [X, S, D]
        states = torch.cat(parts) if parts else None
        for place in places:
            rows = [row[tokens] for tokens in members[place].tokens]
            values = [nll[r] if reads_nll else [0.0] * len(texts[r].targets) for r in rows]
            columns = [order.index(site) for site in sites[place]]
            own = states[rows][:, columns] if states is not None and columns else None  # [X, S, D]
            read[place] = Readout(torch.tensor(values, dtype=torch.float64), own)
    return [read[place] for place in range(len(members))]


def likelihoods(objective: Answering, params: Params, members: Sequence[EvalSet]) -> list[TargetNLL]:
    """The summed NLL of every target of every text, in nats, of evaluation sets of one copy each.

    Texts are split over processes.
    """
    texts = [(m, x) for m, member in enumerate(members) for x in range(len(member.tokens))]
    texts.sort(key=lambda text: (members[text[0]].copy, len(members[text[0]].tokens[text[1]])))  # little padding
    by_member: list[TargetNLL] = [[[] for _ in member.tokens] for member in members]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        raise_if_interrupted()
        chunk = texts[start : start + TEXTS_AT_ONCE]
        batch = collate(
            [members[m].tokens[x] for m, x in chunk],
            [members[m].copy for m, _ in chunk],
            [members[m].task_index for m, _ in chunk],
        )
        losses = torch.zeros(batch.rows, dtype=torch.float64)  # [R]
        mine = own_texts(batch)
        if len(mine):
            losses[torch.isin(batch.text_index, mine)] = objective.losses(params, batch.take(mine)).cpu().double()
        add_up([losses])
        sums = iter((losses * batch.target_lengths).tolist())
        for m, x in chunk:
            by_member[m][x] = [next(sums) for _ in members[m].tokens[x].targets]
    return by_member


def mean_probability(nll: Sequence[Sequence[float]], weights: Sequence[float] = ()) -> list[float]:
    """Minus the log of each choice's mean probability, from the NLL of every choice of one text under each prompt.

    Probabilities are normalised over the choices; a free text has one target and nothing to be normalised over.
    `weights` of the prompts sum to one; by default they are equal.

    >>> [round(value, 6) for value in mean_probability([[0.0, 0.0], [7.0, 7.0]])]  # -log(1/2)
    [0.693147, 0.693147]
    """
    table = -torch.tensor(nll, dtype=torch.float64)  # [prompts, choices]
    logs = torch.log_softmax(table, dim=1) if table.shape[1] > 1 else table
    if weights:
        return (-torch.logsumexp(logs + torch.tensor(weights, dtype=torch.float64).log()[:, None], dim=0)).tolist()
    return (math.log(len(nll)) - torch.logsumexp(logs, dim=0)).tolist()


def predictions_of(
    objective: Answering,
    params: Params,
    eval_sets: Sequence[EvalSet],
    losses: Sequence[TargetNLL],
    generate: bool = True,
) -> list[list[Prediction]]:
    """The likeliest choices, given the losses of all; for free text the first line that is generated, or nothing.

    Raises DataError for an ensemble that should generate.
    """
    out = []
    for e in eval_sets:
        if generate and not e.task.is_choice and e.ensemble_size > 1:
            raise DataError(
                f"{e.task.name}: prompts that answer together average probabilities of choices; this is free text"
            )
    for e, nll in zip(eval_sets, losses, strict=True):
        predictions = []
        if e.task.is_choice:
            predictions = ranked(e, nll)
        elif generate:
            batch = collate(e.tokens, [e.copy] * len(e.tokens), [e.task_index] * len(e.tokens))
            texts = objective.generate(params, batch, e.task.max_gen_toks)
            first_lines = [(text.strip().splitlines() or [""])[0].strip() for text in texts]
            predictions = [Prediction(x.id, line) for x, line in zip(e.examples, first_lines, strict=True)]
        out.append(predictions)
    return out


def right_nll(example: Example, nll: Sequence[float], lengths: Sequence[int]) -> float:
    """NLL in nats of the right answer: among the choices (normalised over them), or per token of free text."""
    if not example.choices:
        return nll[0] / lengths[0]
    least = min(nll)
    return nll[example.label or 0] - least + math.log(math.fsum(math.exp(least - value) for value in nll))


@dataclass(frozen=True)
class EnsembleResult:
    """Test scores of each prompt and of their ensemble, and what abstaining gains: (share answered, accuracy on it)."""

    members: tuple[dict[str, float], ...]
    ensemble: dict[str, float]
    abstention: tuple[tuple[float, float], ...]


def score_ensemble(
    backbone: Backbone, task: Task, prompts: Sequence[Prompt], limit: int | None = None
) -> EnsembleResult:
    """Scores of prompts adapted to one target, each and as an ensemble, on the test split of a task.

    Raises DataError for prompts of several targets, and for free text.
    """
    targets = {(t.name, t.fingerprint) for p in prompts for t in p.header.tasks if t.role == "target"}
    if len(targets) > 1:
        names = ", ".join(sorted({name for name, _ in targets}))
        raise DataError(
            f"prompts that answer together must be of one target; got several ({names}): score each target's separately"
        )
    examples = task.split("test")[:limit]
    answers = [predict(prompt, task, backbone, examples) for prompt in prompts]
    averages = average_predictions(examples, answers)
    return EnsembleResult(
        tuple(score(task, examples, predictions) for predictions in answers),
        score(task, examples, averages),
        tuple(abstention_curve(examples, averages)),
    )


def average_predictions(
    examples: Sequence[Example],
    answers: Sequence[Sequence[Prediction]],
    weights: Sequence[float] = (),
    temperatures: Sequence[float] = (),
) -> list[Prediction]:
    """One prediction for each example from those of several prompts: mean probabilities of its choices.

    A prompt's probabilities are those of its NLL over its temperature, 1 by default; `weights` as in
    `mean_probability`. `choice_nll` is then minus the logarithm of the mean, normalised over the choices. Raises
    DataError for free text.
    """
    averages = []
    for example, predictions in zip(examples, zip(*answers, strict=True), strict=True):
        if not predictions[0].choice_nll:
            raise DataError(f"example {example.id!r}: free text has no probabilities to average; use a choice task")
        own = zip(predictions, temperatures or (1.0,) * len(predictions), strict=True)
        nll = mean_probability([[value / t for value in p.choice_nll] for p, t in own], weights)
        best = nll.index(min(nll))
        averages.append(replace(predictions[0], choice=best, text=example.choices[best], choice_nll=tuple(nll)))
    return averages


def abstention_tenths(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[tuple[float, float]]:
    """`abstention_curve` at the most confident tenth of the examples, at two tenths, … and at all."""
    curve = abstention_curve(examples, predictions)
    counts = sorted({max(1, round(len(curve) * tenth / 10)) for tenth in range(1, 11)})
    return [curve[count - 1] for count in counts]


@dataclass(frozen=True)
class Forgetting:
    """Loss on plain text in nats per token, behind a prompt and without it, over so many tokens of so many passages."""

    behind_prompt: float
    without: float
    tokens: int
    passages: int


def forgetting(prompt: Prompt, backbone: Backbone, text: str) -> Forgetting:
    """What a prompt costs the model on plain text: the loss of the second half of each passage, given the first.

    Passages are paragraphs, cut after 80 words; those of fewer than 8 are left out. A head plays no part. Raises
    DataError for a text without a passage, and for a blend, which holds several prompts.
    """
    header = prompt.header
    if header.parameterisation == BLEND:
        raise DataError(
            "a blend answers by several prompts, and none of them reads plain text alone: adapt one method (--method), "
            "or leave --forgetting out"
        )
    words = [paragraph.split() for paragraph in text.split("\n\n")]
    passages = [own[start : start + 80] for own in words for start in range(0, len(own), 80)]
    passages = [passage for passage in passages if len(passage) >= 8]
    if not passages:
        raise DataError("the text for --forgetting has no paragraph of 8 words or more; give a longer one")
    examples = []
    for i, passage in enumerate(passages):
        half, rest = " ".join(passage[: len(passage) // 2]), " ".join(passage[len(passage) // 2 :])
        examples.append(Example(str(i), half, rest, (rest,), 0))  # one choice: its likelihood, and no end after it
    task = Task("plain text", "multiple_choice", ("accuracy",), {"test": tuple(examples)})
    width = backbone.width
    plain = prompt.headless
    empty = replace(plain.header, parameterisation="direct", parameterisation_settings={"length": 0, "width": width})
    none = torch.zeros(1, 0, width, dtype=backbone.frozen.prompt_dtype)
    both = [plain, Prompt(empty, {"prompt": none})]
    answers = answer_requests(backbone, [PromptRequest(one, task, task.split("test")) for one in both])
    tokens = sum(len(t.targets[0]) for t in answers[0].eval_set.tokens)
    losses = [sum(nll for [nll] in answer.nll) / tokens for answer in answers]
    return Forgetting(losses[0], losses[1], tokens, len(passages))


def abstention_curve(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[tuple[float, float]]:
    """Accuracy on the most confident share of examples, for every share: answer less, be right more often.

    >>> abstention_curve(examples, predictions)[-1]  # doctest: +SKIP
    (1.0, 0.81)
    """
    confidence = np.array([float(torch.softmax(-torch.tensor(p.choice_nll), 0).max()) for p in predictions])
    right = np.array([p.choice == e.label for p, e in zip(predictions, examples, strict=True)], dtype=float)
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    return [(float(n / len(order)), float(s / n)) for n, s in zip(count, right[order].cumsum(), strict=True)]
