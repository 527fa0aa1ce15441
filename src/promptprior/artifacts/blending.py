"""Several prompts of one target as one artifact, and back. Their answers are mixed by evaluate.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.header import Header
from promptprior.config.mapping import from_mapping, to_mapping
from promptprior.errors import ArtifactError, SpecError

BLEND = "blend"


def blended(
    header: Header, members: Sequence[Prompt], weights: Sequence[float], temperatures: Sequence[float]
) -> Prompt:
    """Members as one prompt under a header of its own, whose parameterisation becomes `blend`.

    A member's probabilities are those of its NLL over its temperature; those of the blend are the mean of its members'
    under the weights, which sum to one.
    """
    settings = {"members": [to_mapping(member.header) for member in members]}
    numbers = {"weight": weights, "temperature": temperatures}
    params = {name: torch.tensor([values], dtype=torch.float64) for name, values in numbers.items()}  # [1, M]
    for m, member in enumerate(members):
        params |= {f"{m}.{name}": value[None] for name, value in member.params.items()}
    header = replace(header, parameterisation=BLEND, parameterisation_settings=settings, head="", head_settings={})
    return Prompt(header, params)


def blend_members(prompt: Prompt) -> list[Prompt]:
    """The members of a blend. Raises ArtifactError where its header does not describe them."""
    members = []
    listed = prompt.header.parameterisation_settings.get("members")
    if not isinstance(listed, list) or not listed or not all(isinstance(each, Mapping) for each in listed):
        raise ArtifactError(
            "this blend names no members (parameterisation_settings): the file was edited, copy it again"
        )
    for m, mapping in enumerate(listed):
        try:
            header = from_mapping(Header, dict(mapping), "the header of a blend")
        except SpecError as error:
            raise ArtifactError(f"{error}; the file was edited or is from another version") from error
        own = {n.removeprefix(f"{m}."): value[0] for n, value in prompt.params.items() if n.startswith(f"{m}.")}
        members.append(Prompt(header, own))
    expected = (1, len(members))
    for name in ("weight", "temperature"):
        if name not in prompt.params or tuple(prompt.params[name].shape) != expected:
            raise ArtifactError(
                f"this blend of {len(members)} members has no tensor {name!r} of shape {list(expected)}"
            )
    return members
