"""The report: its words and numbers, and how a real browser shows it."""

import html
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from promptprior.errors import DataError, SpecError
from promptprior.report import page as report_page
from promptprior.report.page import make_report, write_report
from promptprior.report.results import parse
from promptprior.report.section import Section, Table, TableCell, columns
from promptprior.report.similarity_gain import TaskSimilarity
from tests.report.result_rows import TARGETS, TRANSFER, bank_rows, grid_rows, result_row, task_similarity

CHROMIUM = shutil.which("chromium")
SLOW = 120_000  # milliseconds: a busy machine needs many for the scripts of one page
HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"><b>&amp;'
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Page(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.words, self.cells = [], [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, text):
        tag = self.tags[-1][0] if self.tags else ""
        if tag == "script":
            self.scripts.append(text)
        elif tag != "style":
            self.words.append(" ".join(text.split()))
            if self.cells:
                self.cells[-1] += text

    @property
    def text(self):
        return " ".join(filter(None, self.words)).replace("\N{NO-BREAK SPACE}", " ")


def failed_row(**changes):
    return result_row(status="failed", score=None, scores={}) | changes


def test_words_and_numbers(tmp_path):
    rows = [*grid_rows(), failed_row(cell="f" * 20, method="spot", seed=87, error="loss is not finite")]
    path = write_report(
        rows, tmp_path / "deep" / "report.html", "A title", missing=7, command="promptprior compare x.yaml"
    )
    page = Page(path)
    assert "Unfinished: 153 of 160 cells have run" in page.text
    assert "1 of 153 cells failed and have no score" in page.text
    assert "loss is not finite" in page.text
    assert "promptprior compare x.yaml" in page.text
    assert "Negative transfer: clearly worse on syllable_count" in page.text
    assert "country_of, hypernym, past_tense" in page.text
    assert "SmolLM2-135M-Instruct (ab12cd34)" in page.text
    assert "torch 2.13.0" in page.text
    scores = [r["score"] for r in rows if (r["method"], r["target"], r["k"]) == ("spot", "capital_of", 16)]
    assert any(f"{sum(scores) / 3:.3f}" in cell for cell in page.cells)


def test_sections_say_the_finding_first(tmp_path):
    report = make_report(grid_rows(), "t", contrasts=[("multitask", "prompt_tuning")])
    found = {section.title: section.finding for section in report.sections}
    assert found["Contrasts"].startswith("Decided: ")
    means = {m: sum(r["score"] for r in grid_rows() if (r["method"], r["k"]) == (m, 16)) / 24 for m in TRANSFER}
    best = max(list(TRANSFER)[1:], key=means.__getitem__)
    shown = f"k = 16: {best} has the highest mean over 8 targets ({best} {means[best]:.3f} and prompt_tuning "
    assert shown + f"{means['prompt_tuning']:.3f})." in found["Over all targets"]
    assert "k = 16: of 8 targets, the best mean is that of " in found["Scores"]
    assert "first to reach prompt_tuning's end: " in found["Learning curves of adaptation"]
    assert "a guard " in found["With a guard"]
    assert "on the front of score against seconds: zero_shot" in found["Cost"]
    page = Page(report.write_page(tmp_path / "r.html"))
    assert all(finding in page.text for finding in found.values())


def test_the_best_method_is_one_that_serves_all_targets_and_others_are_named_beside_it():
    scores = {"prompt_tuning": (0.5, 0.5), "bmtpt": (0.5, 0.7), "linear_probe": (0.6,), "knn": (0.4,)}
    rows = [
        result_row(cell=f"{method}-{target}-{seed}", method=method, target=target, seed=seed, score=score)
        for method, own in scores.items()
        for target, score in zip("ab", own, strict=False)
        for seed in (13, 21)
    ]
    [best] = make_report(rows, "t").best
    assert best["method"] == "bmtpt"
    assert best["says"].endswith("; linear_probe is +0.100 ahead of it on the 1 of these that it serves")


def test_a_whole_grid_has_no_notices(tmp_path):
    rows = grid_rows()
    page = Page(write_report(rows, tmp_path / "r.html", "t", missing=0))
    assert not [attrs for _, attrs in page.tags if attrs.get("role") == "status"]
    assert "Failed cells" not in page.text


def test_mixed_rows_are_announced(tmp_path):
    rows = [
        result_row(),
        result_row(cell="c1", seed=21, backbone={"name": "other", "fingerprint": "ff"}, metric="macro_f1"),
        result_row(cell="c2", score=0.7),
    ]
    text = Page(write_report(rows, tmp_path / "r.html", "t")).text
    assert "Cells of different backbones are mixed" in text
    assert "scored by different metrics" in text
    assert "1 older results of the same method, target, k and seed were left out" in text


def test_priors_that_were_fitted_once_for_all_seeds_are_announced(tmp_path):
    shared = [r | {"cost": r["cost"] | {"source_seconds": 7.0}} if r["method"] == "spot" else r for r in grid_rows()]
    words = Page(write_report(shared, tmp_path / "r.html", "t")).words
    (notice,) = [word for word in words if word.startswith("Not a basis for claims")]
    assert "one prior for several draws" in notice
    assert "spot (3 draws, 1 prior)" in words


def test_a_results_file_gives_the_same_bytes_as_its_rows(tmp_path):
    rows = grid_rows(ks=(16,))
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    a = write_report(results, tmp_path / "a.html", "t").read_bytes()
    b = write_report(rows, tmp_path / "b.html", "t").read_bytes()
    assert a == b


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "nothing to report: no result rows"),
        ([result_row(), result_row(k=None)], "row 2: 'k' is None; expected a whole number"),
    ],
)
def test_bad_rows_leave_nothing_behind(tmp_path, rows, text):
    with pytest.raises(DataError, match=text):
        write_report(rows, tmp_path / "r.html", "t")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no result rows in .*absent\.jsonl"):
        write_report(tmp_path / "absent.jsonl", tmp_path / "r.html", "t")


