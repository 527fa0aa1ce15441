"""How much a method reads, in its own words: what estimates (cost_estimate.py) ask it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """The work of a method; the defaults are those of one direct prompt that descends.

    Of the source stage, `source_texts` says how many texts a step reads, and `source_passes` how many times it reads
    the texts of `multitask`: a text that is read with a gradient counts 1, without one `cost.SCORED`, in a Hessian
    product `cost.SECOND_ORDER`.

    On a target, `steps_before` are the steps on its shots before its own training, those of probes and of joint stages.
    `adaptation_copies` says in how many ways each episode adapts for each learning rate, `answering_prompts` how many
    prompts answer the test examples by their mean probability. `head_depth` is the share of the layers that a head
    reads while it is fitted.
    """

    source_texts: int
    source_passes: float = 1.0
    steps_before: int = 0
    adaptation_copies: int = 1
    answering_prompts: int = 1
    head_depth: float = 1.0
