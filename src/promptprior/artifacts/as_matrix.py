"""The one matrix an artifact stands for, where it stands for one."""

from dataclasses import fields

from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.errors import ArtifactError
from promptprior.notation import Float, Tensor
from promptprior.parameterisations.parameterisation import Offsetting
from promptprior.parameterisations.registry import form_class, make_form
from promptprior.tasks.sampling.batch import Tokens, collate


def single_prompt(artifact: Prior | Prompt, where: str) -> Float[Tensor, "L D"]:
    """The prompt that every text reads, in float32. `where` names the artifact in errors.

    Raises ArtifactError when the artifact holds no prompt, a prompt for each text, one that also changes the text's
    embeddings, or several prompts (particles, tasks).
    """
    header = artifact.header
    what = f"{where} ({header.method}, {header.parameterisation})"
    if header.head:
        raise ArtifactError(
            f"{what} answers by a {header.head} head on the states behind its prompt, which other tools do not have: "
            "it is served by promptprior itself (promptprior predict)"
        )
    cls = form_class(header.parameterisation)
    if hasattr(cls, "answers"):
        holds = getattr(cls, "holds", f"what the parameterisation {header.parameterisation!r} answers with")
        raise ArtifactError(f"{what} holds {holds}, and no prompt: it is served by promptprior itself (promptprior "
                            "predict)")  # fmt: skip
    if any(f.name == "backbone" for f in fields(cls)):  # it reads texts
        raise ArtifactError(
            f"{what} makes another prompt for every text, so it is no single prompt to export or start from; those of "
            "prompt_tuning, multitask, spot and reptile are. This one is served by promptprior itself (promptprior "
            "predict)"
        )
    if header.parameterisation == "prefix":
        raise ArtifactError(
            f"{what} holds keys and values of every layer, which stand before a text without being tokens: no matrix "
            "of embeddings does the same. PEFT has a form for prefixes of all layers of a decoder (--format peft); all "
            "are served by promptprior itself (promptprior predict)"
        )
    form = make_form(header.parameterisation, header.parameterisation_settings)
    if isinstance(form, Offsetting):
        raise ArtifactError(
            f"{what} also changes the embeddings of every text, which no single prompt does: it is served by "
            "promptprior itself (promptprior predict)"
        )
    one_text = collate([Tokens((0,), ((0,),))])  # a form that does not read texts makes all its prompts for any batch
    prompts, _ = form.prompts(artifact.params, one_text)
    if len(prompts) != 1:
        raise ArtifactError(
            f"{what} holds {len(prompts)} prompts; one was expected: adapt it to one target task first, or save the "
            "prompt you want as a Prompt of its own"
        )
    return prompts[0].detach().float().clone()
