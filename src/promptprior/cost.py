"""What work cost: the one value from the training loop to the result row."""

from dataclasses import dataclass

SCORED = 0.4  # what reading a token costs without a gradient, over reading it with one: SmolLM2 on two cores
SECOND_ORDER = 2.5  # what a token of a Hessian product costs, over one of a gradient: Llama-like models on one core


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and the rows and tokens that the backbone read."""

    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.rows + other.rows, self.tokens + other.tokens)

    def shared_by(self, count: int) -> "Cost":
        """The equal share of each of `count` users; rows and tokens are rounded down."""
        return Cost(self.seconds / count, self.rows // count, self.tokens // count)
