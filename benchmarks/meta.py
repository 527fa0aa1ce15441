"""One meta-update, ours against a plain per-task loop, alternating in one run.

    python benchmarks/meta.py                        # SmolLM2, 8 tasks, 3 inner steps; real texts where there are any
    python benchmarks/meta.py --case smollm2/float32/U8/R16/L20/K3/real      # with texts of eight real tasks
    python benchmarks/meta.py --case smollm2/float32/U2/R4/L20/K2 --trials 1

The reference adapts one task after the other with the model's own forward pass and loss on concatenated embeddings and
plain autograd, as loops written with `higher` and `learn2learn` do (neither installs here); for exact MAML its graph is
unrolled. It pads the texts of a task's rows to the longest, as those do. `--lean-reference` lets it compute logits of
answers only, which no such code we read does.
"""

import sys
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from measure import Step, alternate, finish, options, peak_bytes, report_peak
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from workloads import Case as Workload
from workloads import backbone, drawn_tokens, even_tokens, has_data

from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.rules.inner import Inner, InnerSgd
from promptprior.rules.maml import Maml
from promptprior.rules.optimiser import Rate, Sgd
from promptprior.rules.reptile import Reptile
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.meta_draws import MetaBatch

ALGORITHMS = ("fomaml", "reptile", "maml")
REAL = (
    "sst2",
    "ag_news",
    "trec",
    "emotion",
    "mpqa",
    "cr",
    "snli",
    "tweet_eval_sentiment",
)  # experiments/cls_to_cls.yaml's


@dataclass(frozen=True)
class Case:
    """U tasks with R support rows per inner step and R query rows, prompts of L, K inner steps.

    Texts are "even" (32 random tokens) or "real" (those of REAL); answers are 3 random tokens.
    """

    model: str = "smollm2"
    dtype: str = "float32"
    units: int = 8
    rows: int = 16
    length: int = 20
    steps: int = 3
    text: str = "even"
    lean: bool = False

    @property
    def name(self) -> str:
        lean = "/lean" if self.lean else ""
        text = "" if self.text == "even" else f"/{self.text}"
        return f"{self.model}/{self.dtype}/U{self.units}/R{self.rows}/L{self.length}/K{self.steps}{text}{lean}"

    @classmethod
    def parse(cls, name: str) -> "Case":
        model, dtype, units, rows, length, steps, *rest = name.split("/")
        sizes = (int(n[1:]) for n in (units, rows, length, steps))
        return cls(model, dtype, *sizes, text="real" if "real" in rest else "even", lean="lean" in rest)


def usual() -> Case:
    """What is measured unless told otherwise: what this machine computes in, and real texts where there are some."""
    dtype = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    return Case(dtype=dtype, text="real" if has_data() else "even")


def tokens_of(case: Case, k: int, unit: int) -> list[Tokens]:
    """The rows of one unit in inner step k (-1: the query)."""
    some = even_tokens(case.rows, seed=1000 * (k + 1) + unit)
    if case.text == "even":
        return some
    place = case.rows * (k + 1)
    real = texts_of(REAL[unit % len(REAL)], case.rows * (case.steps + 1))[place : place + case.rows]
    return [replace(row, text=text) for row, text in zip(some, real, strict=True)]


@cache
def texts_of(task: str, count: int) -> list[tuple[int, ...]]:
    """The token ids of a task's first texts."""
    return [t.text for t in drawn_tokens(Workload("smollm2", "float32", 0, count, task))]


def meta_batch(case: Case) -> MetaBatch:
    """All units' rows as our rules take them."""

    def batch(k: int) -> Batch:
        some = [(t, u) for u in range(case.units) for t in tokens_of(case, k, u)]
        return collate([t for t, _ in some], [u for _, u in some])

    inner = tuple(batch(k) for k in range(case.steps))
    return MetaBatch(inner, batch(-1), torch.zeros(case.units, dtype=torch.long))


def start_of(case: Case) -> Params:
    """A prompt of frequent tokens."""
    ids = torch.randint(100, 5000, (case.length,), generator=torch.Generator().manual_seed(0))
    return {"prompt": backbone(case.model, case.dtype).frozen.embed(ids)[None].detach().float()}


def inner_of(case: Case) -> InnerSgd:
    return InnerSgd(1.0, backbone(case.model, case.dtype).scale)


def ours(case: Case, algorithm: str, out: dict[str, Tensor], max_tokens: int) -> Step:
    """One call of our rule, with SGD outside so that the step shows its gradient."""
    model = replace(backbone(case.model, case.dtype), max_tokens=max_tokens)
    objective = PromptObjective(model, Direct(case.length, model.width))
    outer, inner = Sgd(Rate((1.0,))), Inner(inner_of(case))
    rule = Reptile(outer, inner) if algorithm == "reptile" else Maml(outer, inner, 2 if algorithm == "maml" else 1)
    batch, start = meta_batch(case), start_of(case)

    def step() -> None:
        state, _ = rule.step(rule.init(start), batch, objective)
        out["ours"] = (start["prompt"] - state.params["prompt"])[0]

    return step