@pytest.mark.parametrize(
    "rows",
    [
        [result_row()],
        [failed_row(error="boom")],
        [result_row(method="zero_shot", k=0, steps=0, curve=[], best_step=None)],
        [result_row(method="spot", sources=["a"])],
        [result_row(score=0.0), result_row(cell="c1", method="spot", sources=["a"], score=-0.2)],
    ],
    ids=["one cell", "only failures", "only zero-shot", "no baseline", "no relative gain"],
)
def test_little_to_say_is_said(tmp_path, rows):
    page = Page(write_report(rows, tmp_path / "r.html", "t"))
    assert "How this was made" in page.text
    assert "nan" not in page.text
    assert "None" not in page.text


def test_names_cannot_break_out(tmp_path):
    path = write_report(hostile_rows(), tmp_path / "r.html", HOSTILE, command=HOSTILE)
    page = Page(path)
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == [
        "application/json",
        None,
        None,
    ]
    assert not [tag for tag, _ in page.tags if tag in ("img", "b", "iframe", "link", "object")]
    figures = whole(json.loads(page.scripts[0]))
    figure = figures["curves"]
    assert figure["controls"][0]["options"] == [HOSTILE]  # set as text, not as markup
    (view,) = figures["scores"]["views"].values()
    assert all(html.escape(HOSTILE, quote=False) in text for text in view["data"][1]["text"])
    assert HOSTILE[:20] not in json.dumps(view)


def whole(data):
    """The figures of a page with what they share in its place, as report.js puts it together."""

    def put_back(value):
        if isinstance(value, list):
            return [put_back(part) for part in value]
        if not isinstance(value, dict):
            return value
        own = {name: put_back(part) for name, part in value.items() if name != "$"}
        if "$" not in value:
            return own
        shared = put_back(data["parts"][value["$"]])
        return {**shared, **own} if own else shared

    return put_back(data["figures"])


def test_what_figures_share_is_put_back_and_the_page_is_smaller(tmp_path):
    report = make_report(grid_rows(), "t")
    (script, *_) = Page(report.write_page(tmp_path / "r.html")).scripts
    figures = {plot.name: plot.to_json() for section in report.sections for plot in section.plots}
    assert whole(json.loads(script)) == figures
    assert len(script) < 0.6 * len(json.dumps(figures))


