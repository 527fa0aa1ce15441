"""What a server takes on at most, so that overload costs refusals and never memory."""

from dataclasses import dataclass

from promptprior.config.mapping import check_bounds
from promptprior.config.training import setting


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; memory is bounded by `queue` bodies of `body_bytes`, one batch, and the cache."""

    queue: int = setting(
        256, "requests that are accepted and not yet answered; more are refused with 429", least=1, most=10**6
    )
    deadline: float = setting(
        30.0, "seconds that a request may wait for the model before it is refused with 429", above=0, most=3600
    )
    body_bytes: int = setting(1_000_000, "bytes of a request", least=100, most=10**9)
    texts: int = setting(128, "texts of a request", least=1, most=10**6)
    tokens: int = setting(16_384, "tokens of all texts of a request together", least=1, most=10**8)
    new_tokens: int = setting(512, "tokens that are generated after a text", least=1, most=10**6)
    batch_texts: int = setting(64, "texts that are answered in one batch", least=1, most=10**6)
    writers: int = setting(64, "texts that are being generated at once", least=1, most=10**5)
    cache_mb: int = setting(1000, "megabytes for keys and values of prompts; 0 keeps none", least=0, most=10**6)

    def __post_init__(self) -> None:
        check_bounds(self)


class Refusal(Exception):
    """A request that is not answered: the HTTP status, the message, and a code that programs can read."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def content(self) -> dict[str, dict[str, object]]:
        """The body, in the form of OpenAI's errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "code": self.code}}


OVERLOADED = "overloaded"
