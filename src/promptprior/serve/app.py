"""The HTTP interface of a server: its own endpoint for labels and probabilities, and OpenAI's for everything else."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import Gauge, generate_latest
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

from promptprior.errors import PromptpriorError
from promptprior.serve.counters import Metrics
from promptprior.serve.gate import GATE, NOTES, Gate
from promptprior.serve.limits import Limits, Refusal
from promptprior.serve.model_worker import Answered, Job, ModelWorker, Piece
from promptprior.serve.prompt_folder import NAME, PromptFolder, ServedPrompt

POLL = 1.0  # seconds between two looks at the folder
MOST_STOPS = 4

Name = Annotated[str, Field(pattern=NAME, description="the name of a prompt's folder")]
Text = str | dict[str, Any]


class PredictBody(BaseModel):
    """Texts for one prompt."""

    model: Name
    texts: list[Text] = Field(
        min_length=1, description="texts, or objects with the columns of the prompt's task (GET /v1/models names them)"
    )


class GreedyBody(BaseModel):
    """What OpenAI's two kinds of completions share. Text is greedy; what would ask for another is refused."""

    model: Name
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=0, description="0: text is greedy")
    n: int | None = Field(None, ge=1, le=1)
    stop: str | list[str] | None = Field(None, max_length=1000)
    stream: bool = False
    stream_options: dict[str, bool] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends. Raises Refusal for too many, or an empty one."""
        stops = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if len(stops) > MOST_STOPS or not all(0 < len(stop) <= 1000 for stop in stops):
            raise Refusal(400, f"stop: expected at most {MOST_STOPS} texts of 1 to 1,000 characters", "stop")
        return stops


class CompletionBody(GreedyBody):
    """A text, or several, that a prompt goes on with."""

    prompt: str | list[str] = Field(description="text; of a prompt with choices the answer is the likeliest label")


class ContentPart(BaseModel):
    """A part of a message: text alone."""

    type: Annotated[str, Field(pattern="^text$")]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    role: str
    content: str | list[ContentPart]


class ChatBody(GreedyBody):
    """A conversation. A soft prompt was learned in front of bare texts: the contents are joined by line breaks, and no
    chat template is put around them."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def prompt(self) -> str:
        """The contents of all messages."""
        contents = [m.content if isinstance(m.content, str) else [p.text for p in m.content] for m in self.messages]
        return "\n".join(c if isinstance(c, str) else "\n".join(c) for c in contents)


