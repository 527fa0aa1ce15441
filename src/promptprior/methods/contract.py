"""The contract of a method, a recipe named after its paper: what it learns from sources, and where targets start.

A recipe chooses a parameterisation and a rule and hands runs to `context.train`, the one training loop. Adaptation is
the same for all (adapt.py) once they have said where it starts. docs/extending.md has an example.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import ClassVar, Literal

from promptprior.artifacts.artifact import Prior
from promptprior.artifacts.header import Header
from promptprior.config.choices import HeadName
from promptprior.config.mapping import check_bounds
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, target_option
from promptprior.methods.run_context import Episode, RunContext
from promptprior.methods.workload import Workload
from promptprior.tasks.sampling.draws import class_of
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Recipe:
    """What every recipe says of itself; `init`, and `fit` where it learns from sources, are its own.

    A control arm is a value of a recipe under another name: Bmtpt(name="bmtpt_chains", kernel="none"). `prior_of` names
    the method whose priors such an arm starts from, where it differs from that one on targets alone. `is_ensemble`:
    each copy of a prior adapts by itself, and all answer by their mean probability. `revision` is raised when a change
    of the recipe's code changes its results: cells of other revisions are not reused.
    """

    name: str = fact("")
    needs_sources: bool = fact(False, init=False)
    uses_shots: bool = fact(True, init=False)
    prior_of: str = fact("", omit_from_hash_if=lambda _: True)
    is_ensemble: bool = fact(False, omit_from_hash_if=lambda _: True)
    revision: int = fact(0, init=False, omit_from_hash_if=lambda recipe: recipe.revision == 0)
    head: HeadName = target_option(
        "verbalizer", "how states become answers: by the choices' likelihood, or a head", omit_from_hash_if_default=True
    )

    trains: ClassVar[bool] = True  # off where adaptation learns nothing
    adapts_one_by_one: ClassVar[bool] = False  # on where episodes cannot be copies of one problem
    needs_tokens: ClassVar[bool] = False  # on where it reads or mixes embeddings of prompts, which a prefix has not
    read_prompts: ClassVar[Literal["none", "one", "each_source"]] = "one"  # texts read none, one, or one of each source

    def __post_init__(self) -> None:
        check_bounds(self, "--options.")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Where each episode starts, given its prior (none for methods without sources); only `shots.train` teach."""
        raise NotImplementedError

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Learn from the source tasks. Raises SpecError for a method that learns nothing from them."""
        raise SpecError(f"method {self.name!r} has no prior to fit; use it with adapt or compare")

    def source_recipe(self) -> "Recipe":
        """The recipe that fits this one's priors, with target options at their defaults; equal ones share a prior."""
        defaults = {f.name: f.default for f in fields(self) if f.metadata.get("target") and f.default is not MISSING}
        return replace(self, **defaults, name=self.prior_of or self.name, prior_of="", is_ensemble=False)

    def starts_from(self, prior: Header) -> bool:
        """Whether it can start from a prior of this header: its own, or one that fits its source stage."""
        return prior.method == self.name or prior.settings.get("prior_of") == self.source_recipe().name

    @property
    def learns_from_shots(self) -> bool:
        """Whether shots teach it anything: its parameters or its head."""
        return self.uses_shots or self.head != "verbalizer"

    def serves(self, task: Task) -> str | None:
        """Why this method cannot answer a task, in words; None where it can. A head needs classes to tell apart, and
        prompts that answer together choices to average over."""
        if self.is_ensemble and not task.is_choice:
            return "its prompts answer together, and free text has no choices to average over"
        if self.head == "verbalizer" or class_of(task, task.split("train")[0]) != "all":
            return None
        what = "its choices differ by example" if task.is_choice else "its answers are free text"
        return f"{what}, so a head has no classes to tell apart (--options.head)"

    @property
    def trains_targets_jointly(self) -> bool:
        """Whether a target's result depends on which other targets adapt along with it."""
        return getattr(self, "joint_steps", 0) > 0

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """What work it is to learn from so many sources, and to adapt; on targets `sources` has no say."""
        before = int(getattr(self, "joint_steps", 0)) + int(getattr(self, "probe_steps", 0))
        return Workload(settings.source.batch_size, steps_before=before)

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


Method = Recipe  # what fit, adapt and compare take
