"""Single examples: what is kept of them, what the page holds, and how a real browser lets one read them."""

import json
from pathlib import Path

import pytest

from promptprior.config.comparison_folder import ANSWERS
from promptprior.errors import DataError
from promptprior.report.examples.explorer import COUNTS, EMBEDDED, embed, explore
from promptprior.report.examples.kept_answers import (
    LONGEST_ANSWER,
    LONGEST_TEXT,
    CellAnswers,
    ExampleSet,
    example_line,
    read_answers,
)
from promptprior.report.page import make_report
from promptprior.report.results import Grid, Row
from promptprior.tasks.metrics import Prediction
from promptprior.tasks.task import Example
from tests.report.result_rows import answer_lines, grid_rows, result_row
from tests.report.test_page import CHROMIUM, HOSTILE, PHONE, Page, browser, open_page, until  # noqa: F401


def written(folder, lines):
    path = folder / ANSWERS
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def grid_of(rows):
    return Grid(tuple(Row.from_json(row) for row in rows), "prompt_tuning")


# What is kept ---------------------------------------------------------------------------------------------


def test_choices_are_kept_with_their_probabilities():
    choices = ("no", "yes")
    test = [Example(f"e{i}", f"text {i}", choices[i % 2], choices, i % 2) for i in range(10)]
    predictions = [Prediction(e.id, "yes", 1, (2.0, 0.0), (1, 1)) for e in test]
    kept = ExampleSet.of("task", test, 4)
    assert kept.ids == ("e0", "e2", "e5", "e7")  # evenly spaced
    assert (kept.n_test, kept.choices, kept.golds[2]) == (10, (choices,), ("yes",))
    answers = CellAnswers.of("c", test, predictions, kept)
    assert answers.answers == (1, 1, 1, 1)
    assert answers.probabilities == (0.8808,) * 4
    assert answers.gold_probabilities == (0.1192, 0.1192, 0.8808, 0.8808)
    assert answers.examples == kept.key != ExampleSet.of("task", test, 5).key


def test_free_text_is_kept_as_it_was_answered_and_long_texts_are_cut(tmp_path):
    test = [Example("e", "x" * 5000, "Paris", references=("Paris", "the city of Paris"))]
    kept = ExampleSet.of("task", test, 100)
    assert len(kept.texts[0]) == LONGEST_TEXT
    assert kept.texts[0].endswith("…")
    assert (kept.golds, kept.choices) == ((("Paris", "the city of Paris"),), ())
    answers = CellAnswers.of("c0", test, [Prediction("e", "paris!" + " " * 999)], kept)
    assert len(answers.answers[0]) == LONGEST_ANSWER
    path = written(tmp_path, [example_line(kept), vars(answers)])
    read = read_answers(path)
    assert (read.sets, read.cells) == ({kept.key: kept}, {"c0": answers})
    made = (
        embed(grid_of([result_row()]), read, 10).data["targets"]
        or embed(grid_of([result_row(target="task")]), read, 10).data["targets"]
    )
    assert made[0]["cells"][0]["shares"] == []


def test_examples_with_choices_of_their_own_keep_them():
    test = [Example(str(i), "t", f"a{i}", (f"a{i}", f"b{i}"), 0) for i in range(3)]
    kept = ExampleSet.of("task", test, 3)
    assert [kept.choices_of(i) for i in range(3)] == [("a0", "b0"), ("a1", "b1"), ("a2", "b2")]


