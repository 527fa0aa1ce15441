"""The best answer that k shots can buy: every reference, and auto, on targets whose test rows chose nothing.

    python benchmarks/best_answer.py read   --data DATA --cache CACHE            read all texts once (minutes a target)
    python benchmarks/best_answer.py answer --data DATA --cache CACHE --json FILE     fit heads, choose, score (seconds)
    python benchmarks/best_answer.py train  --data DATA --json FILE --methods lora,prompt_tuning   (minutes a cell)
    python benchmarks/best_answer.py join   --data DATA --cache CACHE --json FILE     auto with LoRA as two candidates
    python benchmarks/best_answer.py cost   --data DATA --targets rotten_tomatoes --methods ...   (a process a method)
    python benchmarks/best_answer.py table  --json FILE...

`read` keeps, for each target, states and likelihoods of every shot of every draw and of the test rows: a text is read
once, with nothing in front and behind an untrained prompt. `answer` then does what `promptprior adapt --method auto`
does: heads answer out of fold, are fitted to all 2k shots, and held-out answers choose among them or blend them
(`auto_quick`: what `auto` gives while its seconds allow nothing that trains; `auto_single`, `auto_blend`: its two
sides). `join` adds LoRA as `train` has kept its answers to dev shots and test rows: `auto` as it is by default. For
that LoRA runs twice: `lora` learns from the train shots and `lora:turned` from the dev shots, judged by the rest; what
either run trained answers once more by a linear head, `lora_linear`. FILE has a JSON line for each target, k, draw and
method, and is resumed: lines that are there are not made again. Test rows are balanced (the first of each class). Draws
are the library's.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measure import report_peak

from promptprior.adapt import adapt, make_episode
from promptprior.adaptation.both_ways import turned
from promptprior.adaptation.choose import Mix, held_out_choice, held_out_of
from promptprior.adaptation.folds import fold_episodes
from promptprior.adaptation.held_out import HeldOut, held_out_answers, held_out_predictions
from promptprior.adaptation.refit import with_head
from promptprior.backbone import Backbone, load, ranking_tokens
from promptprior.config.training import Settings, Training
from promptprior.evaluate import TEXTS_AT_ONCE, PromptRequest, answer_requests
from promptprior.files import read_tensors, write_tensors
from promptprior.heads.head import Head, Readout
from promptprior.heads.linear import Linear
from promptprior.heads.named_heads import NAMED_HEADS
from promptprior.methods import Episode, make_method
from promptprior.methods.target_only.auto import CANDIDATES
from promptprior.parameterisations.initial import start_prompt
from promptprior.report.statistics import interval
from promptprior.tasks import load_task
from promptprior.tasks.metrics import score
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Example, Task

# mpqa and sst2 chose the pull and the rule of the blend (docs/log.md); of these, no test row chose anything
TARGETS = ("sms_spam", "rotten_tomatoes", "tweet_eval_offensive", "tweet_eval_hate", "tweet_eval_sentiment", "ag_news",
           "emotion", "limit_motion")  # fmt: skip
SHOTS, SEEDS, TEST_ROWS, FOLDS, LENGTH = (8, 16), (13, 21, 42, 87, 100), 240, 4, 20
TRAINED, TURN = ("lora", "lora_linear"), ":turned"  # candidates that train; a run that learns from the dev shots
QUICK = tuple(name for name in CANDIDATES if name not in TRAINED)
AUTOS: dict[str, dict[str, object]] = {"auto_quick": {"candidates": QUICK}, "auto_60": {"seconds": 60.0}}  # of `cost`
HEADS: dict[str, tuple[str, Head | None]] = {  # method: what stands in front, and the head; None: the likelihood
    "zero_shot": ("none", None),
    "constant": ("none", NAMED_HEADS["constant"]),
    "zero_shot_batch": ("none", NAMED_HEADS["batch"]),
    "zero_shot_calibrated": ("none", NAMED_HEADS["calibrated"]),
    "knn": ("none", NAMED_HEADS["nearest"]),
    "linear_probe": ("none", NAMED_HEADS["linear"]),
    "probe_mixture": ("none", NAMED_HEADS["mixture"]),
    "prompted_linear": ("prompt", NAMED_HEADS["linear"]),
    "prompted_mixture": ("prompt", NAMED_HEADS["mixture"]),
}


def balanced_rows(task: Task, rows: int = TEST_ROWS) -> tuple[Example, ...]:
    """The first rows of each class, as many of each."""
    share, left = rows // len(task.label_names), dict.fromkeys(range(len(task.label_names)), 0)
    chosen = []
    for example in task.split("test"):
        if example.label is not None and left[example.label] < share:
            left[example.label] += 1
            chosen.append(example)
    return tuple(chosen)


def with_test(task: Task) -> Task:
    """The task with balanced test rows alone."""
    return replace(task, examples={**task.examples, "test": balanced_rows(task)})


def episodes_of(task: Task) -> list[Episode]:
    """Every k and draw."""
    return [make_episode(task, k, seed) for k in SHOTS for seed in SEEDS]


@torch.no_grad()
def read(backbone: Backbone, task: Task, cache: Path) -> None:
    """Keep the readout of all shots and test rows of a task: nll [n, K] and states [n, S, D], by front and example."""
    file = cache / f"{task.name}.safetensors"
    if file.exists():
        return
    shots = (e for episode in episodes_of(task) for e in (*episode.shots.train, *episode.shots.dev))
    examples = list({e.id: e for e in (*shots, *task.split("test"))}.values())
    examples.sort(key=lambda e: len(e.text))
    tokens = ranking_tokens(backbone, task, examples)
    vocabulary = start_prompt(backbone, "vocabulary", LENGTH, generator("behind", task.name), "", task.label_names)
    kept: dict[str, torch.Tensor] = {}
    for front, prompt in {"none": torch.zeros(1, 0, backbone.width), "prompt": vocabulary[None]}.items():
        start, tokens_before = time.monotonic(), backbone.meter.tokens
        nll, states = [], []
        for at in range(0, len(tokens), TEXTS_AT_ONCE):
            batch = collate(tokens[at : at + TEXTS_AT_ONCE])
            states.append(backbone.text_states(prompt, batch, Linear().sites(backbone.layers)))
            nll.append((backbone.losses(prompt, batch).double() * batch.target_lengths).view(batch.texts, -1))
        kept |= {f"{front}.nll": torch.cat(nll), f"{front}.states": torch.cat(states).half()}
        seconds, read_tokens = time.monotonic() - start, backbone.meter.tokens - tokens_before
        print(task.name, front, len(tokens), "texts", f"{seconds:.0f} s", read_tokens, "tokens", flush=True)
    write_tensors(file, kept)
    (cache / f"{task.name}.json").write_text(json.dumps([e.id for e in examples]))


class Readouts:
    """What was read of a task, by example."""

    def __init__(self, task: Task, cache: Path) -> None:
        self.tensors = read_tensors(cache / f"{task.name}.safetensors")
        names = json.loads((cache / f"{task.name}.json").read_text())
        self.place = {name: place for place, name in enumerate(names)}

    def of(self, front: str, examples: Sequence[Example], sites: Sequence[int] | None = None) -> Readout:
        """The readout of some examples, at some of the sites."""
        rows = [self.place[e.id] for e in examples]
        states = self.tensors[f"{front}.states"][rows].double()
        return Readout(self.tensors[f"{front}.nll"][rows], states if sites is None else states[:, list(sites)])

    def answer(self, method: str, taught: Sequence[Example], asked: Sequence[Example]) -> list[HeldOut]:
        """What a method that learned from some examples answers to others."""
        front, head = HEADS[method]
        if head is None:
            nll = self.of(front, asked).nll
        else:
            taught = sorted(taught, key=lambda e: e.id)
            params = head.fit(self.of(front, taught), torch.tensor([e.label for e in taught]), None)
            nll = head.choice_nll(params, self.of(front, asked, head.used(params)))
        return [HeldOut(e, tuple(row), (1,) * len(row)) for e, row in zip(asked, nll.tolist(), strict=True)]


def scores_of(task: Task, answers: Sequence[HeldOut]) -> dict[str, float]:
    """Accuracy (rows are balanced) and the mean NLL of the right answers in nats."""
    metrics = score(task, [a.example for a in answers], held_out_predictions(task, answers))
    return {"score": metrics[task.metrics[0]], "nll": mean(a.right_nll for a in answers)}


def answer(task: Task, cache: Path, file: Path) -> None:
    """A line for every method of HEADS and for auto without what trains, for every k and draw of a task."""
    readouts, done = Readouts(task, cache), cells_of([file])
    for episode in episodes_of(task):
        if (task.name, episode.k, episode.seed, "auto_quick") in done:
            continue
        held, on_test = dict[str, list[HeldOut]](), dict[str, list[HeldOut]]()
        for method in HEADS:
            start = time.monotonic()
            held[method], on_test[method] = answers_of(readouts, episode, method)
            own = {f"held_{name}": value for name, value in scores_of(task, held[method]).items()}
            write(file, episode, method, {**scores_of(task, on_test[method]), **own}, time.monotonic() - start)
        start = time.monotonic()
        single, blend, chosen, about = choose(task, QUICK, held, {m: [own] for m, own in on_test.items()})
        write(file, episode, "auto_single", scores_of(task, single), 0.0)
        write(file, episode, "auto_blend", scores_of(task, blend), 0.0)
        write(file, episode, "auto_quick", {**scores_of(task, chosen), **about}, time.monotonic() - start)


def answers_of(readouts: "Readouts", episode: Episode, method: str) -> tuple[list[HeldOut], list[HeldOut]]:
    """What a method without training answers out of fold to all shots, and, taught by all of them, to the test rows."""
    parts, shots = fold_episodes(episode, FOLDS), (*episode.shots.train, *episode.shots.dev)
    given = [a for p in parts for a in readouts.answer(method, p.shots.train, p.shots.dev)]
    return sorted(given, key=lambda a: a.example.id), readouts.answer(method, shots, episode.task.split("test"))


def choose(
    task: Task, names: Sequence[str], held: dict[str, list[HeldOut]], on_test: dict[str, list[list[HeldOut]]]
) -> tuple[list[HeldOut], list[HeldOut], list[HeldOut], dict[str, Any]]:
    """What the best single candidate, the blend and `auto` answer to the test rows, and what was chosen; from what each
    of a candidate's runs answers, which share its weight."""
    choice = held_out_choice(task, [held[m] for m in names], [m not in HEADS for m in names])
    best, weights = names[choice.best], zip(choice.blend.members, choice.blend.weights, strict=True)
    counts, by_row = [len(on_test[m]) for m in names], [*zip(*(own for m in names for own in on_test[m]), strict=True)]
    single, blend = (
        [mix.over_runs(counts).answer(given) for given in by_row]
        for mix in (Mix((choice.best,), (1.0,), (1.0,)), choice.blend)
    )
    about = {"chosen": "blend" if choice.takes_blend else best, "weights": {names[m]: w for m, w in weights}}
    return single, blend, blend if choice.takes_blend else single, about


