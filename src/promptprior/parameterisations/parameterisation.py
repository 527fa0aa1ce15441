"""The protocols of AXIS 1: what an object must have to turn parameters into prompts, or to answer without one.

A parameterisation ("form" for short) is a frozen dataclass. Params are a dict of floating-point tensors that all have a
leading copies axis C: copies train side by side in one run, each as if it were alone. A form never knows which rule
moves its params. It is one of two things:

    Parameterisation   its params become prompts; the engine shares one computation among texts that read one prompt
    AnsweringForm      its params are no prompt (weights, masks, a probe): they answer texts by themselves, copy by copy

and may have more to offer, each thing by a method of its own. These are a term of the loss (`Penalised`), offsets of
the texts' embeddings (`Offsetting`), prompt tokens that texts do not see (`Masking`), diagnostics (`Diagnosable`), a
plain prompt that it comes to when trained (`Foldable`).

What artifacts keep of a form are its name and its dataclass fields (`registry.plain_settings`): plain values only; a
field called `backbone` is filled in at load. `form_check.check_form` tests a form and its params before training.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from promptprior.backbone import Backbone, Site
from promptprior.backbone.key_values import Prompts
from promptprior.notation import Bool, Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens


class Parameterisation(Protocol):
    """A form whose params become prompts."""

    @property
    def name(self) -> str:
        """The name it is registered under and artifacts keep."""

    @property
    def length(self) -> int:
        """L, the tokens (or, as keys and values, the positions) of each prompt it makes."""

    def prompts(self, params: Params, batch: Batch) -> tuple[Prompts, Int[Tensor, " X"]]:
        """The distinct prompts that a batch needs, and which of them (0 to P - 1) each text reads.

        Prompts are embeddings [P, L, D], or `KeyValues`: the keys and values of every layer for L positions, which
        stand before a text without running through the model.

        Text x belongs to copy `batch.copy_index[x]` and comes from task `batch.task_index[x]`. It must be a function of
        params, and of each text alone: neither other texts nor padding may change the prompt that a text reads.
        """


class Answers(Protocol):
    """What answers texts where no prompt does. Its params are those of ONE copy, without the copies axis."""

    @property
    def length(self) -> int:
        """Prompt-like tokens in front of each text, for the memory budget; 0 for weights."""

    def losses(self, params: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token; `params` have the shapes they are
        trained in."""

    def generate(self, params: Mapping[str, Tensor], batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each text; `params` have the shapes they are trained in."""


@runtime_checkable
class StateAnswers(Protocol):
    """Answers that also hand out the states of texts, which heads read."""

    def text_states(
        self, params: Mapping[str, Float[Tensor, "..."]], batch: Batch, sites: Sequence[Site]
    ) -> Float[Tensor, "X S W"]:
        """Each text's states, pooled at every site, in the prompts' dtype; targets are not read."""


@runtime_checkable
class AnsweringForm(Protocol):
    """A form whose params are no prompt. `holds`, where the class has it, is what messages say that params are.

    A linear probe, for example, keeps its matrix in params, and its `answers` read the states of the frozen model:

        @dataclass(frozen=True)
        class Probe:
            name: str = "probe"
            holds: ClassVar[str] = "a linear probe of the last state"

            def answers(self, backbone: Backbone) -> ProbeAnswers: ...
    """

    @property
    def name(self) -> str:
        """The name it is registered under and artifacts keep."""

    def answers(self, backbone: Backbone) -> Answers:
        """What answers texts with this backbone; made once for a run. Raises SpecError where the backbone cannot."""


@runtime_checkable
class Penalised(Protocol):
    """What adds a term to the losses: a parameterisation, or an objective."""

    def penalty(self, params: Params, batch: Batch) -> Float[Tensor, " C"] | None:
        """What training adds to each copy's mean loss on a batch, in nats; None for nothing. Evaluation never does."""


@runtime_checkable
class Offsetting(Protocol):
    """A parameterisation whose prompts also add something to the embeddings of the texts that read them."""

    def offsets(self, params: Params) -> Float[Tensor, "P S D"]:
        """For each of its prompts, what is added to the embeddings of a text's tokens 0 to S - 1."""


@runtime_checkable
class Masking(Protocol):
    """A parameterisation that hides tokens of its prompts: nothing attends to them, all others keep their positions."""

    def hidden(self, params: Params, batch: Batch) -> Bool[Tensor, "P L"] | None:
        """True at every hidden token of the prompts that `prompts(params, batch)` returns; None where none is.

        A call that hides tokens of a prompt takes the engine's plain route, so None is much faster than a mask without
        True; positions of keys and values are hidden on every route.
        """
        ...


@runtime_checkable
class Diagnosable(Protocol):
    """A form that can report what its params have learned."""

    def diagnose(self, params: Params, texts: Mapping[str, Sequence[Tokens]]) -> Mapping[str, object]:
        """A report on one copy, by topic, in plain JSON values; `texts` are samples of each task, by its name."""


@runtime_checkable
class Foldable(Protocol):
    """A parameterisation that is a plain prompt once it is trained: what made it can be dropped.

    `plain`, where the class has it, is the form of what `fold` returns; without, that is `Direct`.
    """

    def fold(self, params: Params) -> Params:
        """The same prompts as params of `Direct`, or of `plain`."""
