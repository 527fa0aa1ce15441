"""A server of many prompts answers as single calls do, whatever it is asked, and whatever happens to its folder."""

import asyncio
import hashlib
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from promptprior.artifacts.artifact import Prompt
from promptprior.cli import main
from promptprior.errors import SpecError
from promptprior.evaluate import PromptRequest, answer_requests
from promptprior.serve.gate import read_keys
from promptprior.tasks.loading.new_rows import unlabelled_task
from promptprior.tasks.loading.readers import rows_of
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.serve.served import Running, backbone, running

WORDS = ("apple", "zebra", "moon and stars", "night", "a")
ALONE = tuple((word,) for word in WORDS)
PAIRS = (("a", "night"),)
TOLERANCE = 1e-6  # transformers computes norms and softmax in float32


@cache
def expected(path: Path, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """What a single call of answer_requests says of texts, in the form of /v1/predict."""
    prompt = Prompt.from_pretrained(path, backbone().card)
    [card] = [card for card in prompt.header.tasks if card.role == "target"]
    column = "prompt" if Path(card.path).stem == "shorten" else "text"
    task, _ = unlabelled_task(card.path, rows_of([{column: text} for text in texts], "here"))
    [answers] = answer_requests(backbone(), [PromptRequest(prompt, task, task.split("test"))], reads_targets=False)
    if not task.is_choice:
        return [{"text": p.text} for p in answers.predictions]
    return [
        {"label": p.text, "probabilities": dict(zip(e.choices, p.probabilities, strict=True))}
        for p, e in zip(answers.predictions, task.split("test"), strict=True)
    ]


def same(got: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    if [a.get("label", a.get("text")) for a in got] != [a.get("label", a.get("text")) for a in wanted]:
        return False
    pairs = zip(got, wanted, strict=True)
    return all(a.get("probabilities", {}) == pytest.approx(b.get("probabilities", {}), abs=TOLERANCE) for a, b in pairs)


async def ask_all(server: Running, bodies: list[dict[str, Any]], path: str = "/v1/predict") -> list[httpx.Response]:
    """The responses to many requests that are sent at once."""
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        return list(await asyncio.gather(*(client.post(path, json=body) for body in bodies)))


class Held:
    """While inside, the server's model is busy."""

    def __init__(self, server: Running) -> None:
        self.release, self.begun = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=lambda: server.server.worker.call(self.wait))

    def wait(self) -> None:
        self.begun.set()
        self.release.wait(60)

    def __enter__(self) -> "Held":
        self.thread.start()
        assert self.begun.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.thread.join()


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("never true")


# Answers ------------------------------------------------------------------------------------------------------------


def test_a_thousand_mixed_requests_answer_as_single_calls_do(folder: Path) -> None:
    draw, names = random.Random(0), sorted(path.name for path in folder.iterdir())
    assert len(names) == 16
    asked = [(draw.choice(names), draw.choice(ALONE[:3] + PAIRS)) for _ in range(1000)]
    with running(folder, queue=1000, batch_texts=256) as server:
        bodies = [{"model": name, "texts": [*texts]} for name, texts in asked]
        responses = asyncio.run(ask_all(server, bodies))
        shared = server.server.metrics.batch_requests
    assert {r.status_code for r in responses} == {200}
    wrong = [
        (name, texts)
        for (name, texts), r in zip(asked, responses, strict=True)
        if not same(r.json()["answers"], expected(folder / name, texts))
    ]
    assert wrong == []
    [count] = [s.value for m in shared.collect() for s in m.samples if s.name.endswith("_count")]
    assert count < 100  # of a thousand requests: they shared batches


def test_keys_and_values_are_kept_within_their_bound_and_change_no_answer(folder: Path) -> None:
    names = ("plain-13", "plain-21", "plain-42", "prompted-linear")
    for megabytes in (0, 1):
        with running(folder, cache_mb=megabytes) as server:
            cache = server.server.worker.cache
            if megabytes:
                cache.most_bytes = (
                    4 * 2 * 2 * 2 * 8 * 8 * 2
                )  # two prompts: positions, layers, K and V, heads, width, bytes
            for _ in range(2):
                for name in names:
                    assert same(server.predict(name, [*WORDS]).json()["answers"], expected(folder / name, WORDS))
            assert len(cache.kept) == 2 * megabytes
            assert cache.used_bytes == sum(kept.size for kept in cache.kept.values()) <= cache.most_bytes
            for kept in cache.kept.values():
                kept.used -= 61
            assert server.predict("plain-42", ["apple"]).status_code == 200
            if megabytes:  # who has not been asked for a minute makes room
                prompt = server.server.folder.contents.prompts["plain-42"].prompt
                assert id(prompt) in cache.kept
                assert len(cache.kept) == 2


def test_rows_and_texts_are_the_same_question(folder: Path) -> None:
    with running(folder) as server:
        texts, rows = (server.predict("plain-13", [x]).json()["answers"] for x in ("apple", {"text": "apple", "id": 7}))
        assert texts == rows
        assert "'text'" in server.predict("plain-13", [{"word": "apple"}]).json()["error"]["message"]
        half = json.dumps({"model": "plain-13", "texts": ["\ud800"]}).encode()  # of a pair of surrogates
        refused = server.client.post("/v1/predict", content=half, headers={"Content-Type": "application/json"})
        assert (refused.status_code, "surrogate" in refused.text) == (400, True)
        described = {m["id"]: m for m in server.client.get("/v1/models").json()["data"]}
    assert described["linear-probe"]["labels"] == ["no", "yes"] == described["plain-13"]["labels"]
    assert (described["writer-13"]["answers"], described["writer-13"]["columns"]) == ("text", ["prompt"])


# Free text ----------------------------------------------------------------------------------------------------------


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_streamed_text_is_the_text_that_is_not_streamed_and_the_engines(folder: Path) -> None:
    prompts = [*WORDS]
    with running(folder) as server:
        for name in ("writer-13", "writer-21"):
            body = {"model": name, "prompt": prompts, "max_tokens": 12}
            plain = server.client.post("/v1/completions", json=body).json()
            texts = [choice["text"] for choice in plain["choices"]]
            streamed = [""] * len(prompts)
            options = {"stream": True, "stream_options": {"include_usage": True}}
            *events, last = events_of(server.client.post("/v1/completions", json=body | options))
            for event in events:
                [choice] = event["choices"]
                streamed[choice["index"]] += choice["text"]
            assert streamed == texts
            assert last["usage"] == plain["usage"]
            assert len(events) > len(prompts)  # piece by piece

            prompt = Prompt.from_pretrained(folder / name, backbone().card)
            tokens = backbone().tokens(prompts, [["?"]] * len(prompts))
            engine = backbone().generate(prompt.params["prompt"], collate(tokens), 12)
            assert texts == engine
            assert plain["usage"]["prompt_tokens"] == sum(map(len, prompts))  # a token is a character here


def test_texts_end_at_stops_and_at_their_own_length_though_they_grow_together(folder: Path) -> None:
    with running(folder) as server:
        body: dict[str, Any] = {"model": "writer-21", "prompt": [*WORDS], "max_tokens": 12}
        choices = server.client.post("/v1/completions", json=body).json()["choices"]
        whole = max(choices, key=lambda choice: len({*choice["text"]}))  # not one letter again and again
        assert (whole["finish_reason"], len(whole["text"])) == ("length", 12)
        body["prompt"] = WORDS[whole["index"]]
        bodies = [body | {"max_tokens": n} for n in (1, 5, 12)] + [body | {"stop": whole["text"][4:6]}]
        with Held(server):
            task = threading.Thread(target=lambda: got.extend(asyncio.run(ask_all(server, bodies, "/v1/completions"))))
            got: list[httpx.Response] = []
            task.start()
            eventually(lambda: len(server.server.worker.queue) == 4)
        task.join()
        texts = [r.json()["choices"][0] for r in got]
        at = whole["text"].index(whole["text"][4:6])
        assert [t["text"] for t in texts] == [whole["text"][:n] for n in (1, 5, 12, at)]
        assert [t["finish_reason"] for t in texts] == ["length"] * 3 + ["stop"]
        stopped = events_of(server.client.post("/v1/completions", json=bodies[3] | {"stream": True}))
        assert "".join(e["choices"][0]["text"] for e in stopped) == whole["text"][:at]


def test_chats_are_their_contents_and_labels_come_through_openais_door(folder: Path) -> None:
    parts = [{"type": "text", "text": "moon"}, {"type": "text", "text": "stars"}]
    with running(folder) as server:
        for name in ("blend", "linear-probe", "tpt"):
            body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "apple"}]}
            label = expected(folder / name, ("apple",))[0]["label"]
            choice = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]
            assert choice["message"] == {"role": "assistant", "content": label}
            [event] = events_of(server.client.post("/v1/chat/completions", json=body | {"stream": True}))
            assert event["choices"][0]["delta"] == {"role": "assistant", "content": label}
        chat = {"model": "writer-13", "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 5}
        text = {"model": "writer-13", "prompt": "moon\nstars", "max_tokens": 5}
        spoken = server.client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
        assert spoken == server.client.post("/v1/completions", json=text).json()["choices"][0]["text"]


# Load ---------------------------------------------------------------------------------------------------------------


def test_overload_gives_429_alone_and_ends_at_once(folder: Path) -> None:
    bodies = [{"model": "plain-13", "texts": ["apple"]}] * 100
    with running(folder, queue=8) as server:
        got: list[httpx.Response] = []
        with Held(server):
            task = threading.Thread(target=lambda: got.extend(asyncio.run(ask_all(server, bodies))))
            task.start()
            eventually(lambda: len(server.server.worker.queue) == 8)
            refused = server.client.post("/v1/predict", content=b"{" * 1000)  # without a look at what it says
            assert refused.status_code == 429
            assert server.client.get("/health").json()["in_flight"] == 8
        task.join()
        assert sorted(r.status_code for r in got) == [200] * 8 + [429] * 92
        assert {int(r.headers["retry-after"]) >= 1 for r in got if r.status_code == 429} == {True}
        assert server.server.worker.longest == 8
        assert server.predict("plain-13", ["apple"]).status_code == 200
        assert server.client.get("/health").json()["in_flight"] == 0


def test_who_waits_too_long_is_refused_and_the_others_are_answered(folder: Path) -> None:
    with running(folder, deadline=0.2) as server:
        got: list[httpx.Response] = []
        with Held(server) as held:
            task = threading.Thread(
                target=lambda: got.extend(asyncio.run(ask_all(server, [{"model": "plain-13", "texts": ["apple"]}] * 3)))
            )
            task.start()
            eventually(lambda: len(server.server.worker.queue) == 3)
            held.release.wait(0.3)
        task.join()
        assert [(r.status_code, r.json()["error"]["code"]) for r in got] == [(429, "overloaded")] * 3
        assert server.predict("plain-13", ["apple"]).status_code == 200


def test_a_shutdown_answers_what_was_accepted(folder: Path) -> None:
    bodies = [{"model": name, "texts": ["apple"]} for name in ("plain-13", "blend", "writer-13", "tpt")]
    with running(folder) as server:
        got: list[httpx.Response] = []
        worker, held = server.server.worker, Held(server)
        with held:
            task = threading.Thread(target=lambda: got.extend(asyncio.run(ask_all(server, bodies))))
            task.start()
            eventually(lambda: len(worker.queue) == 4)
            closing = threading.Thread(target=worker.close)
            closing.start()
            eventually(lambda: worker.is_closing)
        closing.join()
        task.join()
        assert not worker.thread.is_alive()
        assert [r.status_code for r in got] == [200] * 4
        assert all(
            same(r.json()["answers"], expected(folder / b["model"], ("apple",)))
            for r, b in zip(got, bodies, strict=True)
        )
        assert server.client.get("/health").status_code == 503


# The folder ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    for name in ("plain-13", "plain-21", "zero-shot"):
        shutil.copytree(folder / name, tmp_path / "prompts" / name)
    return tmp_path / "prompts"


def test_a_prompt_that_is_replaced_under_load_answers_as_it_was_or_is(folder: Path, own_folder: Path) -> None:
    versions = [Prompt.from_pretrained(folder / f"plain-{seed}", backbone().card) for seed in (13, 21)]
    texts, served = ("apple", "zebra"), own_folder / "plain-13"
    wanted = [expected(folder / f"plain-{seed}", texts) for seed in (13, 21)]
    assert not same(*wanted)
    with running(own_folder, queue=1000) as server:

        async def ask_and_replace() -> list[httpx.Response]:
            responses, body = list[httpx.Response](), {"model": "plain-13", "texts": [*texts]}
            for turn in range(4):
                asking = asyncio.create_task(ask_all(server, [body] * 15))
                await asyncio.sleep(0)
                await asyncio.to_thread(versions[(turn + 1) % 2].save_pretrained, served)
                await asyncio.to_thread(server.server.folder.look)
                responses += await asking
            return responses

        responses = asyncio.run(ask_and_replace())
        changes = [line for line in server.lines if line.get("change") == "replaced"]
        last = server.predict("plain-13", [*texts]).json()["answers"]
    assert [r.status_code for r in responses] == [200] * 60
    seen = [[same(r.json()["answers"], one) for one in wanted] for r in responses]
    assert all(sum(which) == 1 for which in seen)
    assert len(changes) == 4
    assert same(last, wanted[0])  # four changes: the first again


def test_a_folder_that_breaks_is_reported_and_what_it_was_stays(folder: Path, own_folder: Path) -> None:
    with running(own_folder) as server:
        looks, health = server.server.folder.look, lambda: server.client.get("/health").json()
        tensors = own_folder / "plain-13" / "adapter_model.safetensors"
        whole = tensors.read_bytes()
        tensors.write_bytes(whole[: len(whole) // 2])
        looks()
        assert "adapter_model.safetensors" in health()["broken"]["plain-13"]
        assert same(server.predict("plain-13", ["apple"]).json()["answers"], expected(folder / "plain-13", ("apple",)))
        looks()  # said once
        assert len([line for line in server.lines if line["event"] == "broken prompt"]) == 1
        tensors.write_bytes(whole)
        looks()
        assert health()["broken"] == {}
        for name, files in {
            "no prompt": {},
            "bad name": {"promptprior.json": "{}"},
            "half": {"promptprior.json": "{"},
        }.items():
            (own_folder / name).mkdir()
            for file, text in files.items():
                (own_folder / name / file).write_text(text)
        looks()
        assert health()["broken"].keys() == {"bad name", "half"}
        assert "rename the folder" in health()["broken"]["bad name"]
        assert server.predict("half", ["apple"]).status_code == 404


def test_prompts_come_and_go_and_another_models_never_come(folder: Path, own_folder: Path, tmp_path: Path) -> None:
    with running(own_folder) as server:
        names = lambda: {m["id"] for m in server.client.get("/v1/models").json()["data"]}  # noqa: E731
        shutil.copytree(folder / "blend", own_folder / "blend")
        other = Prompt.from_pretrained(folder / "plain-42")
        card = replace(other.header.backbone, fingerprint="0" * 16)
        Prompt(replace(other.header, backbone=card), other.params).save_pretrained(own_folder / "other")
        server.server.folder.look()
        assert names() == {"plain-13", "plain-21", "zero-shot", "blend"}
        assert "cannot be used with tiny-llama" in server.client.get("/health").json()["broken"]["other"]
        shutil.rmtree(own_folder / "plain-21")
        server.server.folder.look()
        assert "plain-21" in names()  # it may be in the middle of a replacement
        server.server.folder.look()
        assert "plain-21" not in names()
        assert server.predict("plain-21", ["apple"]).status_code == 404
    shutil.copytree(folder / "plain-13", own_folder / "from-peft", ignore=shutil.ignore_patterns("promptprior.json"))
    with running(own_folder) as server:  # names no task: it writes after texts as they are
        body = {"model": "from-peft", "prompt": "apple", "max_tokens": 3}
        assert server.client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"] == 5
        assert "row 2: the text is empty" in server.predict("from-peft", ["apple", " "]).json()["error"]["message"]
    with running(own_folder / "zero-shot") as server:  # one prompt is a folder of one
        assert [m["id"] for m in server.client.get("/v1/models").json()["data"]] == ["zero-shot"]


# What is refused ----------------------------------------------------------------------------------------------------

KEY = "a-key-of-many-letters"


def test_keys(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\nanna {KEY}\n\nbob another-{KEY}\n")
    keys = read_keys(file)
    assert keys == {
        "anna": hashlib.sha256(KEY.encode()).digest(),
        "bob": hashlib.sha256(f"another-{KEY}".encode()).digest(),
    }
    with running(folder / "plain-13", keys) as server:
        for header in ("", KEY, f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer", f"Bearer {KEY} x"):
            refused = server.predict("plain-13", ["apple"], Authorization=header)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert {server.client.get(p).status_code for p in ("/v1/models", "/metrics", "/openapi.json", "/none")} == {401}
        assert server.client.get("/health").json() == {"status": "ok"}
        assert server.client.get("/").status_code == 200
        assert server.predict("plain-13", ["apple"], Authorization=f"Bearer {KEY}").status_code == 200
        assert server.lines[-1]["key"] == "anna"
        assert KEY not in json.dumps(server.lines)
    for text, reason in {"anna short": "at least 16", f"{KEY}\n": "a name, a space", "": "no key in it",
                         f"anna {KEY}\nbob {KEY}": "stands there before"}.items():  # fmt: skip
        file.write_text(text)
        with pytest.raises(SpecError, match=reason):
            read_keys(file)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Running]:
    with running(folder, body_bytes=3000, texts=4, tokens=200, new_tokens=20) as server:
        yield server


CHAT: dict[str, Any] = {"model": "writer-13", "messages": [{"role": "user", "content": "apple"}]}
WRITE: dict[str, Any] = {"model": "writer-13", "prompt": "apple"}
REFUSED = [
    ("/v1/predict", {"model": "plain-13", "texts": []}, 400, "texts"),
    ("/v1/predict", {"model": "plain-13", "texts": ["a"] * 5}, 413, "at most 4"),
    ("/v1/predict", {"model": "plain-13", "texts": ["a" * 100, "b" * 101]}, 413, "215 tokens"),
    ("/v1/predict", {"model": "plain-13", "texts": ["a" * 180]}, 400, "do not fit into the 128"),
    ("/v1/predict", {"model": "plain-13", "texts": ["a" * 3000]}, 413, "3,000 bytes"),
    ("/v1/predict", {"model": "plain-99", "texts": ["a"]}, 404, "'plain-99'"),
    ("/v1/predict", {"model": "../plain-13", "texts": ["a"]}, 400, "model"),
    ("/v1/predict", {"model": "a" * 101, "texts": ["a"]}, 400, "model"),
    ("/v1/predict", {"model": "plain-13", "texts": [["a"]]}, 400, "texts"),
    ("/v1/completions", WRITE | {"max_tokens": 21}, 400, "at most 20"),
    ("/v1/completions", WRITE | {"temperature": 0.7}, 400, "temperature"),
    ("/v1/completions", WRITE | {"n": 2}, 400, "n:"),
    ("/v1/completions", WRITE | {"stop": ["a"] * 5}, 400, "at most 4"),
    ("/v1/completions", WRITE | {"prompt": []}, 400, "at least one"),
    ("/v1/chat/completions", CHAT | {"messages": []}, 400, "messages"),
    (
        "/v1/chat/completions",
        CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages",
    ),
    ("/v1/chat/completions", CHAT | {"model": "attempt", "messages": [{"role": "user", "content": " "}]}, 400, "empty"),
]


@pytest.mark.parametrize(("path", "body", "status", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_says_why(plain: Running, path: str, body: dict[str, Any], status: int, reason: str) -> None:
    response = plain.client.post(path, json=body)
    assert (response.status_code, reason in response.json()["error"]["message"]) == (status, True), response.text
    assert plain.client.get("/health").json()["in_flight"] == 0


def test_bodies_that_are_no_json_and_pages_that_are_not_there(plain: Running) -> None:
    for body in (b"", b"{", b"[" * 2000, b"\xff", b'{"model": 1' + b"0" * 2000 + b"}"):
        response = plain.client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, body
    assert plain.client.get("/docs").status_code == 404
    assert plain.client.get("/v1/predict").status_code == 405
    assert plain.client.get("/openapi.json").json()["paths"].keys() >= {"/v1/predict", "/v1/completions"}


def test_only_hosts_that_it_listens_as_are_answered(folder: Path) -> None:
    with running(folder / "plain-13", hosts=("localhost", "127.0.0.1", "::1", "[::1]")) as server:
        hosts = ("localhost:8000", "127.0.0.1", "[::1]:8000", "stranger.example", "localhost.stranger.example")
        asked = [server.client.get("/health", headers={"Host": host}).status_code for host in hosts]
    assert asked == [200, 200, 200, 400, 400]


def test_one_wrong_request_does_not_touch_those_beside_it(folder: Path) -> None:
    names = ("plain-13", "blend", "prefix-13")
    bodies = [{"model": name, "texts": ["apple"]} for name in names] + [{"model": "plain-21", "texts": ["a" * 500]}]
    with running(folder) as server:
        got: list[httpx.Response] = []
        broken = server.server.folder.contents.prompts["tpt"].prompt  # what a check of shapes does not see
        next(iter(broken.params.values())).resize_(1, 0)
        bodies.append({"model": "tpt", "texts": ["apple"]})
        with Held(server):
            task = threading.Thread(target=lambda: got.extend(asyncio.run(ask_all(server, bodies))))
            task.start()
            eventually(lambda: len(server.server.worker.queue) == len(bodies))
        task.join()
        assert [r.status_code for r in got] == [200, 200, 200, 400, 500]
        for name, response in zip(names, got, strict=False):
            assert same(response.json()["answers"], expected(folder / name, ("apple",)))
        assert server.predict("plain-13", ["apple"]).status_code == 200
        [failure] = [line for line in server.lines if line.get("status") == 500]
        assert failure["reason"]
        assert "Error" not in got[-1].text  # nobody outside is told


def test_the_log_has_a_line_a_request_without_its_texts_and_metrics_count_it(folder: Path) -> None:
    with running(folder) as server:
        server.predict("plain-13", ["a secret", "another"])
        server.client.get("/no/such/page")
        first, second = [line for line in server.lines if line["event"] == "request"]
        assert {k: first[k] for k in ("method", "path", "status", "prompt", "texts", "tokens", "batch")} == {
            "method": "POST", "path": "/v1/predict", "status": 200, "prompt": "plain-13", "texts": 2, "tokens": 29,
            "batch": 1,
        }  # fmt: skip
        assert (second["status"], second["path"]) == (404, "/no/such/page")
        assert "secret" not in json.dumps(server.lines)
        text = server.client.get("/metrics").text
    assert 'promptprior_requests_total{route="/v1/predict",status="200"} 1.0' in text
    assert 'promptprior_requests_total{route="other",status="404"} 1.0' in text
    assert "promptprior_prompts 16.0" in text
    assert 'promptprior_tokens_total{kind="read"} 29.0' in text


def test_the_command_line_says_what_it_would_serve_and_what_it_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert main(["serve", *words]) == 2
        return capsys.readouterr().err

    assert "--keys FILE" in refused(str(folder), "--host", "0.0.0.0")
    assert "no such folder" in refused(str(tmp_path / "none"))
    assert "IP address" in refused(str(folder), "--host", "example.org")
    assert "queue" in refused(str(folder), "--queue", "0")


def test_steps_of_texts_can_be_ended_one_by_one() -> None:
    """The engine's side: what is sent ends, the others go on as they would alone."""
    prompt = backbone().frozen.embed(collate([Tokens((5, 6, 7), ((8,),))]).text_ids)  # [1, 3, D]
    batch = collate([Tokens((9, 10), ((8,),)), Tokens((11,), ((8,),)), Tokens((12, 13, 14), ((8,),))])
    whole = [list(ids) for ids in _ids(prompt, batch, {})]
    cut = _ids(prompt, batch, {1: 3})
    assert [len(ids) for ids in cut] == [len(whole[0]), min(3, len(whole[1])), len(whole[2])]
    assert all(ids == known[: len(ids)] for ids, known in zip(cut, whole, strict=True))


def _ids(prompt: Any, batch: Any, most: dict[int, int]) -> list[list[int]]:
    steps, ended, ids = backbone().token_steps(prompt, batch, 8), None, [list[int]() for _ in range(3)]
    while True:
        try:
            new = steps.send(ended)
        except StopIteration:
            return ids
        for x, more in new.items():
            ids[x] += more
        ended = [x for x in new if len(ids[x]) >= most.get(x, 100)]