def reference(case: Case, algorithm: str, out: dict[str, Tensor]) -> Step:
    """The loop over tasks."""
    size = inner_of(case).unit
    start = start_of(case)["prompt"][0]
    tokens = [[tokens_of(case, k, u) for k in range(-1, case.steps)] for u in range(case.units)]

    def adapted(theta: Tensor, supports: list[list[Tokens]], unroll: bool) -> tuple[Tensor, Tensor]:
        p, total = theta, torch.zeros_like(theta)
        for support in supports:
            p = p if unroll else p.detach().requires_grad_()
            (g,) = torch.autograd.grad(row_loss(case, p, support), p, create_graph=unroll)
            p, total = p - size * g, total + g.detach()
        return p, total

    def step() -> None:
        gradient = torch.zeros_like(start)
        for query, *supports in tokens:
            theta = start.clone().requires_grad_()
            if algorithm == "maml":
                with sdpa_kernel(SDPBackend.MATH):
                    p, _ = adapted(theta, supports, unroll=True)
                    gradient += torch.autograd.grad(row_loss(case, p, query), theta)[0]
                continue
            p, total = adapted(theta, supports, unroll=False)
            if algorithm == "fomaml":
                p = p.detach().requires_grad_()
                total = torch.autograd.grad(row_loss(case, p, query), p)[0]
            gradient += total
        out["reference"] = gradient / case.units

    return step


def row_loss(case: Case, prompt: Tensor, rows: list[Tokens]) -> Tensor:
    """Mean loss of one task's rows: prompt, padding, text and answer (all of one size) as one sequence per row."""
    frozen = backbone(case.model, case.dtype).frozen
    ids, answers, mask = (part.to(frozen.device) for part in padded(case, rows))
    front = prompt.to(frozen.dtype).expand(len(rows), -1, -1)
    if case.lean:
        embeds = torch.cat([front, frozen.embed(ids[:, :-1])], dim=1)
        size = answers.shape[1]
        logits = frozen.model(inputs_embeds=embeds, **places(mask[:, :-1]), use_cache=False, logits_to_keep=size).logits
        return cross_entropy(logits.float().flatten(0, 1), answers.flatten())
    labels = torch.full_like(mask, -100)
    labels[:, -answers.shape[1] :] = answers
    embeds = torch.cat([front, frozen.embed(ids)], dim=1)
    return frozen.model(inputs_embeds=embeds, **places(mask), labels=labels, use_cache=False).loss


def padded(case: Case, rows: list[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
    """Left-padded ids of texts and answers, the answers, and the mask of prompt, texts and answers."""
    longest = max(len(t.text) for t in rows)
    ids = torch.tensor([(0,) * (longest - len(t.text)) + t.text + t.targets[0] for t in rows])
    answers = torch.tensor([t.targets[0] for t in rows])
    mask = torch.ones(len(rows), case.length + ids.shape[1], dtype=torch.long)
    for row, t in zip(mask, rows, strict=True):
        row[case.length : case.length + longest - len(t.text)] = 0
    return ids, answers, mask


def places(mask: Tensor) -> dict[str, Tensor]:
    """What the model must be told where there is padding: the mask, and positions that skip it."""
    if mask.all():
        return {}
    return {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def row_of(case: Case, algorithm: str, trials: int, warm: bool, max_tokens: int) -> dict[str, Any]:
    """One line of the table."""
    out: dict[str, Tensor] = {}
    mine, theirs = alternate([ours(case, algorithm, out, max_tokens), reference(case, algorithm, out)], trials, warm)
    return {
        "case": f"{algorithm}/{case.name}",
        "ours_s": mine.median,
        "reference_s": theirs.median,
        "speedup": theirs.median / mine.median,
        "ours_range": mine.spread,
        "reference_range": theirs.spread,
        "grad_rel_error": float((out["ours"] - out["reference"]).norm() / out["reference"].norm()),
    }


def memory_of(case: Case, algorithm: str, threads: int, max_tokens: int) -> dict[str, Any]:
    """What a step of ours adds to a process that holds the model, over what the reference's adds."""
    peaks = [
        peak_bytes(__file__, ["--peak", f"{side}:{algorithm}:{case.name}:{max_tokens}", "--threads", str(threads)])
        for side in ("ours", "reference")
    ]
    ours_added, reference_added = (peak - before for peak, before in peaks)
    return {"peak_memory_ratio": ours_added / reference_added}


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--case", type=Case.parse, action="append", help="smollm2/float32/U8/R16/L20/K3")
    parser.add_argument("--algorithm", choices=ALGORITHMS, action="append")
    parser.add_argument("--lean-reference", action="store_true", help="the reference computes logits of answers only")
    parser.add_argument("--max-tokens", type=int, default=1200, help="our pieces: tokens computed at once")
    parser.add_argument("--cold", action="store_true", help="no untimed calls before, where steps take minutes")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak-memory processes")
    parser.add_argument("--peak", help="measure the memory of one side in this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.peak:
        side, algorithm, name, tokens = chosen.peak.split(":")
        case, out = Case.parse(name), dict[str, Tensor]()
        step = ours(case, algorithm, out, int(tokens)) if side == "ours" else reference(case, algorithm, out)
        report_peak(step)
        return
    rows = []
    for case in (replace(case, lean=case.lean or chosen.lean_reference) for case in chosen.case or [usual()]):
        for algorithm in chosen.algorithm or ALGORITHMS:
            row = row_of(case, algorithm, chosen.trials, not chosen.cold, chosen.max_tokens)
            if not chosen.no_memory:
                row |= memory_of(case, algorithm, chosen.threads, chosen.max_tokens)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
