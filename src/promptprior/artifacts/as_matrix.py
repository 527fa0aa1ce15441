"""The one matrix an artifact stands for, where it stands for one."""

from dataclasses import fields

from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.errors import ArtifactError, unknown_name
from promptprior.notation import Float, Tensor
from promptprior.parameterisations.parameterisation import Offsetting, Parameterisation
from promptprior.parameterisations.registry import PARAMETERISATIONS
from promptprior.parameterisations.parameterisation import AnsweringForm
from promptprior.tasks.sampling.batch import Batch, Tokens, collate


def single_prompt(artifact: Prior | Prompt, where: str) -> Float[Tensor, "L D"]:
    """The prompt that every text reads, in float32. `where` names the artifact in errors.

    Raises ArtifactError when each text gets a prompt of its own, and when there are several prompts (particles, tasks).
    """
    form = fixed_form(artifact, where)
    prompts, _ = form.prompts(artifact.params, one_text())
    if len(prompts) != 1:
        raise ArtifactError(
            f"{where} ({artifact.header.method}, {artifact.header.parameterisation}) holds {len(prompts)} prompts; one "
            "was expected: adapt it to one target task first, or save the prompt you want as a Prompt of its own"
        )
    return prompts[0].detach().float().clone()


def fixed_form(artifact: Prior | Prompt, where: str) -> Parameterisation:
    """The artifact's parameterisation. Raises ArtifactError for one that reads the text (it asks for the backbone), and
    for one that changes it."""
    header = artifact.header
    if header.parameterisation not in PARAMETERISATIONS:
        raise ArtifactError(unknown_name("parameterisation", header.parameterisation, PARAMETERISATIONS))
    kind = PARAMETERISATIONS[header.parameterisation]
    if any(f.name == "backbone" for f in fields(kind)):
        raise ArtifactError(
            f"{where} ({header.method}, {header.parameterisation}) makes another prompt for every text, so it is no "
            "single prompt to export or start from; those of prompt_tuning, multitask, spot and reptile are. This "
            "one is served by promptprior itself (promptprior predict)"
        )
    form = kind(**header.parameterisation_settings)
    if isinstance(form, AnsweringForm):
        raise ArtifactError(
            f"{where} ({header.method}, {header.parameterisation}) holds weights of the model, a reference that "
            "prompts are compared with, and no prompt"
        )
    if isinstance(form, Offsetting):
        raise ArtifactError(
            f"{where} ({header.method}, {header.parameterisation}) also changes the embeddings of every text, which no "
            "single prompt does: it is served by promptprior itself (promptprior predict)"
        )
    return form


def one_text() -> Batch:
    """A batch of one text: a parameterisation that does not read texts makes all its prompts for any batch."""
    return collate([Tokens((0,), ((0,),))])
