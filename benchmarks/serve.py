"""Requests per second and latency of `promptprior serve`, against transformers + PEFT that switches prompts.

python benchmarks/serve.py --json FILE                        # 1, 16, 256 and 1,000 prompts on SmolLM2, float32
python benchmarks/serve.py --least 10000                      # until 10,000 mixed requests are checked in each case
python benchmarks/serve.py --backbone FOLDER --prompts 1,4 --seconds 2 --overload 5   # a smoke test

A request is one text for one prompt; all are drawn from a pool that holds every prompt. For each number of prompts:

    peft       asks the pool one by one: set_adapter, then one forward pass over the text with each label
    full load  64 clients that ask again as soon as they are answered: requests_per_s
    half load  requests that arrive at random (Poisson) at half of that rate, answered or not: p50_ms and p99_ms
    wrong      answers, of both loads, whose probabilities are further than --tolerance from what PEFT computed

`overload` sends ten times what full load answered; `restart` ends the server with SIGTERM under full load and starts it
again. The server is a process of its own, on the loopback.
"""

import asyncio
import collections
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from measure import finish, options

from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.header import Header, TaskCard, versions
from promptprior.backbone import Backbone, load, ranking_tokens
from promptprior.tasks.sampling.batch import Tokens
from promptprior.tasks.task import Example

LENGTH = 20  # tokens of a prompt
CLIENTS = 64
POOL = 200  # requests that PEFT answers, or one for every prompt where there are more


@dataclass
class Seen:
    """What came back: seconds of each answer, statuses, and how many answers were wrong."""

    seconds: list[float] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: int = 0

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return 1000 * sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


@dataclass(frozen=True)
class Question:
    """A request, and the probability of each label that PEFT computed."""

    prompt: str
    example: Example
    expected: tuple[float, ...]


def make_prompts(folder: Path, backbone: Backbone, task: Any, count: int) -> dict[str, torch.Tensor]:
    """Folders of `count` random prompts [L, D] on the scale of the embeddings."""
    generator, made = torch.Generator().manual_seed(1), {}
    card = TaskCard(task.name, task.version, task.fingerprint, "target")
    for p in range(count):
        prompt = torch.randn(LENGTH, backbone.width, generator=generator) * backbone.scale
        settings = {"dtype": str(backbone.frozen.dtype)}
        shape = {"length": LENGTH, "width": backbone.width}
        header = Header("prompt", "random", settings, "direct", shape, backbone.card, (card,), versions=versions())
        Prompt(header, {"prompt": prompt[None]}).save_pretrained(folder / f"p{p}")
        made[f"p{p}"] = prompt
    return made


def ask_peft(
    backbone: Backbone, prompts: dict[str, torch.Tensor], asked: Sequence[tuple[str, Example, Tokens]]
) -> tuple[list[Question], float]:
    """The questions with PEFT's answers, and how many it answered per second."""
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    first, *others = prompts
    model = get_peft_model(backbone.frozen.model, config, adapter_name=first)
    for name in others:
        model.add_adapter(name, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH))
    with torch.no_grad():
        for name, prompt in prompts.items():
            model.prompt_encoder[name].embedding.weight.copy_(prompt)

    @torch.no_grad()
    def probabilities(name: str, tokens: Tokens) -> tuple[float, ...]:
        model.set_adapter(name)
        rows = [torch.tensor([*tokens.text, *target]) for target in tokens.targets]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [labels, T]
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        mask = (torch.arange(ids.shape[1]) < lengths).long()
        logits = model(input_ids=ids, attention_mask=mask).logits[:, LENGTH:].float()  # without the prompt's
        logs = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]  # [labels, T - 1]
        place = torch.arange(1, ids.shape[1])
        is_label = (place >= len(tokens.text)) & (place < lengths)
        return tuple((logs * is_label).sum(1).double().softmax(0).tolist())

    probabilities(asked[0][0], asked[0][2])
    start = time.perf_counter()
    answers = [probabilities(name, tokens) for name, _, tokens in asked]
    seconds = time.perf_counter() - start
    questions = [Question(n, e, answer) for (n, e, _), answer in zip(asked, answers, strict=True)]
    return questions, len(asked) / seconds


@contextmanager
def served(folder: Path, backbone: str, dtype: str, flags: Sequence[str], log: Path) -> Iterator[tuple[str, int]]:
    """The URL and process id of a server of a folder; it is ended, and must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(folder), "--port", str(port), "--backbone", backbone, "--dtype", dtype, *flags]
    with log.open("a") as file:
        process = subprocess.Popen([sys.executable, "-m", "promptprior", *words], stderr=file)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(6000):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url, process.pid
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, log.read_text()[-2000:]


async def ask(client: httpx.AsyncClient, question: Question, seen: Seen, tolerance: float) -> None:
    """Ask once, and note what came back."""
    start = time.perf_counter()
    body = {"model": question.prompt, "texts": [question.example.text]}
    try:
        response = await client.post("/v1/predict", json=body)
    except httpx.TransportError as error:
        seen.statuses[type(error).__name__] += 1
        return
    seen.statuses[str(response.status_code)] += 1
    if response.status_code == 200:
        seen.seconds.append(time.perf_counter() - start)
        shares = response.json()["answers"][0]["probabilities"]
        pairs = zip(question.example.choices, question.expected, strict=True)
        seen.wrong += any(abs(shares[choice] - share) > tolerance for choice, share in pairs)


async def full_load(url: str, questions: Sequence[Question], seconds: float, least: int, tolerance: float) -> Seen:
    """Clients that ask without a pause, for these seconds and until `least` are answered."""
    seen, start, draw = Seen(), time.perf_counter(), random.Random(0)
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)

    async def ask_again(client: httpx.AsyncClient) -> None:
        while time.perf_counter() - start < seconds or len(seen.seconds) < least:
            await ask(client, draw.choice(questions), seen, tolerance)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:
        await asyncio.gather(*(ask_again(client) for _ in range(CLIENTS)))
    return seen


async def random_load(url: str, questions: Sequence[Question], rate: float, seconds: float, tolerance: float) -> Seen:
    """Requests that arrive at random at this rate, whether those before are answered or not."""
    seen, draw, asking = Seen(), random.Random(1), set[asyncio.Task[None]]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:
        due = start = time.perf_counter()
        while due - start < seconds:
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asking.add(asyncio.create_task(ask(client, draw.choice(questions), seen, tolerance)))
        await asyncio.gather(*asking)
    return seen


def resident_mb(process: int, name: str = "VmRSS") -> float:
    """A memory field of a process, in megabytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1000  # type: ignore[index]


