"""The one thread that owns the model: it takes what waits, whatever prompts are meant, and answers it in one batch.

While a batch is computed the next one gathers, so that batches grow with load and nobody waits for company. Free text
is generated step by step between batches: a long text never keeps a label waiting for more than one step.

    queue -> labels: one call of evaluate.answer_requests for all requests
          -> texts:  one stream of greedy steps for all requests whose prompts have one form
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from promptprior.backbone import Backbone, training_tokens
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.generate import Steps
from promptprior.config.mapping import stable_hash
from promptprior.errors import DataError, PromptpriorError
from promptprior.evaluate import PromptRequest, answer_requests, prompt_heads, prompt_objective
from promptprior.heads.fitted import without_head
from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective, copies_of
from promptprior.preflight import check_lengths, length_of_prompt
from promptprior.serve.counters import Metrics
from promptprior.serve.key_value_cache import KeyValueCache
from promptprior.serve.limits import OVERLOADED, Limits, Refusal
from promptprior.tasks.metrics import Prediction
from promptprior.tasks.sampling.batch import Tokens, collate

SLACK = 0.2  # of each new measurement in the running mean of a request's seconds


@dataclass(frozen=True)
class Answered:
    """A prompt's predictions for the texts of a request, their tokens, and what it took: seconds of waiting and of
    computing, and how many requests shared the batch."""

    predictions: Sequence[Prediction]
    tokens: int
    waited: float
    seconds: float
    shared: int


@dataclass(frozen=True)
class Piece:
    """More of the text after text `x` of a request. `finish`: why it ended, "" while it goes on; `tokens` so far, of
    the text that was read and of the generated one."""

    x: int
    text: str
    finish: str
    tokens: tuple[int, int]


@dataclass(eq=False)
class Job:
    """A request for the model. `post` is told of what comes of it, in the worker's thread: Answered or Pieces, or the
    exception that ended it. With `new_tokens` text is written step by step, until one of `stop`, or to the end of its
    first line; without, `answer_requests` answers."""

    request: PromptRequest
    post: Callable[[Answered | Piece | Exception], None]
    new_tokens: int = 0
    stop: tuple[str, ...] = ()
    first_line: bool = False
    since: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    is_cancelled: bool = False

    @property
    def texts(self) -> int:
        """How many texts are asked about."""
        return len(self.request.examples)


@dataclass(eq=False)
class Writing:
    """The text that grows after one text of a job; `sent` is what was posted of it."""

    job: Job
    x: int
    read: int
    ids: list[int] = field(default_factory=list)
    sent: str = ""
    is_done: bool = False

    def add(self, new: Sequence[int], frozen: Frozen, is_last: bool = False) -> None:
        """Take in new token ids, and post what is certain of the text: not half a character, nor what may become a
        stop."""
        job, ends = self.job, not frozen.end_ids.isdisjoint(new[1:] or new)
        self.ids = [*self.ids, *new][: job.new_tokens]
        text = frozen.decode(self.ids)
        cuts = [text.find(stop) for stop in job.stop if stop in text]
        is_full = len(self.ids) >= job.new_tokens or is_last
        is_line = job.first_line and "\n" in text.lstrip()
        finish = "stop" if cuts or ends or is_line else "length" if is_full else ""
        text = text[: min(cuts, default=len(text))]
        if not finish:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            may_stop = [n for stop in job.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
            text = text[: len(text) - max(may_stop, default=0)]
        if finish or (len(text) > len(self.sent) and text.startswith(self.sent)):
            more, self.sent, self.is_done = text[len(self.sent) :], text, bool(finish)
            job.post(Piece(self.x, more, finish, (self.read, len(self.ids))))


@dataclass(eq=False)
class Stream:
    """Texts that grow together, by their places in the batch of `steps`."""

    steps: Steps
    writing: Sequence[Writing]
    ended: list[int] | None = None

    @property
    def alive(self) -> list[Writing]:
        """The texts that still grow."""
        return [each for each in self.writing if not each.is_done]

    def step(self, frozen: Frozen) -> None:
        """One more token for every text that is not done."""
        try:
            new = self.steps.send(self.ended)
        except StopIteration:
            for each in self.alive:
                each.add([], frozen, is_last=True)
            return
        for place, ids in new.items():
            each = self.writing[place]
            each.is_done |= each.job.is_cancelled
            if not each.is_done:
                each.add(ids, frozen)
        self.ended = [place for place in new if self.writing[place].is_done]


@dataclass(eq=False)
class ModelWorker:
    """Jobs that wait, and the thread that does them. Nothing else may use the backbone while it runs."""

    backbone: Backbone
    limits: Limits
    metrics: Metrics
    say: Callable[..., None]
    queue: deque[Job] = field(default_factory=deque)
    calls: deque[tuple[Callable[[], Any], "Future[Any]"]] = field(default_factory=deque)
    streams: list[Stream] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_closing: bool = False
    longest: int = 0  # of the queue, ever
    seconds_each: float = 0.05  # of a request: a running mean

    def __post_init__(self) -> None:
        self.cache = KeyValueCache(self.backbone, self.limits.cache_mb * 1_000_000)
        self.thread = threading.Thread(target=self.run, name="promptprior-model", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Put a job behind the others. Whoever calls keeps the queue within its bound (the gate does)."""
        with self.changed:
            self.queue.append(job)
            self.longest = max(self.longest, len(self.queue))
            self.changed.notify()

    def call(self, what: Callable[[], Any]) -> Any:
        """What a function returns, or raises, that uses the backbone: it runs between two batches."""
        outcome: Future[Any] = Future()
        with self.changed:
            self.calls.append((what, outcome))
            self.changed.notify()
        return outcome.result()

    def check(self, request: PromptRequest) -> int:
        """The tokens of a request's texts. Raises DataError for what is too long, or has other choices than a head."""
        prompt, examples = request.prompt, request.examples
        most = self.limits.tokens
        check_lengths(self.backbone, request.task, examples, length_of_prompt(prompt, self.backbone))
        count = sum(map(len, self.backbone.frozen.tokenizer([e.text for e in examples]).input_ids))
        if count > most:
            raise Refusal(413, f"{count:,} tokens in {len(examples)} texts; at most {most:,}: send fewer", "tokens")
        prompt_heads(prompt, request.task, examples)
        return count

    def close(self) -> None:
        """Finish what was accepted, and end the thread."""
        with self.changed:
            self.is_closing = True
            self.changed.notify()
        self.thread.join()

    @torch.no_grad()
    def run(self) -> None:
        """Do what waits, until the worker is closed and nothing does."""
        while True:
            with self.changed:
                while not (self.queue or self.calls or self.streams or self.is_closing):
                    self.changed.wait()
                if self.is_closing and not (self.queue or self.calls or self.streams):
                    return
                calls, jobs = list(self.calls), self.take()
                self.calls.clear()
            for what, outcome in calls:
                try:
                    outcome.set_result(what())
                except BaseException as error:  # whoever called gets it
                    outcome.set_exception(error)
            start = time.monotonic()
            alone = [job for job in jobs if not job.new_tokens]
            if alone:
                self.each_or_all(alone, self.answer)
                elapsed = (time.monotonic() - start) / len(alone)
                self.seconds_each += SLACK * (elapsed - self.seconds_each)
            if writers := [job for job in jobs if job.new_tokens]:
                self.each_or_all(writers, self.begin)
            for stream in self.streams:
                try:
                    stream.step(self.backbone.frozen)
                except Exception as error:
                    for each in stream.alive:
                        each.is_done = True
                        each.job.is_cancelled = True
                        each.job.post(error)
            self.streams = [stream for stream in self.streams if stream.alive]

    def take(self) -> list[Job]:
        """The jobs of the next batch, first come first; what has waited too long is refused. Holds the lock."""
        now, jobs, left = time.monotonic(), list[Job](), deque[Job]()
        growing = sum(len(stream.alive) for stream in self.streams)
        taken, most = {False: 0, True: growing}, {False: self.limits.batch_texts, True: self.limits.writers}
        is_full = {False: False, True: False}  # labels, and texts that are written
        for job in self.queue:
            kind, job.waited = bool(job.new_tokens), now - job.since
            if job.is_cancelled:
                continue
            if job.waited > self.limits.deadline:
                waited = f"no answer within {self.limits.deadline:g} seconds: the server is overloaded, try again later"
                job.post(Refusal(429, waited, OVERLOADED))
            elif not is_full[kind] and (not taken[kind] or taken[kind] + job.texts <= most[kind]):
                taken[kind] += job.texts
                jobs.append(job)
            else:
                is_full[kind] = True  # nobody overtakes a large request
                left.append(job)
        self.queue = left
        return jobs

    def each_or_all(self, jobs: Sequence[Job], do: Callable[[Sequence[tuple[Job, int]]], None]) -> None:
        """Do jobs together; if that fails each by itself, so that an error reaches only the one it is about."""
        sound: list[tuple[Job, int]] = []
        for job in jobs:
            self.metrics.waited.observe(job.waited)
            try:
                sound.append((job, self.check(job.request)))
                self.metrics.tokens.labels("read").inc(sound[-1][1])
            except Exception as error:
                job.post(error)
        if not sound:
            return None
        try:
            return do(sound)
        except Exception as error:
            if len(sound) == 1:
                return sound[0][0].post(error)
            if not isinstance(error, PromptpriorError | ValueError):
                self.say("batch", level="error", reason=f"{type(error).__name__}: {error}", requests=len(sound))
        for one in sound:
            try:
                do([one])
            except Exception as error:
                one[0].post(error)
        return None

    def answer(self, jobs: Sequence[tuple[Job, int]]) -> None:
        """Answer jobs in one evaluation; each is a request of its own, and none sees another's texts."""
        start = time.monotonic()
        prompts = self.cache.cached([job.request.prompt for job, _ in jobs])
        asked = [replace(job.request, prompt=prompt) for (job, _), prompt in zip(jobs, prompts, strict=True)]
        answers = answer_requests(self.backbone, asked, reads_targets=False)
        seconds = time.monotonic() - start
        self.metrics.batch_seconds.observe(seconds)
        self.metrics.batch_requests.observe(len(jobs))
        self.metrics.batch_texts.observe(sum(job.texts for job, _ in jobs))
        for (job, tokens), answer in zip(jobs, answers, strict=True):
            job.post(Answered(answer.predictions, tokens, job.waited, seconds, len(jobs)))

    def begin(self, jobs: Sequence[tuple[Job, int]]) -> None:
        """Start to write after the texts of jobs, those whose prompts have one form in one stream."""
        alike = defaultdict[str, list[Job]](list)
        for job, _ in jobs:
            header = job.request.prompt.header
            alike[stable_hash([header.parameterisation, header.parameterisation_settings])].append(job)
        streams = []
        for group in alike.values():
            prompts, encoded = [job.request.prompt for job in group], list[Tokens]()
            objective = prompt_objective(prompts[0], self.backbone)
            place = {id(prompt): p for p, prompt in enumerate({id(p): p for p in prompts}.values())}
            params: list[Params] = [without_head(p.params) for p in {id(p): p for p in prompts}.values()]
            if not isinstance(objective, PromptObjective) or any(copies_of(own) > 1 for own in params):
                raise DataError("free text is written after one prompt of tokens or keys and values; this is another")
            writing, copies = list[Writing](), list[int]()
            for job in group:
                own = training_tokens(self.backbone, job.request.task, job.request.examples)
                writing += [Writing(job, x, len(tokens.text)) for x, tokens in enumerate(own)]
                copies += [place[id(job.request.prompt)]] * job.texts
                encoded += own
            stacked = {name: torch.cat([own[name] for own in params]) for name in params[0]}  # [C, ...]
            most = max(job.new_tokens for job in group)
            streams.append(Stream(objective.token_steps(stacked, collate(encoded, copies), most), writing))
        self.streams += streams
