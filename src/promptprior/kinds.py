"""The choices that settings offer by name, apart from what they choose between: help reads them without torch."""

from typing import Literal

OptimiserKind = Literal["adamw", "adafactor", "sgd"]
ScheduleKind = Literal["constant", "linear", "cosine"]
RateKind = Literal["proportional", "capped", "temperature", "uniform"]