def changed(line, **changes):
    return {**line, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a: [a], r"line 1: no earlier line has the examples"),
        (lambda s, a: [s, changed(a, answers=[0])], r"line 2: 1 answers to 5 examples; delete the file"),
        (lambda s, a: [s, changed(a, answers=[0, 1, 2, 3, 0])], r"line 2: answer 3 is none of 3 choices"),
        (lambda s, a: [s, changed(a, answers=["x"] * 5)], r"line 2: answer 'x' is none of 3 choices"),
        (lambda s, a: [s, changed(a, probabilities=[2.0] * 5)], r"line 2: a probability outside 0 to 1"),
        (lambda s, a: [changed(s, texts=[]), a], r"line 1: 5 ids; expected a text, gold answers and choices"),
        (lambda s, a: [changed(s, n_test=0), a], r"line 1: n test 0: expected at least 1"),
        (lambda s, a: [changed(s, choices=[]), a], r"line 2: answer \d is none of 0 choices"),
        (lambda s, a: [[1]], r"line 1: expected an object, got \[1\]"),
        (lambda s, a: [s, changed(a, unknown=1)], r"line 2: unknown key 'unknown'"),
        (lambda s, a: [s, {"cell": 3}], r"line 2: 'cell' is 3"),
    ],
)
def test_a_damaged_file_says_which_line(tmp_path, change, message):
    path = written(tmp_path, change(*answer_lines([result_row()], 5)))
    with pytest.raises(DataError, match=message):
        read_answers(path)


# What the page holds --------------------------------------------------------------------------------------


def test_the_page_holds_a_stated_number_of_examples_and_all_cells_of_them(tmp_path):
    rows = grid_rows(ks=(16,), seeds=(13, 21))
    kept = read_answers(written(tmp_path, answer_lines(rows)))
    report = make_report(rows, "t", answers=kept, examples=6)
    page = Page(report.write_page(tmp_path / "r.html"))
    data = json.loads(page.scripts[0])
    assert len(data["targets"]) == 8
    assert all(len(t["texts"]) == 6 and len(t["cells"]) == 7 for t in data["targets"])
    assert "6 of 200 of capital_of" in page.text
    first = next(t for t in data["targets"] if t["name"] == "antonym")
    assert first["texts"] == [f"Text {i} of antonym" for i in (0, 5, 10, 15, 20, 25)]
    zero_shot = next(c for c in first["cells"] if data["methods"][c["method"]] == "zero_shot")
    assert zero_shot["right"] == "110110"  # it is wrong on every third, from the second
    assert [first["words"][w] for w in zero_shot["given"]] == ["yes", "perhaps", "perhaps", "yes", "perhaps", "perhaps"]
    assert zero_shot["shares"] == [90, 90, 60, 90, 90, 60]


def test_without_answers_or_with_none_wanted_there_is_no_section(tmp_path):
    rows = grid_rows(ks=(16,), seeds=(13,))
    old = make_report(rows, "t").write_page(tmp_path / "old.html").read_bytes()
    kept = read_answers(written(tmp_path, answer_lines(rows)))
    for name, options in {"none": {"answers": kept, "examples": 0}, "absent": {"answers": read_answers()}}.items():
        assert make_report(rows, "t", **options).write_page(tmp_path / f"{name}.html").read_bytes() == old
    assert b"explorer" not in old.replace(b"#explorer", b"")


def test_cells_without_answers_are_counted(tmp_path):
    rows = grid_rows(ks=(16,), seeds=(13,))
    kept = read_answers(written(tmp_path, answer_lines(rows[4:])))
    page = Page(make_report(rows, "t", answers=kept).write_page(tmp_path / "r.html"))
    assert f"of {len(rows)} scored cells {len(rows) - 4} kept answers" in page.text


def test_as_many_examples_as_fit_are_shown(tmp_path):
    rows = grid_rows(ks=(4, 16))
    kept = read_answers(written(tmp_path, answer_lines(rows, 100)))
    long = read_answers(written(tmp_path, answer_lines(rows, 100, text="{i} of {target}" + "x" * 1900)))
    few, fewer = explore(grid_of(rows), kept), explore(grid_of(rows), long)
    for made in (few, fewer):
        (shown,) = {shown for shown, _ in made.counts.values()}
        assert made.size <= EMBEDDED
        more = [count for count in COUNTS if count > shown]
        assert not more or embed(grid_of(rows), kept if made is few else long, more[-1]).size > EMBEDDED
    assert few.counts["antonym"][0] > fewer.counts["antonym"][0]


