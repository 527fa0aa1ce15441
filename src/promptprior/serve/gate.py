"""What stands before every request: a key, room in the queue, a bounded body; and what remains of it: a log line.

It is the only place that decides whether a request is accepted. What is accepted is answered, also during a shutdown.
"""

import asyncio
import hashlib
import hmac
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptprior.errors import SpecError
from promptprior.serve.counters import Metrics
from promptprior.serve.limits import OVERLOADED, Limits, Refusal
from promptprior.untrusted import read_utf8

OPEN = ("/", "/health")  # what needs no key: the page, which holds no data, and whether the server lives
WORK = ("/v1/predict", "/v1/completions", "/v1/chat/completions")
ROUTES = (*OPEN, *WORK, "/v1/models", "/metrics", "/openapi.json")
SHORTEST_KEY = 16  # characters
NOTES, GATE = "promptprior.notes", "promptprior.gate"  # of a request's scope: more for its log line, and its gate


def read_keys(path: Path) -> dict[str, bytes]:
    """The names of keys and the SHA-256 of each, from a file of lines "NAME KEY"; # begins a comment. Raises SpecError
    for another form, a short key, and a name or key that stands there twice."""
    digests: dict[str, bytes] = {}
    for number, line in enumerate(read_utf8(path, SpecError, 1_000_000).splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or len(words[1]) < SHORTEST_KEY:
            raise SpecError(
                f"{path} line {number} (--keys): expected a name, a space, and a key of at least {SHORTEST_KEY} "
                "characters without spaces"
            )
        digest = hashlib.sha256(words[1].encode()).digest()
        if words[0] in digests or digest in digests.values():
            raise SpecError(f"{path} line {number} (--keys): this name or key stands there before; give each its own")
        digests[words[0]] = digest
    if not digests:
        raise SpecError(f"{path} (--keys): no key in it; write lines of a name, a space and a key")
    return digests


@dataclass(eq=False)
class Gate:
    """An ASGI application around another one. `in_flight` requests are accepted and not yet answered."""

    app: ASGIApp
    limits: Limits
    metrics: Metrics
    say: Callable[..., None]
    keys: Mapping[str, bytes]
    seconds_each: Callable[[], float]
    in_flight: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on with its whole body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, path = time.monotonic(), scope["path"]
        notes: dict[str, Any] = {"id": uuid.uuid4().hex}
        scope[NOTES], scope[GATE], status, is_work = notes, self, 0, scope["method"] == "POST" and path in WORK

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", notes["id"].encode()), (b"x-content-type-options", b"nosniff")]
                if status == 401:
                    own.append((b"www-authenticate", b"Bearer"))
                if status == 429:  # by when what waits now should be answered
                    seconds = math.ceil(self.in_flight * self.seconds_each())
                    own.append((b"retry-after", str(min(60, max(1, seconds))).encode()))
                message = {**message, "headers": [*message["headers"], *own]}
            # Whoever does not read what was asked for cannot keep a place in the queue for ever
            await asyncio.wait_for(send(message), self.limits.deadline)

        accepted = False
        try:
            if self.keys and path not in OPEN:
                notes["key"] = self.name_of_key(scope)
            if is_work:
                if self.in_flight >= self.limits.queue:
                    full = f"{self.in_flight} requests wait already (--queue): try again later"
                    raise Refusal(429, full, OVERLOADED)
                self.in_flight, accepted = self.in_flight + 1, True
                receive = await self.whole_body(scope, receive)
            await self.app(scope, receive, reply)
        except Refusal as refusal:
            await JSONResponse(refusal.content, refusal.status)(scope, receive, reply)
        except TimeoutError:
            notes["reason"] = "the client did not read its answer"
        finally:
            self.in_flight -= accepted
            seconds = time.monotonic() - start
            route = path if path in ROUTES else "other"
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            shown = {"method": scope["method"][:20], "path": path[:200], "status": status, "seconds": round(seconds, 4)}
            self.say("request", **shown, **notes)
        return None

    def name_of_key(self, scope: Scope) -> str:
        """The name of the key that a request shows. Raises Refusal for none and for an unknown one."""
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        kind, _, key = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        digest, found = hashlib.sha256(key.strip()).digest(), ""
        for name, own in self.keys.items():  # all of them, so that time tells nothing of which one it was
            if hmac.compare_digest(digest, own):
                found = name
        if not found or kind.lower() != b"bearer":
            raise Refusal(401, "a key is needed: send the header 'Authorization: Bearer KEY'", "invalid_api_key")
        return found

    async def whole_body(self, scope: Scope, receive: Receive) -> Receive:
        """A `receive` that gives a request's whole body at once. Raises Refusal where it is too large or slow."""
        most = self.limits.body_bytes
        too_large = Refusal(413, f"a request of more than {most:,} bytes: send fewer texts", "too_large")
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or len(said) > 15 or int(said) > most:
            raise too_large
        body, more, last = bytearray(), True, time.monotonic() + self.limits.deadline
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, last - time.monotonic()))
            except TimeoutError as error:
                raise Refusal(408, f"no whole request in {self.limits.deadline:g} seconds", "slow") from error
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the client went away", "disconnected")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise too_large
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return whole.pop() if whole else await receive()

        return receive_again