class Inbox:
    """What the worker's thread posts, for a coroutine to take."""

    def __init__(self) -> None:
        self.loop, self.events = asyncio.get_running_loop(), asyncio.Queue[Answered | Piece | Exception]()

    def post(self, event: Answered | Piece | Exception) -> None:
        """Put an event in, from any thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def take(self) -> Answered | Piece:
        """The next event. Raises the one that is an exception: one of ours as it is, any other as a Refusal."""
        event = await self.events.get()
        if isinstance(event, Refusal | PromptpriorError):
            raise event
        if isinstance(event, Exception):
            raise Refusal(500, "this request could not be computed; the server's log says why", "internal") from event
        return event


@dataclass(eq=False)
class Server:
    """All that a server holds, and its endpoints."""

    folder: PromptFolder
    worker: ModelWorker
    limits: Limits
    metrics: Metrics
    say: Callable[..., None]

    def app(self, keys: Mapping[str, bytes], hosts: tuple[str, ...] = ("*",)) -> Gate:
        """The ASGI application, for requests that name one of these hosts."""
        made = FastAPI(
            title="promptprior",
            version=version("promptprior"),
            description="Many soft prompts behind one frozen model. Paste this file into any OpenAPI viewer.",
            docs_url=None,  # the pages that FastAPI has load scripts from another machine
            redoc_url=None,
            lifespan=self.lifespan,
        )
        made.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        for path, endpoint, method in (
            ("/v1/predict", self.predict, "POST"),
            ("/v1/completions", self.complete, "POST"),
            ("/v1/chat/completions", self.chat, "POST"),
            ("/v1/models", self.models, "GET"),
            ("/health", self.health, "GET"),
            ("/metrics", self.counters, "GET"),
            ("/", self.page, "GET"),
        ):
            made.add_api_route(path, endpoint, methods=[method], response_model=None)
        for kind in (Refusal, PromptpriorError, RequestValidationError, HTTPException, Exception):
            made.add_exception_handler(kind, self.explain)
        for name, about, read in (  # read when they are asked for
            ("prompts", "Prompts that are served", lambda: len(self.folder.contents.prompts)),
            ("broken_prompts", "Folders that are not served as they stand", lambda: len(self.folder.contents.broken)),
            ("queued_requests", "Waiting for the model", lambda: len(self.worker.queue)),
            ("cached_bytes", "Keys and values that are kept", lambda: self.worker.cache.used_bytes),
        ):
            Gauge(f"promptprior_{name}", about, registry=self.metrics.registry).set_function(read)
        return Gate(made, self.limits, self.metrics, self.say, keys, lambda: self.worker.seconds_each)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Look at the folder while requests come; in the end answer what was accepted."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(POLL)
                try:
                    await run_in_threadpool(self.folder.look)
                except Exception as error:  # a disk that is away for a moment: what is served stays
                    self.say("folder", level="warning", reason=f"{type(error).__name__}: {error}")

        watching = asyncio.create_task(watch())
        yield
        watching.cancel()
        await run_in_threadpool(self.worker.close)
        self.say("end", answered="all accepted requests")

    async def explain(self, request: Request, error: Exception) -> JSONResponse:
        """An error as a response. What the user can mend says how; anything else is logged, and told to nobody."""
        status, code, message = 500, "internal", "an error of the server; its log says which"
        if isinstance(error, Refusal):
            status, code, message = error.status, error.code, str(error)
        elif isinstance(error, PromptpriorError):
            status, code, message = 400, "invalid_request", str(error)[:2000]
        elif isinstance(error, RequestValidationError):
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:4])[:100]
            status, code, message = 400, "invalid_request", f"{place or 'body'}: {first['msg'][:500]}"
        elif isinstance(error, HTTPException):
            status, code, message = error.status_code, "http", str(error.detail)
        if status == 500:
            cause = error.__cause__ or error
            request.scope[NOTES]["reason"] = f"{type(cause).__name__}: {cause}"[:2000]
        return JSONResponse(Refusal(status, message, code).content, status)

    def find(self, name: str, request: Request) -> ServedPrompt:
        """The prompt of a name. Raises Refusal where there is none."""
        served = self.folder.contents.prompts.get(name)
        if served is None:
            raise Refusal(404, f"no prompt {name!r} is served; GET /v1/models lists them", "model_not_found")
        request.scope[NOTES]["prompt"] = name
        return served

    async def start(self, served: ServedPrompt, texts: list[Text], request: Request, **how: Any) -> tuple[Job, Inbox]:
        """Ask a prompt; what comes of it arrives in the inbox. Raises Refusal for too many texts, DataError for texts
        that do not fit its task."""
        most = self.limits.texts
        if len(texts) > most:
            raise Refusal(413, f"{len(texts)} texts; at most {most} in one request: send several", "too_many_texts")
        request.scope[NOTES]["texts"] = len(texts)
        inbox = Inbox()
        job = Job(await run_in_threadpool(served.ask, texts), inbox.post, **how)  # templates take a while
        self.worker.submit(job)
        return job, inbox

    async def predict(self, body: PredictBody, request: Request) -> Response:
        """Labels and probabilities of texts; of free text the first line that the prompt writes."""
        served = self.find(body.model, request)
        how = {"new_tokens": served.longest_answer, "first_line": True} if served.writes_stepwise else {}
        job, inbox = await self.start(served, body.texts, request, **how)
        answers: list[dict[str, object]] = []
        if job.new_tokens:
            pieces = [piece async for piece in self.pieces(job, inbox)]
            for x in range(job.texts):
                text = "".join(piece.text for piece in pieces if piece.x == x)
                answers.append({"text": (text.strip().splitlines() or [""])[0].strip()})
            tokens, timing = sum(p.tokens[0] for p in pieces if p.finish), {"queue_ms": 1000 * job.waited}
        else:
            event = await inbox.take()
            assert isinstance(event, Answered)
            for example, prediction in zip(job.request.examples, event.predictions, strict=True):
                if prediction.choice is None:
                    answers.append({"text": prediction.text})
                else:
                    probabilities = dict(zip(example.choices, prediction.probabilities, strict=True))
                    answers.append({"label": prediction.text, "probabilities": probabilities})
            tokens = event.tokens
            timing = {"queue_ms": 1000 * event.waited, "model_ms": 1000 * event.seconds, "batch": event.shared}
        timing = {name: round(value, 3) for name, value in timing.items()}
        request.scope[NOTES] |= {"tokens": tokens, **timing}
        usage = {"prompt_tokens": tokens}
        return JSONResponse({"model": served.name, "answers": answers, "usage": usage, "timing": timing})

    async def pieces(self, job: Job, inbox: Inbox) -> AsyncIterator[Piece]:
        """The pieces of all texts of a job until each has ended. A reader that goes away ends the job."""
        open_texts = job.texts
        try:
            while open_texts:
                event = await inbox.take()
                if isinstance(event, Answered):  # a label, or text of a prompt that does not write step by step
                    for x, prediction in enumerate(event.predictions):
                        yield Piece(x, prediction.text, "stop", (event.tokens if x == 0 else 0, 0))
                    return
                open_texts -= bool(event.finish)
                yield event
        finally:
            job.is_cancelled = True

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        """OpenAI's completions: greedy text after each text; of a prompt with choices, its label."""
        return await self.write(body, request, body.max_tokens)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """OpenAI's chat completions: the same for the contents of all messages together."""
        return await self.write(body, request, body.max_completion_tokens or body.max_tokens)

    async def write(self, body: CompletionBody | ChatBody, request: Request, most: int | None) -> Response:
        """A completion as one JSON object, or as server-sent events."""
        served, is_chat = self.find(body.model, request), isinstance(body, ChatBody)
        longest = self.limits.new_tokens
        if (most or 0) > longest:
            raise Refusal(400, f"max_tokens {most}: expected at most {longest}", "max_tokens")
        how: dict[str, Any] = {"stop": body.stops}
        if served.writes_stepwise:
            how["new_tokens"] = min(most or served.longest_answer, longest)
        texts: list[Text] = [body.prompt] if isinstance(body.prompt, str) else [*body.prompt]
        if not texts:
            raise Refusal(400, "prompt: expected a text, or at least one", "prompt")
        job, inbox = await self.start(served, texts, request, **how)
        kind = "chat.completion" if is_chat else "text_completion"
        common = {"id": request.scope[NOTES]["id"], "created": int(time.time()), "model": served.name}
        pieces = self.pieces(job, inbox)
        first = await anext(pieces)  # an error is known by now, and still has a status of its own
        usage = [0, 0]

        def count(piece: Piece) -> dict[str, int]:
            if piece.finish:
                usage[:] = (old + new for old, new in zip(usage, piece.tokens, strict=True))
                request.scope[NOTES] |= {"tokens": usage[0], "new_tokens": usage[1]}
            return {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}

        if not body.stream:
            parts, finishes = [""] * job.texts, [""] * job.texts
            counted, piece = count(first), first
            while True:
                parts[piece.x] += piece.text
                finishes[piece.x] = piece.finish
                if (following := await anext(pieces, None)) is None:
                    break
                counted, piece = count(following), following
            choices = [
                {"index": x, "finish_reason": finish, "logprobs": None}
                | ({"message": {"role": "assistant", "content": text}} if is_chat else {"text": text})
                for x, (text, finish) in enumerate(zip(parts, finishes, strict=True))
            ]
            return JSONResponse({**common, "object": kind, "choices": choices, "usage": counted})

        async def events() -> AsyncIterator[str]:
            piece: Piece | None = first
            introduced = set[int]()
            try:
                while piece is not None:
                    counted = count(piece)
                    role = {} if piece.x in introduced else {"role": "assistant"}
                    introduced.add(piece.x)
                    delta = {"delta": {**role, "content": piece.text}} if is_chat else {"text": piece.text}
                    choice = {"index": piece.x, "finish_reason": piece.finish or None, "logprobs": None, **delta}
                    named = f"{kind}.chunk" if is_chat else kind
                    yield f"data: {json.dumps({**common, 'object': named, 'choices': [choice]})}\n\n"
                    piece = await anext(pieces, None)
                if (body.stream_options or {}).get("include_usage"):
                    yield f"data: {json.dumps({**common, 'object': named, 'choices': [], 'usage': counted})}\n\n"
            except (Refusal, PromptpriorError) as error:  # the status is gone: the stream says it
                shown = error if isinstance(error, Refusal) else Refusal(400, str(error), "invalid_request")
                yield f"data: {json.dumps(shown.content)}\n\n"
            finally:
                job.is_cancelled = True
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def models(self) -> dict[str, object]:
        """The prompts that are served, in OpenAI's form, each with what it reads and answers."""
        shown = []
        for name, served in sorted(self.folder.contents.prompts.items()):
            targets = [task.name for task in served.prompt.header.tasks if task.role == "target"]
            shown.append(
                {
                    "id": name,
                    "object": "model",
                    "created": max((changed for _, changed, _, _ in served.stamp), default=0) // 10**9,
                    "owned_by": "promptprior",
                    "answers": "label" if served.is_choice else "text",
                    "task": targets[0] if targets else None,
                    "method": served.prompt.header.method,
                    "columns": served.columns,
                    "labels": served.choices,
                }
            )
        return {"object": "list", "data": shown}

    def health(self, request: Request) -> Response:
        """Whether the server answers; to whoever may know (without keys, or with one) also what it serves."""
        contents, is_alive = self.folder.contents, self.worker.thread.is_alive()
        shown: dict[str, object] = {"status": "ok" if is_alive else "the model's thread has ended: restart"}
        gate: Gate = request.scope[GATE]
        try:
            may_know = not gate.keys or bool(gate.name_of_key(request.scope))
        except Refusal:
            may_know = False
        if may_know:
            shown |= {
                "backbone": self.worker.backbone.card.name,
                "prompts": len(contents.prompts),
                "broken": {name: broken.reason for name, broken in contents.broken.items()},
                "in_flight": gate.in_flight,
                "limit": self.limits.queue,
            }
        return JSONResponse(shown, 200 if is_alive else 503)

    def counters(self) -> Response:
        """What Prometheus reads."""
        return PlainTextResponse(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    def page(self) -> Response:
        """The playground."""
        return self.playground

    @cached_property
    def playground(self) -> Response:
        """One file that asks this server and nothing else."""
        text = files("promptprior.serve").joinpath("page/playground.html").read_text(encoding="utf-8")
        style, script = (text.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("style", "script"))
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
        policy = (
            f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return HTMLResponse(text, headers=headers)
