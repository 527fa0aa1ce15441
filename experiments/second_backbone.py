"""A small encoder-decoder of our own, so that no study rests on one model: text, tokenizer, training, a folder to load.

    python experiments/second_backbone.py --minutes 120 --output runs/second_backbone

The text is what installed packages say of themselves: docstrings of Python's standard library and of the packages in
PACKAGES, the help topics of pydoc, and the descriptions that packages ship. sources.json in the output lists each with
its version, licence and amount. The model learns span corruption (Raffel et al. 2020) and, in every fourth example, to
answer after a field name: five formats made from the text alone. They use no data of any task, and none of the
built-in suite's answer fields.

Stopped and started again it goes on where it was; more minutes train a finished model further. One core by default.
"""

import argparse
import ast
import hashlib
import json
import math
import random
import re
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import promptprior
from promptprior.files import read_json, read_tensors, read_text, replace_folder, write_json, write_tensors, write_text

PACKAGES = (
    "numpy",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
    "datasets",
    "peft",
    "pandas",
    "jinja2",
    "nltk",
    "textblob",
)
SENTINELS = 64
NOISE, SPAN = 0.15, 3.0  # share of tokens taken out, mean length of what is taken out at once
FORMATTED = 0.25  # share of examples in a format
HELD_OUT = 100  # one paragraph in this many is never trained on


# Text


