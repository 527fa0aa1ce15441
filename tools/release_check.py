"""Whether a release would work for a stranger: python tools/release_check.py (make release-check).

Builds the sdist, and the wheel from the sdist; checks both with twine; installs the wheel into a fresh virtual
environment, whose other packages are those of the one that runs this; and uses it in an empty folder, out of reach of
the source tree. What it built stays in dist/.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TICKETS = {
    "billing": ("my invoice is wrong", "you charged me twice", "please refund me", "the price went up"),
    "technical": ("the app crashes", "login shows an error", "the page stays white", "sync never ends"),
}
MINUTES = 2  # from a CSV to its answers, with the prior that comes with the library
ROWS = REPOSITORY / "tests" / "fixtures" / "before" / "results" / "results.jsonl"


def run(*command: object, folder: Path = REPOSITORY) -> str:
    """The output of a command without the source tree on its path. Ends with its output where it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    started, words = time.monotonic(), [str(word) for word in command]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, cwd=folder, env=environment, text=True, **both)
    if done.returncode:
        sys.exit(f"release-check: {' '.join(words)} failed with {done.returncode}\n{done.stdout}")
    print(f"{time.monotonic() - started:6.1f} s  {Path(words[0]).name} {' '.join(words[1:])}"[:118], flush=True)
    return done.stdout


def check_texts(version: str) -> None:
    """The version that pyproject.toml names is the newest of the changelog, and the one to cite."""
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)(.*)$", changelog, re.MULTILINE)
    if newest is None or newest[1] != version:
        sys.exit(f"CHANGELOG.md: expected '## {version}' as its first version; pyproject.toml has {version}")
    if "unreleased" in newest[2]:
        print(f"note: CHANGELOG.md calls {version} unreleased; give it its date before you publish")
    if f"\nversion: {version}\n" not in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"):
        sys.exit(f"CITATION.cff: expected 'version: {version}', as in pyproject.toml")


def main() -> None:
    """All checks, one line each."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    check_texts(version)
    python, dist = sys.executable, REPOSITORY / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    run(python, "-m", "build", "--no-isolation", "--outdir", dist)
    files = sorted(dist.iterdir())
    wheel = dist / f"promptprior-{version}-py3-none-any.whl"
    if files != sorted([wheel, dist / f"promptprior-{version}.tar.gz"]):
        sys.exit(f"dist/: expected a wheel and an sdist of {version}, found {', '.join(f.name for f in files)}")
    run(python, "-m", "twine", "check", "--strict", *files)
    print(f"          {', '.join(f'{f.name} {f.stat().st_size / 1e6:.2f} MB' for f in files)}")

    with tempfile.TemporaryDirectory() as name:
        fresh, empty = Path(name) / "fresh", Path(name) / "empty"
        empty.mkdir()
        venv.create(fresh, symlinks=True)
        run(python, "-m", "pip", "--python", fresh / "bin" / "python", "install", "--quiet", "--no-deps", wheel)
        own = next(fresh.glob("lib/python*/site-packages"))
        (own / "heavy.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch and the rest, after its own

        def use(*words: object) -> str:
            return run(fresh / "bin" / "promptprior", *words, folder=empty)

        where = run(fresh / "bin" / "python", "-c", "import promptprior; print(promptprior.__file__)", folder=empty)
        if not where.startswith(str(own)):
            sys.exit(f"the wheel is not what is imported: {where}")
        shutil.copy(ROWS, empty / "results.jsonl")
        expected = {
            ("--help",): "compare",
            ("methods", "list"): "prompt_tuning",
            ("compare", "--preset", "list"): "quick",
            ("tasks", "list"): "noun_plural",
            ("report", "results.jsonl"): "report.html",
        }
        for words, text in expected.items():
            if text not in use(*words):
                sys.exit(f"promptprior {' '.join(words)}: expected {text!r} in its output")
        rows = [f"{text},{label}" for label, texts in TICKETS.items() for text in texts]
        (empty / "tickets.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
        started = time.monotonic()
        prior = ("--prior", "smollm2/classification", "--target", "tickets.csv", "--shots", "1", "--test-limit", "0")
        use("adapt", *prior, "--output", "tickets")
        use("predict", "--prompt", "tickets", "--input", "tickets.csv", "--output", "answers.csv")
        if (seconds := time.monotonic() - started) > MINUTES * 60:
            sys.exit(f"from a CSV to answers: {seconds:.0f} s, expected at most {MINUTES} minutes")
        page = (empty / "report.html").read_text(encoding="utf-8")
        if "<html" not in page or "prompt_tuning" not in page:
            sys.exit("report.html is no report")
    print(f"promptprior {version} can be released")


if __name__ == "__main__":
    main()