def join(task: Task, cache: Path, file: Path) -> None:
    """A line for auto with LoRA, for every draw of which both runs of LoRA are there; with its linear head, too, where
    that is there."""
    readouts, done, test = Readouts(task, cache), cells_of([file]), task.split("test")
    kept = [json.loads(line) for line in file.with_suffix(".answers").read_text().splitlines()]
    of_cell = {(x["k"], x["seed"], x["method"]): x for x in kept if x["target"] == task.name}
    for episode in episodes_of(task):
        key = (episode.k, episode.seed)
        runs = {
            name: [of_cell[*key, run] for run in (name, name + TURN)]
            for name in TRAINED
            if {(*key, name), (*key, name + TURN)} <= {*of_cell}
        }
        if "lora" not in runs or done.get((task.name, *key, "auto"), {}).get("trained") == [*runs]:
            continue
        start, shots = time.monotonic(), (*episode.shots.train, *episode.shots.dev)
        given = {method: answers_of(readouts, episode, method) for method in QUICK}
        held = {method: own for method, (own, _) in given.items()}
        on_test = {method: [own] for method, (_, own) in given.items()}
        examples = {e.id: e for e in (*shots, *test)}
        for name, own in runs.items():
            dev, on_test[name] = (
                [[HeldOut(examples[x], tuple(nll), (1,) * len(nll)) for x, nll in run[side]] for run in own]
                for side in ("dev", "test")
            )
            held[name] = sorted((a for of_run in dev for a in of_run), key=lambda a: a.example.id)
        *_, chosen, about = choose(task, (*QUICK, *runs), held, on_test)
        about |= {"trained": [*runs]}
        write(file, episode, "auto", {**scores_of(task, chosen), **about}, time.monotonic() - start)


