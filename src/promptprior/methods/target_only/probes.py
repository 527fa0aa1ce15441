"""References that train nothing in the model: a head on what the frozen model makes of a text by itself.

`linear_probe`: ridge regression on pooled states (Alain, Bengio 2017, arXiv 1610.01644); `knn`: nearest shots;
`constant`: the most frequent class of the shots, whatever the text. `prompted_linear` and `prompted_mixture` read
behind an untrained prompt, which takes the attention that a text's own first token gets else (docs/log.md). The others
rank the choices by their likelihood, corrected for the bias that answers have before any text. `zero_shot_contextual`
corrects by content-free texts (Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021, arXiv 2104.08315),
`zero_shot_batch` by unlabelled texts (Zhou et al. 2023, arXiv 2309.17249), `zero_shot_calibrated` by offsets that the
labelled shots fit.
"""

from dataclasses import dataclass
from typing import ClassVar

from promptprior.methods.options import fact
from promptprior.methods.target_only.prompt_tuning import PromptTuning, ZeroShot


@dataclass(frozen=True)
class Probe(ZeroShot):
    """No prompt, and a head that all shots teach."""

    name: str = fact("linear_probe")
    uses_shots: bool = fact(True, init=False)


@dataclass(frozen=True)
class PromptedProbe(PromptTuning):
    """Prompt tuning's start, as it is, and a head that all shots teach."""

    name: str = fact("prompted_linear")
    trains: ClassVar[bool] = False


ARMS = (
    Probe(name="linear_probe", head="linear"),
    Probe(name="knn", head="nearest"),
    Probe(name="constant", head="constant"),
    Probe(name="zero_shot_contextual", head="contextual"),
    Probe(name="zero_shot_batch", head="batch"),
    Probe(name="zero_shot_calibrated", head="calibrated"),
    Probe(name="probe_mixture", head="mixture"),
    PromptedProbe(name="prompted_linear", head="linear"),
    PromptedProbe(name="prompted_mixture", head="mixture"),
)