def row_of(case: str, prompts: int, full: Seen, half: Seen, rates: tuple[float, float]) -> dict[str, Any]:
    """A line of the table."""
    ours, peft = rates
    return {
        "case": case,
        "prompts": prompts,
        "requests_per_s": ours,
        "peft_requests_per_s": peft,
        "speedup": ours / peft,
        "p50_ms": half.percentile(0.5),
        "p99_ms": half.percentile(0.99),
        "wrong": full.wrong + half.wrong,
        "checked": len(full.seconds) + len(half.seconds),
        "statuses": dict(full.statuses + half.statuses),
    }


def main() -> None:
    """Measure all cases."""
    parser = options(__doc__ or "")
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--task", default="noun_number", help="built-in task whose test texts are asked")
    parser.add_argument("--prompts", default="1,16,256,1000", help="numbers of prompts")
    parser.add_argument("--seconds", type=float, default=30.0, help="of full load, and of half load")
    parser.add_argument("--least", type=int, default=0, help="answers of full load in every case")
    parser.add_argument("--tolerance", type=float, default=2e-3, help="of a probability; bfloat16 needs 0.05")
    parser.add_argument("--overload", type=float, default=60.0, help="seconds of ten times the load; 0 for none")
    parser.add_argument("--serve", default="", help="more flags of promptprior serve")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    from promptprior.tasks import load_task

    task, rows = load_task(chosen.task), []
    for count in map(int, chosen.prompts.split(",")):
        with tempfile.TemporaryDirectory() as place:
            folder, log, flags = Path(place) / "prompts", Path(place) / "log", chosen.serve.split()
            backbone = load(chosen.backbone, chosen.dtype)  # anew: PEFT changes the model it is given
            prompts = make_prompts(folder, backbone, task, count)
            examples = [task.split("test")[i % len(task.split("test"))] for i in range(max(POOL, count))]
            tokens = ranking_tokens(backbone, task, examples)
            names = [f"p{i % count}" for i in range(len(examples))]
            questions, peft = ask_peft(backbone, prompts, list(zip(names, examples, tokens, strict=True)))
            del backbone
            case = f"{Path(chosen.backbone).name}/{chosen.dtype}/P{count}/L{LENGTH}"
            with served(folder, chosen.backbone, chosen.dtype, flags, log) as (url, process):
                asyncio.run(full_load(url, questions, chosen.seconds / 10, len(questions), chosen.tolerance))  # warm
                start = time.perf_counter()
                full = asyncio.run(full_load(url, questions, chosen.seconds, chosen.least, chosen.tolerance))
                rate = len(full.seconds) / (time.perf_counter() - start)
                half = asyncio.run(random_load(url, questions, rate / 2, chosen.seconds, chosen.tolerance))
                rows.append(row_of(case, count, full, half, (rate, peft)))
                print(json.dumps(rows[-1]), flush=True)
                if chosen.overload and count == min(16, *map(int, chosen.prompts.split(","))):
                    before = resident_mb(process)
                    start = time.perf_counter()
                    flood = asyncio.run(random_load(url, questions, 10 * rate, chosen.overload, chosen.tolerance))
                    ended = time.perf_counter()
                    after = asyncio.run(full_load(url, questions, 0, 1, chosen.tolerance))
                    flooded = len(flood.seconds) / (ended - start)
                    own = row_of(f"{case}/overload", count, after, flood, (flooded, peft))
                    own |= {"memory_mb": before, "peak_mb": resident_mb(process, "VmHWM")}
                    rows.append(own | {"recovery_s": time.perf_counter() - ended})
                    print(json.dumps(rows[-1]), flush=True)
            rows[-1] |= {"lost_in_restart": restart_loses(folder, questions, chosen, log)} if chosen.overload else {}
    keys = dict.fromkeys(key for row in rows for key in row)
    finish([{key: row.get(key) for key in keys} for row in rows], chosen.json)


def restart_loses(folder: Path, questions: Sequence[Question], chosen: Any, log: Path) -> int:
    """How many answers of a server that is ended under full load never arrived, and that a new one answers."""
    log.write_text("")
    with served(folder, chosen.backbone, chosen.dtype, chosen.serve.split(), log) as (url, process):

        async def end_under_load() -> Seen:
            loading = asyncio.create_task(full_load(url, questions, 3.0, 0, chosen.tolerance))
            await asyncio.sleep(1.5)
            os.kill(process, signal.SIGTERM)
            return await loading

        seen = asyncio.run(end_under_load())
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    sent = sum(line["event"] == "request" and line["path"] == "/v1/predict" and line["status"] == 200 for line in lines)
    with served(folder, chosen.backbone, chosen.dtype, chosen.serve.split(), log) as (url, _):
        again = asyncio.run(full_load(url, questions, 1.0, 1, chosen.tolerance))
    return sent - len(seen.seconds) + again.wrong + seen.wrong


if __name__ == "__main__":
    main()
