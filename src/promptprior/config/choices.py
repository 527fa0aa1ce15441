"""The choices that settings offer by name, apart from what they choose between: help reads them without torch."""

from typing import Literal

OptimiserKind = Literal["adamw", "adafactor", "sgd"]
ScheduleKind = Literal["constant", "linear", "cosine"]
AverageKind = Literal["none", "ema", "swa"]
RateKind = Literal["proportional", "capped", "temperature", "uniform"]
HeadName = Literal["verbalizer", "calibrated", "contextual", "batch", "linear", "nearest", "constant", "mixture"]
"""How states become answers (heads.named_heads)."""
Measure = Literal["prompt", "token", "gradient", "label", "format"]
"""Ways in which two tasks can be like each other (compare.similarity)."""
TestRows = Literal["first", "balanced"]
"""Which rows of a test split a limit takes: the first, or the first of each class, as many of each."""
ShotsAre = Literal["class", "total"]
"""What a number of shots counts: examples of each class, or of all classes together."""
DevFrom = Literal["train", "validation"]
"""The split that dev examples come from."""
RateUnit = Literal["scale", "absolute"]
"""What learning rates are measured in: the embedding scale, or 1 as papers print them."""
Shared = Literal["refuse", "drop", "keep"]
"""What becomes of a partition's tasks that stand on both sides, or share text across them (compare.partition)."""
