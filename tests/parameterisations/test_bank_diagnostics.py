import json
import math
from typing import Any

import pytest
import torch

from promptprior.parameterisations.retrieval.bank import Bank
from promptprior.parameterisations.retrieval.bank_diagnostics import Retrieval, describe_retrieval
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny


def describe(retrieval: Retrieval) -> dict[str, Any]:
    backbone = tiny("llama", torch.float32)
    return describe_retrieval(retrieval, torch.ones(retrieval.size, backbone.width), backbone)


def test_the_summary_by_hand() -> None:
    """Two tasks: three texts with rows (0, 1), (0, 1), (0, 2); two texts with (3, 4), (0, 4)."""
    chosen = torch.tensor([[0, 1], [0, 1], [0, 2], [3, 4], [0, 4]])
    report = describe(Retrieval(chosen, torch.tensor([0, 0, 0, 1, 1]), ("a", "b"), 6))
    assert report["rows_used"] == 5
    assert report["dead_rows"] == 1
    assert report["rows_used_by_task"] == {"a": 3, "b": 3}
    assert report["distinct_sets"] == 4
    assert report["overlap_within_task"] == pytest.approx((1 + 1 / 3 + 1 / 3 + 1 / 3) / 4, abs=1e-4)
    assert report["overlap_between_tasks"] == pytest.approx(
        3 * (1 / 3) / 6, abs=1e-4
    )  # only the last text shares row 0
    assert report["overlap_if_random"] == 0.2
    use = [(1 + 0.5) / 2, 2 / 3 / 2, 1 / 3 / 2, 0.25, 0.5]
    p = [u / sum(use) for u in use]
    assert report["entropy"] == pytest.approx(-sum(q * math.log2(q) for q in p), abs=1e-3)
    torch.testing.assert_close(
        torch.tensor(report["map"])[0], torch.tensor([1, 2 / 3, 1 / 3, 0, 0, 0]), atol=1e-3, rtol=0
    )


def test_one_text_has_no_pairs() -> None:
    report = describe(Retrieval(torch.tensor([[0, 1]]), torch.tensor([0]), ("a",), 3))
    assert report["overlap_within_task"] is None
    assert report["overlap_between_tasks"] is None


def test_rows_that_are_words_are_named_by_them() -> None:
    backbone = tiny("llama", torch.float32)
    ids = backbone.frozen.alone("kQ7")
    rows = backbone.frozen.embed(torch.tensor(ids)).detach() * 3
    table: Any = describe_retrieval(Retrieval(torch.tensor([[0, 1, 2]]), torch.tensor([0]), ("t",), 3), rows, backbone)
    assert {row["row"]: row["words"][0] for row in table["tokens"]} == {0: "k", 1: "Q", 2: "7"}
    assert all(len(row["words"]) == 5 for row in table["tokens"])


def test_the_table_names_the_most_used_rows_first() -> None:
    backbone = tiny("llama", torch.float32)
    form = Bank(backbone, 3, 1)
    params = {"bank": backbone.frozen.embed(torch.tensor(backbone.frozen.alone("abc"))).detach()[None]}
    texts = {
        t: [Tokens(tuple(backbone.frozen.alone(x)), ((5,),)) for x in some]
        for t, some in {"s": "aab", "t": "b"}.items()
    }
    task = torch.tensor([0, 0, 0, 1])
    chosen = form.retrieved(params, collate([text for some in texts.values() for text in some]))
    table: Any = describe_retrieval(Retrieval(chosen, task, tuple(texts), 3), params["bank"][0], backbone, 2)
    rows = table["tokens"]
    by_hand = torch.stack([torch.bincount(chosen[task == t, 0], minlength=3) for t in (0, 1)]).double()
    share = (by_hand / torch.tensor([[3.0], [1.0]])).mean(0)
    assert [r["share"] for r in rows] == pytest.approx(sorted(share.tolist(), reverse=True)[:2], abs=1e-3)
    assert all(r["words"][0] == "abc"[r["row"]] for r in rows)


def test_the_report_of_a_bank_is_plain_json_of_one_copy() -> None:
    backbone = tiny("llama", torch.float32)
    form = Bank(backbone, 8, 2, own=3)
    g = torch.Generator().manual_seed(0)
    params = {"bank": torch.randn(1, 8, backbone.width, generator=g), "own": torch.zeros(1, 1, 3, backbone.width)}
    texts = {
        t: [Tokens(tuple(backbone.frozen.alone(x)), ((5,),)) for x in some]
        for t, some in {"s": ("ab", "cd", "ef"), "t": ("gh", "ij")}.items()
    }
    report = form.diagnose(params, texts)
    assert json.loads(json.dumps(report)) == report
    assert report["parameters"] == {
        "bank": 8 * backbone.width,
        "task": 3 * backbone.width,
        "retrieved": 2 * backbone.width,
    }
    retrieval: Any = report["retrieval"]
    assert retrieval["tasks"] == ["s", "t"]
    chosen = form.retrieved(params, collate([one for some in texts.values() for one in some]))
    used = torch.stack([torch.bincount(chosen[a:b].flatten(), minlength=8) / (b - a) for a, b in ((0, 3), (3, 5))])
    torch.testing.assert_close(torch.tensor(retrieval["map"]), used, atol=1e-3, rtol=0)
    assert len(retrieval["tokens"]) == 8
    assert retrieval["rows_used"] == int((used > 0).any(0).sum())