def hostile_rows():
    hostile = {"family": HOSTILE, "target": HOSTILE, "metric": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    return [
        *(result_row(cell=f"p{s}", seed=s, **hostile) for s in (1, 2)),
        *(result_row(cell=f"h{s}", seed=s, method=HOSTILE, sources=[HOSTILE], **hostile) for s in (1, 2)),
        failed_row(cell=HOSTILE, seed=3, error=HOSTILE, **hostile),
    ]


class Declared(dict):
    """Entry points by name, as plugins.load_plugins gives them."""

    def describe(self, name):
        return f"{name!r} (of a package)"


def test_other_packages_add_sections(tmp_path, monkeypatch):
    def ours(grid):
        rows = tuple((TableCell(method),) for method in grid.methods)
        return Section("Ours", ((None, (Table("ours", "Our table", "A note.", columns("Method"), rows),)),))

    declared = Declared(ours=ours, silent=lambda grid: None)
    monkeypatch.setattr(report_page.plugins, "load_plugins", lambda group: declared if group.endswith("tables") else {})
    report = make_report(grid_rows(ks=(16,)), "t")
    assert [section.title for section in report.sections][-1] == "Ours"
    assert "Our table" in Page(report.write_page(tmp_path / "r.html")).text
    assert "ours.csv" in [table.file_name for table in report.tables]
    declared["wrong"] = lambda grid: "text"
    with pytest.raises(SpecError, match=r"'wrong' \(of a package\) returned 'text'; expected a .*Section or None"):
        _ = make_report(grid_rows(ks=(16,)), "t").sections


def test_a_report_needs_no_model_and_plotly_only_for_the_page(tmp_path):
    heavy = ("transformers", "sklearn", "promptprior.compare", "promptprior.backbone", "promptprior.methods")
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in grid_rows(ks=(16,))))
    code = (
        "import sys; from pathlib import Path; from promptprior.report.page import make_report\n"
        "folder = Path(sys.argv[1]); report = make_report(folder / 'results.jsonl')\n"
        "report.write_markdown(folder / 'r.md'); print('plotly' in sys.modules)\n"
        "report.write_page(folder / 'r.html'); print('plotly' in sys.modules)\n"
        f"print([module for module in {heavy} if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["False", "True", "[]"]


def test_the_report_of_the_demonstration_is_under_two_megabytes(tmp_path):
    rows = Path(__file__).parents[2] / "docs" / "studies" / "results" / "demo.jsonl"
    assert make_report(rows).write_page(tmp_path / "report.html").stat().st_size < 2e6


# In a real browser --------------------------------------------------------------------------------------

chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the path")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive chromium")
    with playwright.sync_playwright() as p:  # launch gives each run a fresh user data folder
        running = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    rows = [*grid_rows(), failed_row(cell="f", method="spot", seed=87, error="boom")]
    return write_report(rows, tmp_path_factory.mktemp("report") / "report.html", "A title", missing=7)


DRAWN = "[...document.querySelectorAll('figure')].every(f => f.querySelector('.main-svg .trace'))"


def open_page(browser, path, **options):
    """A page once its plots are drawn, with what it said and asked for."""
    page = browser.new_context(**options).new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri(), timeout=SLOW)
    until(page, DRAWN)
    return page, said, asked


