"""How much a method reads, in its own words: what estimates (cost_estimate.py) and schedules ask it."""

from typing import ClassVar, Literal

from promptprior.config.training import Settings


class Workload:
    """The work of a method; the defaults are those of one direct prompt that descends. `read_prompts`: whether texts
    read none, one that all share, or one for each source task."""

    read_prompts: ClassVar[Literal["none", "one", "each_source"]] = "one"

    def source_passes(self, settings: Settings) -> float:
        """How many times the texts of `multitask` the source stage reads.

        A text that is read with a gradient counts 1, without one `cost.SCORED`, in a Hessian product
        `cost.SECOND_ORDER`.
        """
        return 1.0

    def source_texts(self, settings: Settings, sources: int) -> int:
        """How many texts a step on so many sources reads."""
        return settings.source.batch_size

    def adaptation_copies(self, settings: Settings) -> int:
        """In how many ways each episode adapts for each learning rate."""
        return 1

    def head_depth(self) -> float:
        """The share of the layers that a head reads while it is fitted."""
        return 1.0

    def answering_prompts(self) -> int:
        """How many prompts answer the test examples by their mean probability."""
        return 1

    def steps_before(self, settings: Settings) -> int:
        """Steps on each target's shots before its own training: those of probes and of joint stages."""
        return int(getattr(self, "joint_steps", 0)) + int(getattr(self, "probe_steps", 0))

    @property
    def trains_targets_jointly(self) -> bool:
        """Whether a target's result depends on which other targets adapt along with it."""
        return getattr(self, "joint_steps", 0) > 0

    def shown_shots(self, shots: int) -> int:
        """How many of the shots stand before each text, as tokens."""
        return 0

    def prompt_tokens(self, settings: Settings, texts: float, sources: int = 0) -> float:
        """Tokens of all prompts that so many texts of so many sources read together.

        Without `sources` the texts are of one target. By default prompts have the settings' length; a prefix has no
        tokens.
        """
        if self.read_prompts == "none" or settings.form != "prompt":
            return 0
        return settings.length * (max(1, sources) if self.read_prompts == "each_source" else 1)
