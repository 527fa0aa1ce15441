"""The playground in a real browser: by keyboard alone, on a phone, in the dark, and without any other machine."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from promptprior.serve.gate import read_keys
from tests.report.test_page import CHROMIUM, PHONE, SLOW, browser, contrast, until  # noqa: F401
from tests.serve.served import Running, running

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the path"),
]
KEY = "a-key-of-many-letters"
CARDS = "document.querySelectorAll('.card').length === {}"


@dataclass
class Listening:
    """A server on a port of the loopback."""

    server: Running
    url: str


@pytest.fixture(scope="module")
def listening(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    keys = tmp_path_factory.mktemp("playground") / "keys"
    keys.write_text(f"anna {KEY}\n")
    with running(folder, read_keys(keys)) as server:
        http = uvicorn.Server(uvicorn.Config(server.app, port=0, log_config=None, lifespan="off"))
        thread = threading.Thread(target=http.run)
        thread.start()
        while not http.started:
            time.sleep(0.01)
        yield Listening(server, f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}/")
        http.should_exit = True
        thread.join()


def open_page(browser: Any, listening: Listening, **options: Any) -> tuple[Any, list[str], list[str]]:  # noqa: F811
    """The page, what it said and asked for, and the list of prompts, which the key opens."""
    page = browser.new_context(**options).new_page()
    said, asked = list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(listening.url, timeout=SLOW)
    until(page, "!document.getElementById('key-row').hidden")
    assert "a key is needed" in page.inner_text("#about")
    page.keyboard.press("Tab")
    page.keyboard.type(KEY)
    page.keyboard.press("Tab")
    until(page, "document.querySelectorAll('#prompts input').length === 16")
    return page, said, asked


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.value")


def test_keyboard_alone_compares_prompts(browser: Any, listening: Listening, tmp_path: Path) -> None:  # noqa: F811
    page, said, asked = open_page(browser, listening, viewport={"width": 1100, "height": 800})
    press = page.keyboard.press
    assert focused(page) == "filter"
    page.keyboard.type("plain")
    until(page, "document.querySelectorAll('#prompts label:not([hidden])').length === 3")
    for name in ("plain-13", "plain-21"):
        press("Tab")
        assert focused(page) == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        press("Space")
    press("Tab")
    press("Tab")
    assert focused(page) == "text"
    page.keyboard.type("<b>apple</b>")
    press("Control+Enter")
    until(page, CARDS.format(3))  # the first prompt was chosen at the start
    assert page.inner_text("#status") == "3 answers"
    shown = page.evaluate("[...document.querySelectorAll('.card')].map(c => c.innerText)")
    for name, card in zip(("attempt", "plain-13", "plain-21"), shown, strict=True):
        response = listening.server.predict(name, ["<b>apple</b>"], Authorization=f"Bearer {KEY}")
        [answer] = response.json()["answers"]
        assert card.startswith(f"{name}\n")
        assert answer["label"] in card.splitlines()
        assert all(f"{share:.3f}" in card for share in answer["probabilities"].values())
        assert " ms" in card
    press("Tab")
    assert focused(page) == "ask"
    press("Enter")
    until(page, "!document.getElementById('ask').disabled")
    assert {url.removeprefix(listening.url) for url in asked if not url.startswith("data:")} == {
        "", "v1/models", "v1/predict"
    }  # fmt: skip
    page.screenshot(path=tmp_path / "wide.png", full_page=True)
    assert [line for line in said if "401" not in line] == []
    page.context.close()


def test_a_phone_in_the_dark(browser: Any, listening: Listening, tmp_path: Path) -> None:  # noqa: F811
    page, said, _ = open_page(browser, listening, **PHONE, color_scheme="dark")
    for name in ("blend", "writer-13"):
        page.check(f"#prompts input[value={name}]")
    page.fill("#text", "a" * 100)
    page.click("#ask")
    until(page, CARDS.format(3))
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    page.fill("#text", "a" * 500)
    page.click("#ask")
    until(page, "document.querySelectorAll('.card .error').length === 3")
    assert "do not fit into the 128" in page.inner_text(".card .error")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        names = ["ink", "muted", "accent", "worse", "edge", "paper", "raised", "on-accent"]
        values = page.evaluate(
            "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())",
            names,
        )
        colour = dict(zip(names, values, strict=True))
        assert all(contrast(colour[n], colour[on]) >= 4.5 for n in names[:4] for on in ("paper", "raised")), scheme
        assert contrast(colour["on-accent"], colour["accent"]) >= 4.5
        assert contrast(colour["edge"], colour["raised"]) >= 3
    assert [line for line in said if "401" not in line and "400" not in line] == []
    page.context.close()
