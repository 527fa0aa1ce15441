"""promptprior export: a prompt as PEFT adapter or array, in the model's own vocabulary, or for an engine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from promptprior.cli.output import show
from promptprior.cli.verb import FORCE, Verb
from promptprior.config.plan_file import check_output, plan_beside, save_plan
from promptprior.config.training import setting
from promptprior.errors import ArtifactError, SpecError

BAKED = ("vocabulary", "llama.cpp")  # these write the model as well, and take several prompts
ENGINES = ("vllm", "sglang", "tensorrt-llm")


@dataclass(frozen=True)
class ExportPlan:
    """The settings of `promptprior export`."""

    prompts: tuple[Path, ...] = field(
        metadata={"help": "prompt folder; for vocabulary and llama.cpp also several: runs/a,runs/b"}
    )
    output: Path = field(metadata={"help": "folder for what is written"})
    format: Literal["peft", "npy", "safetensors", "vocabulary", "llama.cpp", "vllm", "sglang", "tensorrt-llm"] = field(
        metadata={
            "help": "peft, npy, safetensors; vocabulary (the whole model with the prompts as tokens), llama.cpp (the "
            "same as GGUF); vllm, sglang, tensorrt-llm (the prompt alone, with server command and client)"
        }
    )
    names: tuple[str, ...] = setting(
        (), "what prompts are called in tokens and by engines; by default as their folders"
    )
    backbone: str | None = setting(None, "the backbone, if it has moved; by default the one prompts name")
    dtype: str = setting("stored", "what weights are saved in, or an engine computes in; stored: as they are on disk")
    keep_tied: bool = setting(
        False, "vocabulary, llama.cpp: leave a tied head tied; the engine must then forbid the new ids itself"
    )
    force: bool = setting(False, FORCE)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SpecError("prompts is missing: name a prompt folder")
        if self.format not in BAKED and len(self.prompts) > 1:
            raise SpecError(f"format {self.format} (--format) holds one prompt; got {len(self.prompts)}")
        if self.names and len(self.names) != len(self.prompts):
            raise SpecError(f"{len(self.names)} names (--names) for {len(self.prompts)} prompts; give one for each")
        if len(set(self.token_names)) < len(self.prompts):
            raise SpecError(
                f"two prompts are called the same: {', '.join(self.token_names)}; say what they are (--names)"
            )

    @property
    def token_names(self) -> tuple[str, ...]:
        """What prompts are called in tokens."""
        return self.names or tuple(path.resolve().name for path in self.prompts)

    def run(self, dry_run: bool) -> None:
        """Read the prompts, write them in the format asked for, and say how tokens are used."""
        from promptprior.artifacts.artifact import artifact_folder, is_foreign, load_any
        from promptprior.artifacts.as_matrix import single_prompt
        from promptprior.artifacts.engines.engine_folder import Engine, export_for_engine
        from promptprior.artifacts.export_prompt import export_prompt, export_vocabulary
        from promptprior.backbone.added_tokens import stored_dtype
        from promptprior.backbone.frozen import load_frozen

        for path in self.prompts:
            if is_foreign(path) or path.is_file():
                raise ArtifactError(
                    f"{path} was written by another tool, which keeps no fingerprint of its backbone: first "
                    f"promptprior import {path} --backbone MODEL --output FOLDER"
                )
        artifacts = [load_any(artifact_folder(path)) for path in self.prompts]
        name = self.backbone or artifacts[0].header.backbone.name
        check_output(self.output, "export", (*self.prompts, name), force=self.force)
        lengths = [len(single_prompt(a, str(path))) for a, path in zip(artifacts, self.prompts, strict=True)]
        if dry_run:
            names = ", ".join(self.token_names)
            return print(f"write {sum(lengths)} vectors of {names} as {self.format} to {self.output}")
        if self.format in ENGINES:
            engine, called = cast(Engine, self.format), self.token_names[0]
            notes = export_for_engine(artifacts[0], engine, self.output, called, name, self.dtype)
            save_plan(self, plan_beside(self.output), "export", [self.output])
            said = {"output": self.output, "format": self.format, "notes": notes}
            return show("\n".join([*(f"note: {note}" for note in notes), str(self.output)]), said)
        if self.format not in BAKED:
            export_prompt(artifacts[0], cast(Literal["peft", "npy", "safetensors"], self.format), self.output)
            save_plan(self, plan_beside(self.output), "export", [self.output])
            return show(str(self.output), {"output": self.output, "format": self.format})
        frozen = load_frozen(name, stored_dtype(name) if self.dtype == "stored" else self.dtype, "cpu")
        named = dict(zip(self.token_names, artifacts, strict=True))
        to_gguf, lines = self.format == "llama.cpp", list[str]()
        baked = export_vocabulary(named, frozen, self.output, self.keep_tied, to_gguf)
        for added in baked:
            rounding = f"rounding {added.rounding:.2g} x scale"
            lines.append(f"{added.name}: {added.length} tokens, {rounding}; before a text write\n  {added.text}")
        save_plan(self, plan_beside(self.output), "export", [self.output])
        prompts: dict[str, object] = {added.name: {"tokens": added.length, "text": added.text} for added in baked}
        about: dict[str, object] = {"output": self.output, "format": self.format, "prompts": prompts}
        return show("\n".join([*lines, str(self.output)]), about)


VERB = Verb(
    "export",
    ExportPlan,
    ExportPlan.run,
    "promptprior export runs/prompt --format vocabulary --output runs/model_with_prompt",
    positional=("prompts",),
)
