"""A prompt as GGUF in llama.cpp against our engine in float32: how often the most probable token is the same, and how
far log-probabilities are apart. The same for our engine with its weights and the prompt rounded to the dtype, computing
in float32, says what that rounding does by itself.

    python benchmarks/llama_cpp.py runs/polarity --texts 200 --dtypes float16,bfloat16,float32 --json FILE
"""

import argparse
import copy
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import xllamacpp

from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.as_matrix import single_prompt
from promptprior.artifacts.export_prompt import export_vocabulary
from promptprior.backbone.frozen import Frozen, load_frozen
from promptprior.tasks import load_task


def next_tokens(frozen: Frozen, prompt: torch.Tensor, texts: list[str]) -> list[torch.Tensor]:
    """Our log-probabilities of the token after prompt and text, [V] for each text; texts of one length in one batch."""
    found, by_length = {}, dict[int, list[str]]()
    for text in texts:
        by_length.setdefault(len(frozen.tokenizer(text).input_ids), []).append(text)
    with torch.no_grad():
        cache = frozen.model(inputs_embeds=prompt[None].to(frozen.dtype), use_cache=True).past_key_values
        for group in by_length.values():
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(group))
            ids = torch.tensor(frozen.tokenizer(group).input_ids)
            logits = frozen.model(ids, past_key_values=past, logits_to_keep=1).logits[:, -1]
            found |= dict(zip(group, logits.double().log_softmax(-1), strict=True))
    return [found[text] for text in texts]


def apart(theirs: torch.Tensor, ours: torch.Tensor, likely: float) -> dict[str, float | bool]:
    """Whether two distributions have the same largest token, and their largest difference where ours is likely."""
    at = ours > torch.log(torch.tensor(likely, dtype=torch.float64))
    top = ours.topk(2).values
    return {
        "same": int(theirs.argmax()) == int(ours.argmax()),
        "difference": float((theirs - ours)[at].abs().max()),
        "margin": float(top[0] - top[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", type=Path)
    parser.add_argument("--target", default="")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--dtypes", default="float16")
    parser.add_argument("--likely", type=float, default=1e-3, help="tokens of at least this probability are compared")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    artifact = Prompt.from_pretrained(arguments.prompt)
    backbone, matrix = artifact.header.backbone.name, single_prompt(artifact, "the prompt")
    target = arguments.target or next(t.name for t in artifact.header.tasks if t.role == "target")
    texts = [example.text.rstrip() for split in ("test", "train") for example in load_task(target).split(split)]
    texts = list(dict.fromkeys(texts))[: arguments.texts]
    exact = load_frozen(backbone, "float32", "cpu")
    ours = next_tokens(exact, matrix, texts)
    pairs = list(zip(texts, ours, strict=True))
    report = {"prompt": str(arguments.prompt), "backbone": backbone, "target": target, "texts": len(texts)}
    report |= {"llama.cpp": xllamacpp.BUILD_INFO, "likely": arguments.likely}

    for dtype in arguments.dtypes.split(","):
        frozen = load_frozen(backbone, dtype, "cpu")
        with TemporaryDirectory() as folder:
            started = time.monotonic()
            [baked] = export_vocabulary({"task": artifact}, frozen, Path(folder) / "out", as_gguf=True)
            exported = time.monotonic() - started
            file = Path(folder) / "out" / "model.gguf"
            settings = xllamacpp.CommonParams()
            settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(file), 512, 1, False
            settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
            settings.verbosity = -1
            server, vocabulary = xllamacpp.Server(settings), len(ours[0])
            letter = exact.tokenizer.convert_tokens_to_ids("a")
            theirs = []
            for text, wanted in pairs:
                # A letter is written whatever comes out: half of one, or an end, would have no probabilities
                asked = {"prompt": baked.text + text, "n_predict": 1, "n_probs": 1000, "logit_bias": [[letter, 1e3]]}
                answer = server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
                row = torch.full([vocabulary], -torch.inf, dtype=torch.float64)
                for one in answer:
                    if one["id"] < vocabulary:
                        row[one["id"]] = one["logprob"]
                theirs.append(apart(row, wanted, arguments.likely))
            size = file.stat().st_size
            del server
        del frozen
        note(report, f"llama.cpp {dtype}", theirs, {"bytes": size, "export_seconds": round(exported, 1)})
        rounded, kind = load_frozen(backbone, "float32", "cpu"), getattr(torch, dtype)
        for weight in rounded.model.parameters():
            weight.data = weight.data.to(kind).float() if weight.dim() > 1 else weight.data
        own = zip(next_tokens(rounded, matrix.to(kind).float(), texts), ours, strict=True)
        note(report, f"ours rounded to {dtype}", [apart(near, wanted, arguments.likely) for near, wanted in own], {})
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def note(report: dict[str, object], name: str, found: list[dict[str, float | bool]], more: dict[str, float]) -> None:
    """Put what was found of all texts into the report, and print it."""
    differences = torch.tensor([one["difference"] for one in found])
    report[name] = {
        "same": sum(one["same"] for one in found),
        "difference_mean": float(differences.mean()),
        "difference_max": float(differences.max()),
        "margin_where_not_same": [one["margin"] for one in found if not one["same"]],
        **more,
    }
    print(name, report[name], flush=True)


if __name__ == "__main__":
    main()