def train(
    backbone: Backbone, task: Task, file: Path, methods: Sequence[str], draws: Sequence[tuple[int, int]], steps: int
) -> None:
    """A line for every method (dev chooses the step where it descends), for every draw (k, seed) of a task.

    Beside FILE, FILE.answers has what each answered to the dev shots and to the test rows, which `join` blends. What
    `lora` trains has a second line, in which a linear head answers (adaptation/fit_head.py: on_dev_folds).
    """
    settings = Settings(length=LENGTH, target=Training(steps=steps, batch_size=8))
    for method in methods:
        done = cells_of([file])
        asked = [e for e in episodes_of(task) if (e.k, e.seed) in draws]
        name = method.removesuffix(TURN)
        if turn := method[len(name) :]:
            asked = [other for episode in asked if (other := turned(episode)) is not None]
        labels = [own + turn for own in TRAINED] if name == "lora" else [method]
        episodes = [e for e in asked if any((task.name, e.k, e.seed, label) not in done for label in labels)]
        for k in {e.k for e in episodes}:
            together = [e for e in episodes if e.k == k]  # as copies in one batch
            start = time.monotonic()
            alone = adapt(make_method(name), together, backbone, None, settings)
            seconds = (time.monotonic() - start) / len(together)
            adapted = [(method, one) for one in alone]
            for label in labels[1:]:
                headed = make_method(label.removesuffix(TURN))
                adapted += [(label, with_head(headed, backbone, one)) for one in alone]
            requests = [PromptRequest(one.prompt, task, task.split("test")) for _, one in adapted]
            answers = [held_out_answers(a.eval_set, a.nll) for a in answer_requests(backbone, requests)]
            for (label, one), test in zip(adapted, answers, strict=True):
                key = {"target": task.name, "k": k, "seed": one.episode.seed, "method": label}
                sides = (("dev", held_out_of(backbone, one)), ("test", test))
                given = {side: [(a.example.id, a.target_nll) for a in own] for side, own in sides}
                with file.with_suffix(".answers").open("a") as out:
                    out.write(json.dumps({**key, **given}) + "\n")
                row = {**scores_of(task, test), "step": one.best_step, "dev": one.dev_score, "steps": steps}
                write(file, one.episode, label, row, seconds)