def test_answers_to_another_set_count_where_texts_agree(tmp_path):
    rows = [result_row(), result_row(cell="c1", seed=21), result_row(cell="c2", seed=42)]
    many, few = answer_lines(rows[:2], 10), answer_lines(rows[2:], 5)
    kept = read_answers(written(tmp_path, [*many, *few]))
    (target,) = explore(grid_of(rows), kept).data["targets"]
    assert [cell["right"].count("-") for cell in target["cells"]] == [0, 0, 5]


def test_texts_cannot_break_out_or_hide(tmp_path):
    rows = [result_row(), result_row(cell="c1", method="spot", sources=["a"])]
    kept = read_answers(written(tmp_path, answer_lines(rows, 3, text=HOSTILE + "\x00\x1b[31m\u202eb{i}")))
    path = make_report(rows, "t", answers=kept).write_page(tmp_path / "r.html")
    page = Page(path)
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == ["application/json", None] * 2 + [None]
    assert not [tag for tag, _ in page.tags if tag in ("img", "b", "iframe", "link", "object")]
    assert json.loads(page.scripts[0])["targets"][0]["texts"][0] == HOSTILE + "\ufffd\ufffd[31m\ufffdb0"


@pytest.mark.slow
def test_pages_of_many_cells_stay_under_two_megabytes(tmp_path):
    """The largest study of the repository, with single examples as its cells would have kept them."""
    rows = Path(__file__).parents[2] / "docs" / "studies" / "results" / "field.jsonl"
    lines = answer_lines([json.loads(line) for line in rows.read_text().splitlines()], 100, text="{i} {target}" * 15)
    report = make_report(rows, answers=read_answers(written(tmp_path, lines)))
    assert report.write_page(tmp_path / "report.html").stat().st_size < 2e6


# In a real browser ----------------------------------------------------------------------------------------

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the path")
CARDS = "document.querySelectorAll('.example').length"


@pytest.mark.chromium
@in_chromium
def test_the_keyboard_alone_filters_and_reads_a_row(browser, tmp_path):  # noqa: F811
    rows = grid_rows()
    kept = read_answers(written(tmp_path, answer_lines(rows)))
    path = make_report(rows, "t", answers=kept, examples=30).write_page(tmp_path / "r.html")
    page, said, asked = open_page(browser, path, viewport={"width": 1100, "height": 900})
    press, status = page.keyboard.press, lambda: page.inner_text("#explorer-status")
    assert status() == "1 to 10 of 30 that match; 30 of the 200 test examples are here"
    page.focus("#explorer-controls [name=target]")
    page.keyboard.type("capital")  # a list jumps to what is typed
    for name in ("k", "seed", "missed"):
        press("Tab")
        assert page.evaluate("document.activeElement.name") == name
    page.keyboard.type("zero")
    until(page, f"{CARDS} === 10 && document.getElementById('explorer-status').textContent.includes('of 10 ')")
    press("Tab")
    press("Space")  # methods disagree
    press("Tab")
    page.keyboard.type("TEXT 13 of")
    until(page, f"{CARDS} === 1")
    lines = [line.split("\t") for line in page.inner_text(".example table").splitlines()]
    assert [line[0] for line in lines] == ["method", "zero_shot", "prompt_tuning", "multitask", "spot"]
    assert lines[1][2:] == ["60%", "20%"]
    assert page.inner_text(".example .text") == "Text 13 of capital_of"
    assert page.inner_text(".example strong") == "no"
    assert page.get_attribute(".example tbody tr:first-child [role=img]", "aria-label") == "wrong"
    page.fill("#explorer-controls [name=search]", "nowhere")
    assert status() == "none matches; 30 of the 200 test examples are here"
    page.fill("#explorer-controls [name=search]", "")
    press("Space" if page.uncheck("#explorer-controls [name=disagree]") else "Tab")
    page.select_option("#explorer-controls [name=missed]", "")
    page.focus(".pager [name=next]")
    for _ in range(4):  # more often than there are pages
        press("Enter")
    assert status().startswith("21 to 30 of 30")
    assert page.evaluate("document.activeElement.name") == "next"
    press("Shift+Tab")
    press("Enter")
    assert status().startswith("11 to 20 of 30")
    unnamed = (
        "[...document.querySelectorAll('#explorer :is(select, input)')].filter(e => !e.labels[0].innerText.trim())"
    )
    assert page.evaluate(f"{unnamed}.length") == 0
    assert (said, len(asked)) == ([], 1)
    page.context.close()


