"""A process that has imported promptprior and runs each command line in a fork of its own, under limits.

It reads one JSON request a line and answers with one JSON line. Starting Python and importing torch takes seconds;
a fork takes milliseconds, so that hundreds of hostile command lines stay affordable.
"""

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

PRELOADED = (
    "torch", "transformers", "transformers.models.llama.modeling_llama", "pyarrow.parquet", "sklearn.metrics",
    "promptprior.adapt", "promptprior.evaluate", "promptprior.fit", "promptprior.methods", "promptprior.tasks",
    "promptprior.compare.run", "promptprior.report.page", "promptprior.cli.common", "promptprior.cli.entry",
    *(f"promptprior.cli.verbs.{verb}_verb" for verb in (
        "adapt", "compare", "evaluate", "export", "fit", "import", "inspect", "methods", "predict", "report", "similar",
        "tasks",
    )),
)  # fmt: skip
GIB = 2**30


def serve() -> None:
    """Answer requests until the input ends."""
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()  # forks then share these objects' memory
    for line in sys.stdin:
        print(json.dumps(run_limited(json.loads(line))), flush=True)


def run_limited(request: dict) -> dict:
    """Run one command line in a fork; its exit code (negative for a signal), and the seconds it took."""
    start, child = time.monotonic(), os.fork()
    if child == 0:
        _run_child(request)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}
        if time.monotonic() - start > request["wall_seconds"]:  # it waits for something: no CPU limit ends that
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _run_child(request: dict) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        for number, target in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[target], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["folder"])
        for name, value in request["env"].items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for limit, most in (
            (resource.RLIMIT_AS, mapped + int(request["gib"] * GIB)),
            (resource.RLIMIT_CPU, request["cpu_seconds"]),  # counted from the fork on
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (most, most))
        if request["as_nobody"]:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        exec(os.environ.get("HOSTILE_CODE", ""), {})  # the harness's own tests: something that breaks a limit
        from promptprior.cli import main

        code = main(request["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


if __name__ == "__main__":
    serve()