def until(page, condition, seconds=SLOW / 1000):
    """Wait for a condition. (The page's security policy refuses playwright's own waiting, which evals.)"""
    for _ in range(int(seconds * 20)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


def drawn(page):
    """How many traces each plot shows."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].map(f => "
        "[f.dataset.plot, f.querySelectorAll('.main-svg .trace').length]))"
    )


PHONE = {"viewport": {"width": 375, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.mark.chromium
@chromium
def test_every_plot_is_drawn_in_silence_and_without_the_network(browser, report):
    page, said, asked = open_page(browser, report)
    assert drawn(page) == {
        "scores": 8, "shots": 4, "curves": 12, "cost": 9, "adaptation": 3, "ranks": 4
    }  # fmt: skip
    heights = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.getBoundingClientRect().height)")
    assert min(heights) >= 200
    names = sorted(TARGETS, key=lambda name: (TARGETS[name][0], name))  # by family, then name
    shown = page.evaluate("[...document.querySelector('figure[data-plot=scores] .plot').data.at(-1).x]")
    for name, mean in zip(names, shown, strict=True):
        scores = [r["score"] for r in grid_rows() if (r["method"], r["target"], r["k"]) == ("spot", name, 16)]
        assert mean == pytest.approx(sum(scores) / len(scores), rel=1e-4)
    assert said == []
    assert asked == [report.as_uri()]
    page.context.close()


@pytest.fixture(scope="module")
def full_report(tmp_path_factory):
    """A report with everything in it."""
    rows = [*grid_rows(), *bank_rows(targets=tuple(TARGETS))]
    path = tmp_path_factory.mktemp("full") / "report.html"
    return write_report(rows, path, "A title", task_similarity=parse(TaskSimilarity, task_similarity(), "here"))


@pytest.mark.chromium
@chromium
def test_similarity_and_retrieval_are_drawn(browser, full_report):
    page, said, asked = open_page(browser, full_report)
    assert drawn(page).keys() >= {"similarity", "similarity-gain", "map"}
    cells = "document.querySelector('figure[data-plot={}] .plot').data[1].customdata"
    assert page.evaluate(cells.format("similarity"))[0] == pytest.approx(0.16 * 4)  # country_of to capital_of
    shares = page.evaluate(cells.format("map"))
    tasks, tokens = 2 + len(TARGETS), len(shares) // (2 + len(TARGETS))
    assert sum(shares[::tokens]) >= sum(shares[tokens - 1 :: tokens])  # the most used tokens come first
    fields = "[...document.querySelectorAll('figure[data-plot=map] .bars path')].map(p => getComputedStyle(p).{})"
    opacities = [float(value) for value in page.evaluate(fields.format("opacity"))]
    assert len(opacities) == len(shares) == tasks * tokens
    assert opacities == pytest.approx(shares, abs=1e-3)
    page.select_option("figure[data-plot=similarity] select", label="label")
    until(page, f"{cells.format('similarity')}[0] !== {0.16 * 4}")
    assert (said, len(asked)) == ([], 1)
    page.context.close()


@pytest.mark.chromium
@chromium
def test_a_phone_never_scrolls_sideways(browser, full_report):
    page, said, _ = open_page(browser, full_report, **PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    wide = page.evaluate("[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length")
    assert wide > 0  # tables do scroll, inside their own box
    plots = page.evaluate("[...document.querySelectorAll('.plot .main-svg')].map(s => s.getBoundingClientRect().right)")
    assert max(plots) <= 375
    assert said == []
    page.context.close()


@pytest.mark.chromium
@chromium
def test_plots_follow_the_window(browser, report):
    page, _, _ = open_page(browser, report, viewport={"width": 1280, "height": 800})
    page.set_viewport_size({"width": 600, "height": 800})
    until(
        page,
        "[...document.querySelectorAll('.plot .main-svg')].every(s => s.getBoundingClientRect().right <= 600)",
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 600
    page.context.close()


COLOURS = """() => ({
  page: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  plot: getComputedStyle(document.querySelector('.xtick text')).fill,
  line: getComputedStyle(document.querySelector('figure[data-plot=curves] .js-line')).stroke,
})"""


@pytest.mark.chromium
@chromium
def test_dark_mode_applies_to_page_and_plots_even_while_open(browser, report):
    page, said, _ = open_page(browser, report, color_scheme="light")
    light = page.evaluate(COLOURS)
    page.emulate_media(color_scheme="dark")
    until(page, f"getComputedStyle(document.querySelector('.xtick text')).fill !== '{light['plot']}'")
    switched = page.evaluate(COLOURS)
    page.context.close()
    page, _, _ = open_page(browser, report, color_scheme="dark")
    dark = page.evaluate(COLOURS)
    page.context.close()
    assert switched == dark
    assert all(light[key] != dark[key] for key in light)
    assert light["plot"] == light["ink"]
    assert dark["plot"] == dark["ink"]
    assert said == []


@pytest.mark.chromium
@chromium
def test_text_stands_out_from_its_ground_in_both_modes(browser, report):
    page, _, _ = open_page(browser, report)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        names = ["ink", "muted", "better", "worse", "m-base", *(f"m{i}" for i in range(8))]
        values = page.evaluate(
            "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n))",
            [*names, "paper", "raised", "notice", "notice-ink"],
        )
        *inks, paper, raised, notice, notice_ink = (v.strip() for v in values)
        wanted = dict.fromkeys(names, 3.0) | dict.fromkeys(["ink", "muted", "better", "worse"], 4.5)
        for name, colour in zip(names, inks, strict=True):
            assert contrast(colour, paper) >= wanted[name], (scheme, name)
        assert all(contrast(inks[i], raised) >= 4.5 for i in range(4)), scheme
        assert contrast(notice_ink, notice) >= 4.5
    page.context.close()


def contrast(a, b):
    """WCAG's contrast ratio of two hex colours."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.chromium
@chromium
def test_controls_change_their_plot(browser, report):
    page, said, _ = open_page(browser, report)
    title = "document.querySelector('figure[data-plot=curves] .ytitle').textContent"
    assert page.evaluate(title) == "dev score"
    page.select_option("figure[data-plot=curves] label:has-text('curve') select", label="training loss")
    until(page, f"{title} === 'training loss'")
    x = "document.querySelector('figure[data-plot=scores] .plot').data.at(-1).x[0]"
    at_16 = page.evaluate(x)
    page.select_option("figure[data-plot=scores] select", label="4")
    until(page, f"{x} !== {at_16}")
    assert said == []
    page.context.close()


@pytest.mark.chromium
@chromium
def test_hostile_names_do_nothing_but_be_shown(browser, tmp_path):
    path = write_report(hostile_rows(), tmp_path / "r.html", HOSTILE, command=HOSTILE)
    page, said, asked = open_page(browser, path, **PHONE)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.images.length") == 0
    assert page.title() == HOSTILE
    assert HOSTILE[:38] in page.text_content("figure[data-plot=scores] .legend")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert (said, len(asked)) == ([], 1)
    page.context.close()


@pytest.mark.chromium
@chromium
def test_a_single_cell_still_draws(browser, tmp_path):
    path = write_report([result_row()], tmp_path / "r.html", "t")
    page, said, _ = open_page(browser, path)
    assert drawn(page) == {"scores": 2, "curves": 2, "cost": 2}  # one k: no few-shot curve
    assert said == []
    page.context.close()