@pytest.mark.chromium
@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_texts_are_shown_as_text_on_a_phone(browser, tmp_path, scheme):  # noqa: F811
    rows = [result_row(), result_row(cell="c1", method=HOSTILE.replace(" ", ""), sources=["a"])]
    kept = read_answers(written(tmp_path, answer_lines(rows, 3, text=HOSTILE + "{i} " + "m" * 900)))
    path = make_report(rows, "t", answers=kept).write_page(tmp_path / "r.html")
    page, said, asked = open_page(browser, path, **PHONE, color_scheme=scheme)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.images.length") == 0
    assert page.inner_text(".example .text").startswith(HOSTILE)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate(
        "[...document.querySelectorAll('.example *')].every(e => e.getBoundingClientRect().right <= 375)"
    )
    grounds = "['.example', 'body'].map(s => getComputedStyle(document.querySelector(s)).backgroundColor)"
    assert all(
        (sum(map(int, ground[4:-1].split(","))) > 380) == (scheme == "light") for ground in page.evaluate(grounds)
    )
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert (said, len(asked)) == ([], 1)
    page.context.close()


KEEP_WHAT_IS_SAVED = """() => {
  const make = URL.createObjectURL.bind(URL);
  let blob = null;
  URL.createObjectURL = (made) => make(blob = made);
  HTMLAnchorElement.prototype.click = function () {
    const name = this.download;
    blob.slice(0, 4).arrayBuffer().then((head) => window.saved.push([name, [...new Uint8Array(head)]]));
  };
}"""
"""The name and the first four bytes of each file that the page offers."""


@pytest.mark.chromium
@in_chromium
@pytest.mark.parametrize(
    "options", [pytest.param({}, id="desk", marks=pytest.mark.slow), pytest.param(PHONE, id="phone")]
)
def test_every_plot_is_saved_as_png_and_svg(browser, tmp_path, options):  # noqa: F811
    path = make_report(grid_rows(ks=(4, 16)), "t").write_page(tmp_path / "r.html")
    page, said, _ = open_page(browser, path, **options)
    figures = "document.querySelectorAll('figure[data-plot]').length"
    until(page, f"document.querySelectorAll('.export button').length === 2 * {figures}")  # drawn in turn
    formats = {"PNG": b"\x89PNG", "SVG": b"<svg"}
    buttons = {format: page.locator(f".export button:text-is('{format}')") for format in formats}
    for format, first in formats.items():
        with page.expect_download(timeout=120_000) as download:
            buttons[format].first.press("Enter")
        assert Path(download.value.path()).read_bytes().startswith(first)
    # The rest without the browser's downloads, which it may refuse once an image took seconds since the key.
    page.evaluate(KEEP_WHAT_IS_SAVED)
    for format, first in formats.items():
        page.evaluate("window.saved = []")
        for place, button in enumerate(buttons[format].all(), start=1):
            button.press("Enter")
            until(page, f"window.saved.length === {place}")
        saved = page.evaluate("window.saved")
        assert {bytes(head) for _, head in saved} == {first}
        assert len({name for name, _ in saved}) == len(saved) == page.evaluate(figures) > 4
    assert said == []
    page.context.close()
