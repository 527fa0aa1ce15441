"""promptprior inspect: what artifact folders hold, the words near their vectors, and how like each other they are."""

from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.output import format_table, show
from promptprior.cli.verb import Verb
from promptprior.config.mapping import check_bounds
from promptprior.config.training import setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class InspectPlan:
    """The settings of `promptprior inspect`."""

    folders: tuple[Path, ...] = field(
        metadata={"help": "folder of a prior or prompt; of several (a,b,c) also how similar their prompts are"}
    )
    nearest: int = setting(
        0,
        "show so many nearest tokens of each vector, by cosine and distance; loads the backbone",
        least=0,
        most=100,
    )
    backbone: str | None = setting(None, "the backbone, if it has moved; by default the one that the folder names")

    def __post_init__(self) -> None:
        if not self.folders:
            raise SpecError("folders is missing: name the folder of a prior or prompt")
        check_bounds(self)

    def run(self, dry_run: bool) -> None:  # noqa: ARG002 - reading costs little
        """Check the folders and print a page on each, then what they have in common."""
        from promptprior.artifacts.artifact import artifact_folder, is_foreign, load_any
        from promptprior.artifacts.as_matrix import single_prompt
        from promptprior.artifacts.inspect import artifact_facts, inspect_artifact, nearest_tokens, similarities

        paths = {str(folder): artifact_folder(folder) for folder in self.folders}
        pages, facts = list[str](), list[dict[str, object]]()
        for name, path in paths.items():
            pages.append((f"{name}\n" if len(paths) > 1 else "") + inspect_artifact(path).rstrip("\n"))
            facts.append(artifact_facts(path))
        if (self.nearest or len(paths) > 1) and (foreign := [name for name, path in paths.items() if is_foreign(path)]):
            raise SpecError(
                f"{foreign[0]} was written by PEFT, which keeps no fingerprint of its backbone: first promptprior "
                f"import {foreign[0]} --backbone MODEL --output FOLDER"
            )
        if self.nearest:
            from promptprior.backbone.frozen import load_frozen

            artifacts = {name: load_any(path) for name, path in paths.items()}
            prompts = {name: single_prompt(artifact, name) for name, artifact in artifacts.items()}
            frozen = load_frozen(self.backbone or next(iter(artifacts.values())).header.backbone.name, "float32", "cpu")
            for place, (name, artifact) in enumerate(artifacts.items()):
                artifact.header.backbone.check(frozen.card, name)
                found = nearest_tokens(prompts[name], frozen, self.nearest)
                rows = []
                for vector in found:
                    near = [
                        " ".join(f"{hit['token']!r} {hit[by]:.2f}" for hit in vector[by])
                        for by in ("cosine", "distance")
                    ]
                    rows.append([str(vector["vector"]), f"{vector['norm']:.2f}", *near])
                heads = ["vector", "norm", "nearest by cosine", "nearest by distance (embedding scales)"]
                pages[place] += f"\n\nnearest tokens\n{format_table(heads, rows)}"
                facts[place]["nearest"] = found
        report: object = facts[0]
        if len(paths) > 1:
            pairs = similarities({name: load_any(path) for name, path in paths.items()})
            rows = []
            for pair in pairs:
                numbers = ["-" if pair.get(n) is None else f"{pair[n]:.3f}" for n in ("cosine", "matched", "distance")]
                rows.append([pair["a"], pair["b"], *numbers, pair.get("reason", "")])
            heads = ["prompt", "and", "cosine", "matched", "distance", ""]
            pages.append(f"how similar they are\n{format_table(heads, rows)}")
            report = {"artifacts": facts, "similarity": pairs}
        return show("\n\n".join(pages), report)


VERB = Verb("inspect", InspectPlan, InspectPlan.run, "promptprior inspect runs/prompt", positional=("folders",))
