"""promptprior export: a prompt as PEFT adapter, array, safetensors, or as tokens of the model's own vocabulary."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from promptprior.cli.verb import Verb
from promptprior.config.training import setting
from promptprior.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    from promptprior.artifacts.artifact import Prior, Prompt


@dataclass(frozen=True)
class ExportPlan:
    """Everything `promptprior export` is told."""

    prompts: tuple[Path, ...] = field(metadata={"help": "prompt folder; for vocabulary also several: runs/a,runs/b"})
    output: Path = field(metadata={"help": "folder for what is written"})
    format: Literal["peft", "npy", "safetensors", "vocabulary"] = field(
        metadata={"help": "peft, npy, safetensors, or vocabulary: the whole model with the prompts as tokens"}
    )
    names: tuple[str, ...] = setting((), "vocabulary: what prompts are called in tokens; by default as their folders")
    backbone: str | None = setting(None, "vocabulary: the backbone, if it has moved; by default the one prompts name")
    dtype: str = setting("stored", "vocabulary: what weights are saved in; stored keeps them as they are on disk")
    keep_tied: bool = setting(
        False, "vocabulary: leave a tied head tied; the engine must then forbid the new ids itself"
    )

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SpecError("prompts is missing: name a prompt folder")
        if self.format != "vocabulary" and len(self.prompts) > 1:
            raise SpecError(f"format {self.format} (--format) holds one prompt; got {len(self.prompts)}")
        if self.names and len(self.names) != len(self.prompts):
            raise SpecError(f"{len(self.names)} names (--names) for {len(self.prompts)} prompts; give one for each")
        if len(set(names_of(self))) < len(self.prompts):
            raise SpecError(
                f"two prompts are called the same: {', '.join(names_of(self))}; say what they are (--names)"
            )


def names_of(plan: ExportPlan) -> tuple[str, ...]:
    """What prompts are called in tokens."""
    return plan.names or tuple(path.resolve().name for path in plan.prompts)


def run(plan: ExportPlan, dry_run: bool) -> None:
    """Read the prompts and write them in the format asked for."""
    from promptprior.artifacts.artifact import load_any
    from promptprior.artifacts.as_matrix import single_prompt
    from promptprior.artifacts.export_prompt import export_prompt

    artifacts = [load_any(own_folder(path)) for path in plan.prompts]
    lengths = [len(single_prompt(a, str(path))) for a, path in zip(artifacts, plan.prompts, strict=True)]
    if dry_run:
        return print(f"write {sum(lengths)} vectors of {', '.join(names_of(plan))} as {plan.format} to {plan.output}")
    if plan.format == "vocabulary":
        return bake(plan, artifacts)
    export_prompt(artifacts[0], plan.format, plan.output)
    return print(plan.output)


def own_folder(path: Path) -> Path:
    """The folder of a prompt of this library. Raises ArtifactError for another tool's."""
    from promptprior.artifacts.artifact import is_foreign
    from promptprior.cli.common import artifact_folder

    if is_foreign(path) or path.is_file():
        raise ArtifactError(f"{path} was written by another tool, which keeps no fingerprint of its backbone: first "
                            f"promptprior import {path} --backbone MODEL --output FOLDER")  # fmt: skip
    return artifact_folder(path)


def bake(plan: ExportPlan, artifacts: "list[Prior | Prompt]") -> None:
    """Write the model with its prompts as tokens, and say how to use them."""
    from promptprior.artifacts.export_prompt import export_vocabulary
    from promptprior.backbone.added_tokens import stored_dtype
    from promptprior.backbone.frozen import load_frozen

    name = plan.backbone or artifacts[0].header.backbone.name
    frozen = load_frozen(name, stored_dtype(name) if plan.dtype == "stored" else plan.dtype, "cpu")
    for one in export_vocabulary(
        dict(zip(names_of(plan), artifacts, strict=True)), frozen, plan.output, plan.keep_tied
    ):
        print(
            f"{one.name}: {one.length} tokens, rounding {one.rounding:.2g} x scale; before a text write\n  {one.text}"
        )
    print(plan.output)


VERB = Verb(
    "export",
    ExportPlan,
    run,
    "promptprior export runs/prompt --format vocabulary --output runs/model_with_prompt",
    positional=("prompts",),
)