def documents(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a source's name and one of its texts."""
    standard = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(standard.rglob("*.py")):
        if "site-packages" not in path.parts and "test" not in path.parts:
            yield from (("python", text) for text in docstrings(path))
    for name in packages:
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                yield from ((name, text) for text in docstrings(path))
    for distribution in sorted(distributions(), key=lambda d: d.name.lower()):
        yield f"description of {distribution.name}", distribution.metadata.get_payload() or ""  # type: ignore[attr-defined]


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file, and the long strings of pydoc's topics; none of a file that does not parse."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif path.name == "topics.py" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of prose, each as one line: no doctests, tables, signatures or markup."""
    for block in re.split(r"\n\s*\n", text):
        line = " ".join(block.split())
        letters = sum(c.isalpha() or c in " ,.'" for c in line)
        if len(line) >= 60 and ">>>" not in line and "```" not in line and letters >= 0.9 * len(line):
            yield re.sub(r"[`*]+", "", line)


def gather(packages: Sequence[str], most: float, folder: Path) -> None:
    """Write text.txt, a paragraph a line and none twice, and sources.json."""
    lines, amounts, seen = list[str](), dict[str, int](), set[bytes]()
    for source, text in documents(packages):
        for line in paragraphs(text):
            key = hashlib.blake2b(line.encode(), digest_size=8).digest()
            if key not in seen:
                seen.add(key)
                lines.append(line)
                amounts[source] = amounts.get(source, 0) + len(line)
        if sum(amounts.values()) >= most * 1e6:
            break
    write_json(folder / "sources.json", {name: {**terms(name), "characters": n} for name, n in amounts.items()})
    write_text(folder / "text.txt", "\n".join(lines))


def terms(source: str) -> dict[str, str]:
    """Version and licence of a source, as its package states them."""
    if source == "python":
        return {"version": ".".join(sysconfig.get_python_version().split(".")), "licence": "PSF-2.0"}
    name = {"sklearn": "scikit-learn"}.get(source, source.removeprefix("description of "))
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return {"version": "unknown", "licence": "unknown"}
    classifiers = [c.split(" :: ")[-1] for c in said.get_all("Classifier") or () if c.startswith("License")]
    licence = (
        said.get("License-Expression") or ", ".join(classifiers) or (said.get("License") or "unknown").split("\n")[0]
    )
    return {"version": said["Version"], "licence": licence}


def train_tokenizer(lines: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with T5's sentinels, ending every text."""
    special = ["<pad>", "</s>", *(f"<extra_id_{i}>" for i in range(SENTINELS))]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<pad>", extra_special_tokens=special[2:]
    )


# Examples


@dataclass(frozen=True)
class Text:
    """Paragraphs and the tokenizer that reads them."""

    lines: Sequence[str]
    tokenizer: PreTrainedTokenizerFast
    tokens: int

    def example(self, rng: random.Random) -> tuple[list[int], list[int]]:
        """Input and target ids: a corrupted stretch of text, or one of the formats."""
        at = rng.randrange(len(self.lines))
        if rng.random() < FORMATTED:
            given, answer = rng.choice(FORMATS)(shortened(self.lines[at]), shortened(rng.choice(self.lines)), rng)
            return self.tokenizer(given).input_ids, self.tokenizer(answer).input_ids
        stretch = self.tokenizer(" ".join(self.lines[at : at + 4]), add_special_tokens=False).input_ids[: self.tokens]
        return corrupted(stretch, self.tokenizer.convert_tokens_to_ids("<extra_id_0>"), rng)

    def batch(self, size: int, seed: str) -> dict[str, torch.Tensor]:
        """A padded batch that depends on its seed alone, so that a resumed run sees the same."""
        rng = random.Random(seed)
        inputs, targets = zip(*(self.example(rng) for _ in range(size)), strict=True)
        ids, labels = padded(inputs, 0), padded(targets, -100)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def corrupted(ids: Sequence[int], sentinel: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Span corruption: stretches are replaced by sentinels, and the target says what stood there."""
    noise = min(max(1, round(NOISE * len(ids))), len(ids) - 1)
    spans = min(max(1, round(noise / SPAN)), noise, len(ids) - noise, SENTINELS)
    given, answer, at = list[int](), list[int](), 0
    for i, (keep, drop) in enumerate(zip(parts(len(ids) - noise, spans, rng), parts(noise, spans, rng), strict=True)):
        given += [*ids[at : at + keep], sentinel + i]
        answer += [sentinel + i, *ids[at + keep : at + keep + drop]]
        at += keep + drop
    return [*given, 1], [*answer, 1]


def parts(total: int, count: int, rng: random.Random) -> list[int]:
    """`total` cut at random into `count` parts of at least one."""
    cuts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [b - a for a, b in pairwise(cuts)]


def padded(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Rows as a rectangle."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def words_of(line: str) -> list[str]:
    """Plain words of four letters or more."""
    return re.findall(r"\b[A-Za-z]{4,}\b", line) or ["nothing"]


def shortened(line: str) -> str:
    """The first forty words."""
    return " ".join(line.split()[:40])


def halves(line: str) -> tuple[str, str]:
    """A line cut in two between words."""
    words = line.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def occurs(line: str, other: str, rng: random.Random) -> tuple[str, str]:
    """Whether a word occurs in a sentence."""
    word = rng.choice(words_of(rng.choice((line, other))))
    return f"Sentence: {line}\nWord: {word}\nOccurs:", "yes" if word in line else "no"


def follows(line: str, other: str, rng: random.Random) -> tuple[str, str]:
    """Whether the second half belongs to the first."""
    belongs = rng.random() < 0.5
    rest = halves(line if belongs else other)[1]
    return f"First: {halves(line)[0]}\nThen: {rest}\nFits:", "yes" if belongs else "no"


def ordered(line: str, _other: str, rng: random.Random) -> tuple[str, str]:
    """Whether two halves stand in their order."""
    swapped = rng.random() < 0.5
    first, second = reversed(halves(line)) if swapped else halves(line)
    return f"One: {first}\nTwo: {second}\nOrder:", "swapped" if swapped else "right"


def missing(line: str, _other: str, rng: random.Random) -> tuple[str, str]:
    """The word that was taken out."""
    word = rng.choice(words_of(line))
    return f"Text: {line.replace(word, '_', 1)}\nMissing:", word


def continued(line: str, _other: str, rng: random.Random) -> tuple[str, str]:
    """The next three words."""
    words = line.split()
    cut = rng.randrange(len(words) // 2, len(words))
    return f"Text: {' '.join(words[:cut])}\nNext:", " ".join(words[cut : cut + 3])


FORMATS = (occurs, follows, ordered, missing, continued)


# Training


@dataclass
class Run:
    """A model in training: what a checkpoint holds."""

    model: T5ForConditionalGeneration
    optimiser: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0


def model_config(args: argparse.Namespace, vocabulary: int) -> T5Config:
    """T5 1.1 in small; about eight million parameters by default."""
    return T5Config(
        vocab_size=vocabulary, d_model=args.width, d_ff=2 * args.width, d_kv=32, num_heads=args.width // 32,
        num_layers=args.layers, feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip


def rate(share: float, step: int, peak: float) -> float:
    """Learning rate: 100 steps up, level, and down to a tenth in the last fifth of the time."""
    down = 1.0 if share < 0.8 else 10 ** -min(1.0, (share - 0.8) / 0.2)
    return peak * min(1.0, (step + 1) / 100) * down


def train(run: Run, text: Text, held_out: Text, args: argparse.Namespace, folder: Path) -> None:
    """Steps until the minutes are spent; a checkpoint every `--save` seconds."""
    budget, saved, began = 60 * args.minutes, run.seconds, time.monotonic() - run.seconds
    while run.seconds < budget:
        for group in run.optimiser.param_groups:
            group["lr"] = rate(run.seconds / budget, run.step, args.rate)
        loss = run.model(**text.batch(args.batch, f"{args.seed}/{run.step}")).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimiser.step()
        run.optimiser.zero_grad()
        run.step, run.seconds = run.step + 1, time.monotonic() - began
        if run.step % 20 == 0:
            print(f"step {run.step}, {run.seconds / 60:.1f} of {args.minutes:g} minutes, loss {loss:.3f}", flush=True)
        if run.seconds - saved > args.save or run.seconds >= budget:
            saved = run.seconds
            save(run, folder)
            print(f"step {run.step}, held-out loss {measured(run, held_out, args.batch):.3f}", flush=True)


@torch.no_grad()
def measured(run: Run, held_out: Text, size: int) -> float:
    """Mean loss of four batches of paragraphs that are never trained on."""
    losses = [float(run.model(**held_out.batch(size, f"held out/{i}")).loss) for i in range(4)]
    return sum(losses) / len(losses)


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint, whole or not at all."""

    def write(there: Path) -> None:
        run.model.save_pretrained(there)
        state = run.optimiser.state_dict()["state"]
        write_tensors(there / "optimiser.safetensors", {f"{i}.{k}": v for i, s in state.items() for k, v in s.items()})
        write_json(there / "state.json", {"step": run.step, "seconds": run.seconds})

    replace_folder(folder / "checkpoint", write)


def restored(folder: Path, args: argparse.Namespace, vocabulary: int) -> Run:
    """The run of a checkpoint, or a new one."""
    torch.manual_seed(args.seed)
    there = folder / "checkpoint"
    if not there.exists():
        model = T5ForConditionalGeneration(model_config(args, vocabulary))
        return Run(model, optimiser_of(model))
    model = T5ForConditionalGeneration.from_pretrained(there)
    run = Run(model, optimiser_of(model), **read_json(there / "state.json"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in read_tensors(there / "optimiser.safetensors").items():
        place, key = name.split(".")
        moments.setdefault(int(place), {})[key] = value
    groups = run.optimiser.state_dict()["param_groups"]
    run.optimiser.load_state_dict({"state": moments, "param_groups": groups})
    return run


def optimiser_of(model: T5ForConditionalGeneration) -> torch.optim.AdamW:
    """AdamW; its rate is set at every step."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)


# The whole


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/second_backbone"))
    parser.add_argument("--minutes", type=float, default=120.0, help="of training, over all runs together")
    parser.add_argument("--megabytes", type=float, default=40.0, help="of text at most")
    parser.add_argument("--packages", default=",".join(PACKAGES))
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=4, help="of the encoder, and as many of the decoder")
    parser.add_argument("--tokens", type=int, default=96, help="of a text")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--save", type=float, default=300.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Gather, tokenise, train, and leave a folder that promptprior.load takes."""
    args = arguments()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.output / "text.txt").exists():
        gather([name for name in args.packages.split(",") if name], args.megabytes, args.output)
    lines = read_text(args.output / "text.txt").split("\n")
    if not (args.output / "tokenizer").exists():
        replace_folder(args.output / "tokenizer", train_tokenizer(lines, args.vocabulary).save_pretrained)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.output / "tokenizer")
    run = restored(args.output, args, math.ceil(len(tokenizer) / 64) * 64)
    sizes = f"{sum(map(len, lines)) / 1e6:.1f} MB of text, {run.model.num_parameters() / 1e6:.1f} M parameters"
    print(f"{sizes}, from step {run.step}", flush=True)
    kept = [line for i, line in enumerate(lines) if i % HELD_OUT]
    train(run, Text(kept, tokenizer, args.tokens), Text(lines[::HELD_OUT], tokenizer, args.tokens), args, args.output)
    finish(run, tokenizer, args.output)


def finish(run: Run, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model/, with where its text came from, and load it as a backbone."""

    def write(there: Path) -> None:
        run.model.save_pretrained(there)
        tokenizer.save_pretrained(there)
        write_text(there / "sources.json", read_text(folder / "sources.json"))
        write_json(there / "training.json", {"steps": run.step, "minutes": round(run.seconds / 60, 1)})

    replace_folder(folder / "model", write)
    card = promptprior.load(str(folder / "model"), dtype="float32").card
    print(json.dumps({"backbone": card.name, "fingerprint": card.fingerprint, "scale": card.scale}))


if __name__ == "__main__":
    main()
