"""What every benchmark shares: alternating timings, peak memory in a fresh process, the machine's matrix rate."""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[], Any]
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """Fastest to slowest."""
        return f"{min(self.seconds):.3g}-{max(self.seconds):.3g}"


def alternate(steps: Sequence[Step], trials: int, warm: bool = True) -> list[Timing]:
    """Time every step once per trial, in turn, after one untimed call of each: contention then hits all alike.

    `warm=False` leaves the untimed calls out, where a step takes minutes and the first call is like any other.
    """
    for step in steps if warm else ():
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    for trial in range(trials):
        turn = range(len(steps)) if trial % 2 == 0 else reversed(range(len(steps)))
        for s in turn:
            seconds[s].append(seconds_of(steps[s]))
    return [Timing(tuple(some)) for some in seconds]


def seconds_of(step: Step) -> float:
    """Seconds of one call: on the wall, or of the processor where PROMPTPRIOR_CLOCK is "cpu".

    Processor time on one thread is what a machine shared with other work can still tell.
    """
    clock = time.process_time if os.environ.get("PROMPTPRIOR_CLOCK") == "cpu" else time.perf_counter
    synchronise()
    start = clock()
    step()
    synchronise()
    return clock() - start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Products(TorchDispatchMode):
    """Counts the matrix products under it by operation, shapes and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in PRODUCTS:
            left, right = args[-2:]
            kind = "bmm" if "bmm" in name else "mm"
            self.seen[kind, tuple(left.shape), tuple(right.shape), left.dtype, left.device] += 1
        return func(*args, **(kwargs or {}))


def product_seconds(step: Step, repeats: int = 3) -> tuple[float, float]:
    """Seconds that the step's matrix products take alone, on dense operands of the same shapes; and their FLOPs."""
    with Products() as counted:
        step()
    seconds, flops = 0.0, 0.0
    for (name, left, right, dtype, device), count in counted.seen.items():
        a, b = (torch.randn(shape, dtype=dtype, device=device) for shape in (left, right))
        product = torch.bmm if name == "bmm" else torch.mm
        product(a, b)
        runs = [seconds_of(lambda a=a, b=b, product=product: product(a, b)) for _ in range(repeats)]
        seconds += count * statistics.median(runs)
        flops += count * 2.0 * a.numel() * right[-1]
    return seconds, flops


def peak_bytes(script: str, arguments: Sequence[str]) -> tuple[int, int]:
    """(peak resident bytes, resident bytes before the step) of `python script arguments` in a fresh process.

    The script must print what `report_peak` prints.
    """
    run = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    peak, before = re.findall(r"peak (\d+) before (\d+)", run.stdout)[-1]
    return int(peak), int(before)


def report_peak(step: Step) -> None:
    """Run a step and print the peak of this process's memory and what it was before."""
    peak, before = peak_of(step)
    print(f"peak {peak} before {before}")


def peak_of(step: Step) -> tuple[int, int]:
    """(peak resident bytes while a step runs, resident bytes before) of this process."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return resident("VmHWM"), before


def resident(field: str) -> int:
    """A memory field of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])  # type: ignore[index]


def options(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows as a list of objects")
    parser.add_argument("--trials", type=int, default=3, help="timed runs of each side (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def machine() -> dict[str, Any]:
    """Device and versions."""
    import peft
    import transformers

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": os.environ.get("PROMPTPRIOR_CLOCK", "wall"),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def cpu_name() -> str:
    """The processor's name and the matrix instructions that matter here."""
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.+)", info)
    found = [word for word in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if re.search(rf"\b{word}\b", info)]
    return f"{name[1] if name else platform.processor()} ({found[0] if found else 'no avx2'})"


def finish(rows: list[dict[str, Any]], file: Path | None) -> None:
    """Print the rows as a table and write them, with the machine, where asked."""
    print_table(rows)
    about = machine()
    print("; ".join(f"{key} {value}" for key, value in about.items()))
    if file is not None:
        file.write_text(json.dumps([row | about for row in rows], indent=1) + "\n", encoding="utf-8")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows as a Markdown table."""
    keys = list(rows[0])
    print("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
