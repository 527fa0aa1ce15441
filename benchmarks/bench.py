"""A guard against slowness: short cases of everything that has to be fast, of this tree and of another commit, in turn.

    make bench                                        # this tree alone: seconds of each case
    make bench AGAINST=HEAD~5                         # both, alternating; fails where this one is slower beyond noise
    python benchmarks/bench.py --against 1c2d3e4 --rounds 5 --cases step,rank

Both trees are timed by this file, each in processes of its own that start in turn (A B B A ...), one thread each, by
processor time. A case is slower beyond noise where even its fastest round is slower than the other tree's slowest by
more than TOLERANCE; medians are shown. Cases use what has been public since 0.1.0.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).parents[1]
TOLERANCE = 0.05  # of the other tree's time
REPEATS = {"step": 2, "small_step": 6, "rank": 2, "many_prompts": 3, "generate": 2, "adapt_tiny": 1, "draw": 3}


def cases() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import torch

    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]
    from workloads import even_tokens

    import promptprior as pp
    from promptprior.tasks.sampling.batch import collate
    from tests.backbone.tiny import tiny
    from tests.world import choice_task, early

    torch.set_num_threads(1)
    base = pp.load("smollm2", dtype="float32", check=False)
    small = tiny("llama", torch.float32)
    target = choice_task("target", early)
    batches = {rows: collate(even_tokens(rows)) for rows in (8, 16)}
    choices, many = collate(even_tokens(16, 12, choices=3)), collate(even_tokens(16), copies=list(range(16)))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(16, 100, base.width, generator=generator) * base.scale
    episodes = [pp.make_episode(target, 4, seed) for seed in range(8)]
    settings = pp.Settings(length=4, target=pp.Training(steps=20, batch_size=4, learning_rates=(0.3,)))
    lines = [(i, tuple(range(2, 2 + i % 40)), (3, 4)) for i in range(512)]

    def step(rows: int, length: int) -> None:
        prompt = prompts[:1, :length].clone().requires_grad_()
        base.losses(prompt, batches[rows]).sum().backward()

    def step_of_many() -> None:
        each = prompts[:, :20].clone().requires_grad_()
        base.losses(each, many).sum().backward()

    def draw() -> None:
        from promptprior.tasks.sampling.batch import Tokens

        for _ in range(20):
            collate([Tokens(text, (answer,)) for _, text, answer in lines if text])

    @torch.no_grad()
    def rank() -> None:
        base.losses(prompts[:1, :20], choices)

    @torch.no_grad()
    def generate() -> None:
        base.generate(prompts[:1, :20], batches[8], 8)

    return {
        "step": lambda: step(16, 100),
        "small_step": lambda: step(8, 20),
        "rank": rank,
        "many_prompts": step_of_many,
        "generate": generate,
        "adapt_tiny": lambda: pp.adapt(pp.make_method("prompt_tuning"), episodes, small, None, settings),
        "draw": draw,
    }


def measure(names: list[str]) -> dict[str, float]:
    """Processor seconds of one call of each case, after an untimed one."""
    found = {}
    for name, run in cases().items():
        if name not in names:
            continue
        run()
        start = time.process_time()
        for _ in range(REPEATS[name]):
            run()
        found[name] = (time.process_time() - start) / REPEATS[name]
    return found


def measured_in(tree: Path, names: list[str]) -> dict[str, float]:
    """`measure` with the sources of a tree, in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", "--cases", ",".join(names)]
    out = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{' '.join(command)} failed in {tree}:\n{out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit to compare this tree with")
    parser.add_argument("--cases", default=",".join(REPEATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", action="store_true", help="(internal) time the cases in this process")
    chosen = parser.parse_args()
    names = chosen.cases.split(",")
    if unknown := [name for name in names if name not in REPEATS]:
        parser.error(f"--cases {', '.join(unknown)}: expected some of {', '.join(REPEATS)}")
    if chosen.measure:
        return print(json.dumps(measure(names)))
    with tempfile.TemporaryDirectory() as folder:
        trees = {"this tree": REPOSITORY}
        if chosen.against:
            other = Path(folder) / "other"
            command = ["git", "worktree", "add", "--quiet", "--detach", str(other), chosen.against]
            subprocess.run(command, cwd=REPOSITORY, check=True)
            trees[chosen.against] = other
        rounds: dict[str, list[dict[str, float]]] = {label: [] for label in trees}
        try:
            for turn in range(chosen.rounds):
                for label in list(trees) if turn % 2 == 0 else list(trees)[::-1]:
                    rounds[label].append(measured_in(trees[label], names))
                    print(f"round {turn + 1} of {chosen.rounds}: {label}", file=sys.stderr, flush=True)
        finally:
            if chosen.against:
                subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=REPOSITORY, check=True)
    slower = []
    print("| case | " + " | ".join(f"{label}, s (range)" for label in trees) + " | ratio |")
    print("|---" * (len(trees) + 2) + "|")
    rows = []
    for name in names:
        seconds = {label: [each[name] for each in own] for label, own in rounds.items()}
        shown = [f"{median(own):.3g} ({min(own):.3g}-{max(own):.3g})" for own in seconds.values()]
        row: dict[str, object] = {"case": name, **seconds}
        ratio = ""
        if chosen.against:
            mine, other_seconds = seconds["this tree"], seconds[chosen.against]
            row["ratio"] = median(mine) / median(other_seconds)
            ratio = f"{row['ratio']:.2f}"
            if min(mine) > max(other_seconds) * (1 + TOLERANCE):
                slower.append(name)
        rows.append(row)
        print(f"| {name} | " + " | ".join(shown) + f" | {ratio} |")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if slower:
        sys.exit(f"slower than {chosen.against} beyond noise: {', '.join(slower)}")
    return None


if __name__ == "__main__":
    main()
