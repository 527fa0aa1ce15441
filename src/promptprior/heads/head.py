"""The protocol of AXIS 3: how what the frozen model makes of a text becomes probabilities of its choices.

A head is a frozen dataclass of plain settings, which artifacts keep with its name. It knows no tokens, no prompts and
no model: it reads a `Readout`, and `fit` makes params of the shots' one. The way through it:

    sites = head.sites(layers)                           what the model must hand out of its states
    params = head.fit(shots, labels, extra)              shots.states hold all these sites
    used = head.used(params)                             indices into `sites`: what answering still needs
    nll = head.choice_nll(params, readout)               readout.states hold the used sites alone, in this order

So a head that picks one middle layer of many costs half a forward pass where it answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from promptprior.backbone import Site
from promptprior.notation import Float, Int, Params, Tensor


@dataclass(frozen=True)
class Readout:
    """What the frozen model hands out about X texts of one task behind one prompt.

    `nll`: the summed NLL of each of the K choices, in nats, float64. `states`: each text's states pooled at S sites;
    None where nothing reads states. A head that reads states alone takes only the number of choices from `nll`.
    """

    nll: Float[Tensor, "X K"]
    states: Float[Tensor, "X S D"] | None = None


class Head(Protocol):
    """What turns a readout into probabilities. Its params are those of ONE copy: float tensors without a copies axis,
    none for a head that fits nothing. A head that names this protocol as its base inherits what it does not need."""

    reads_nll: ClassVar[bool] = True
    """Whether it reads the likelihood of the choices; else a readout's `nll` is all zeros, which costs nothing."""

    @property
    def name(self) -> str:
        """The name it is registered under and artifacts keep."""

    def sites(self, layers: int) -> tuple[Site, ...]:  # noqa: ARG002
        """What it reads of a model with so many blocks while it is fitted; () for no states."""
        return ()

    def extra_texts(self, texts: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Further texts that `fit` wants to read beside the shots' (content-free ones); [] for none. Never empty ones:
        without a prompt the model cannot score an answer to nothing."""
        return []

    def used(self, params: Params) -> tuple[int, ...]:
        """Which of `sites`, by their indices in ascending order, `choice_nll` reads: those in params["site"]."""
        return tuple(int(index) for index in params.get("site", ()))

    def fit(self, shots: Readout, labels: Int[Tensor, " X"], extra: Readout | None) -> Params:  # noqa: ARG002
        """Params from the shots, whose choices are labelled 0 to K - 1; `extra` is the readout of `extra_texts`."""
        return {}

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log probability of each choice, normalised over the choices, in nats, float64."""
