"""The harness itself: what it must notice."""

import pytest

from tests.hostile.harness import GOOD_CSV, SHORT, TINY, Case, ForkServer

SHOW = ("tasks", "show", "x.csv")


def test_a_good_file_is_accepted(server: ForkServer):
    outcome = server.check(Case("good", SHOW, {"x.csv": GOOD_CSV}, prints="licence"))
    assert outcome.seconds < 5


def test_a_prompt_is_trained_and_answers(server: ForkServer):
    words = ["adapt", "--target", "x.csv", *TINY, *SHORT, "--output", "out"]
    server.check(Case("adapt", words, {"x.csv": GOOD_CSV}, prints="test accuracy"))
    words = [
        "predict",
        "--prompt",
        "PROMPT",
        "--target",
        "builtin:article",
        "--input",
        "x.csv",
        "--output",
        "out.jsonl",
    ]
    server.check(Case("predict", [*words, "--backbone", "MODEL"], {"x.csv": GOOD_CSV}, prints="out.jsonl"))


@pytest.mark.parametrize(
    "case",
    [
        Case("accepted though good", SHOW, {"x.csv": GOOD_CSV}, refused="."),
        Case("another message", SHOW, refused="zebra"),
        Case("refused", SHOW),
        Case("prints something else", SHOW, {"x.csv": GOOD_CSV}, prints="zebra"),
    ],
    ids=str,
)
def test_a_wrong_expectation_fails(case: Case, server: ForkServer):
    with pytest.raises(AssertionError):
        server.check(case)


def test_limits_hold(server: ForkServer):
    # code that the child runs first asks for memory, for stack, and burns CPU
    for name, words in {"memory": "x = bytearray(6 * 2**30)", "recursion": "def f(): f()\nf()"}.items():
        case = Case(name, SHOW, {"x.csv": GOOD_CSV}, env={"HOSTILE_CODE": words})
        with pytest.raises(AssertionError, match=r"MemoryError|RecursionError"):
            server.check(case)
    with pytest.raises(AssertionError, match="exit code -"):
        server.check(Case("cpu", SHOW, env={"HOSTILE_CODE": "while True: pass"}, cpu_seconds=1))