def cost(name: str, data: Path, methods: Sequence[str], steps: int, dtype: str) -> None:
    """Seconds and peak memory of adapting each method to one draw (k = 16) as `auto` does, each in a fresh process."""
    print(f"\n{name}, k = 16, {torch.get_num_threads()} threads, {steps} steps where it descends\n")
    print("| method | seconds | peak memory | of it the process before adapting |\n|---|---:|---:|---:|")
    for method in methods:
        words = ["one", "--data", str(data), "--targets", name, "--methods", method, "--dtype", dtype]
        command = [sys.executable, __file__, *words, "--steps", str(steps)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, peak, before = re.findall(r"seconds ([\d.]+)\npeak (\d+) before (\d+)", told)[-1]
        print(f"| {method} | {seconds} | {int(peak) / 2**20:.0f} MB | {int(before) / 2**20:.0f} MB |", flush=True)


def adapt_one(backbone: Backbone, task: Task, method: str, steps: int) -> None:
    """One draw, with folds where the method chooses or fits a head, as `promptprior adapt` does."""
    uses_folds = method in HEADS  # auto has folds of its own
    settings = Settings(length=LENGTH, target=Training(steps=steps, batch_size=8), folds=FOLDS if uses_folds else 0)
    start = time.monotonic()
    made = make_method("auto", AUTOS[method]) if method in AUTOS else make_method(method)
    adapt(made, [make_episode(task, 16, SEEDS[0])], backbone, None, settings)
    print(f"seconds {time.monotonic() - start:.1f}")


def write(file: Path, episode: Episode, method: str, values: dict[str, Any], seconds: float) -> None:
    line = {"target": episode.task.name, "k": episode.k, "seed": episode.seed, "method": method, **values}
    with file.open("a") as out:
        out.write(json.dumps({**line, "seconds": round(seconds, 2)}) + "\n")
    print(line, flush=True)


def cells_of(files: Sequence[Path]) -> dict[tuple[str, int, int, str], dict[str, Any]]:
    """All lines by target, k, draw and method."""
    lines = [json.loads(x) for file in files if file.exists() for x in file.read_text().splitlines()]
    return {(x["target"], x["k"], x["seed"], x["method"]): x for x in lines}


def table(files: Sequence[Path]) -> None:
    """Mean accuracy by method and target, and auto against each method, paired by draw."""
    cells = cells_of(files)
    for k in SHOTS:
        if len({tuple(x.get("trained", ())) for key, x in cells.items() if key[1::2] == (k, "auto")}) > 1:
            sys.exit(f"auto at k = {k} has other candidates in some draws than in others: train the rest, and join")
        methods = list(dict.fromkeys(m for _, own, _, m in cells if own == k and not m.endswith(TURN)))
        if not methods:
            continue
        targets = [t for t in TARGETS if any(x[:2] == (t, k) for x in cells)]
        front = "auto" if "auto" in methods else "auto_quick"
        print(f"\nk = {k}: mean score over draws\n")
        print("| method | draws | " + " | ".join(targets) + f" | mean | NLL | {front} ahead by (95 %, by draw) |")
        print("|---|" + "---:|" * (len(targets) + 4))
        for method in methods:
            own = {key: x for key, x in cells.items() if key[1] == k and key[3] == method}
            by_target = [[x["score"] for key, x in own.items() if key[0] == t] for t in targets]
            shown = [f"{mean(v):.3f}" if v else "" for v in by_target]
            by_draw = []
            for seed in SEEDS:
                pairs = [
                    cells[key[0], k, seed, front]["score"] - x["score"]
                    for key, x in own.items()
                    if key[2] == seed and (key[0], k, seed, front) in cells
                ]
                by_draw += [mean(pairs)] if pairs else []
            ahead = ""
            if method != front and by_draw:
                gap = interval(by_draw)  # Student's t
                ends = "one draw" if gap.low is None or gap.high is None else f"{gap.low:+.3f} to {gap.high:+.3f}"
                ahead = f"{gap.estimate:+.3f} ({ends})"
            total = mean(mean(v) for v in by_target if v)
            nll = mean(x["nll"] for x in own.values())
            draws = str(len({key[2] for key in own}))
            print(f"| {method} | {draws} | " + " | ".join(shown) + f" | {total:.3f} | {nll:.3f} | {ahead} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("read", "answer", "train", "join", "cost", "one", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path, nargs="+")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--methods", default="lora,prompt_tuning")
    parser.add_argument("--k", default="16")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--dtype", default="auto", help="as `promptprior adapt`: bfloat16 where the CPU multiplies it")
    args = parser.parse_args()
    if args.stage == "table":
        return table(args.json)
    if args.stage == "cost":
        return cost(args.targets, args.data, args.methods.split(","), args.steps, args.dtype)
    backbone = None if args.stage in ("answer", "join") else load(args.backbone, dtype=args.dtype)
    for name in args.targets.split(","):
        task = with_test(load_task(name, args.data))
        if args.stage == "read":
            args.cache.mkdir(parents=True, exist_ok=True)
            read(backbone, task, args.cache)
        elif args.stage == "answer":
            answer(task, args.cache, args.json[0])
        elif args.stage == "join":
            join(task, args.cache, args.json[0])
        elif args.stage == "one":
            report_peak(partial(adapt_one, backbone, task, args.methods, args.steps))
        else:
            draws = [(int(k), int(seed)) for k in args.k.split(",") for seed in args.seeds.split(",")]
            train(backbone, task, args.json[0], args.methods.split(","), draws, args.steps)
    return None


if __name__ == "__main__":
    sys.exit(main())
