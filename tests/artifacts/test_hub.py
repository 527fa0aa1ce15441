"""Priors, prompts and results go to a Hub and come back: a stand-in on this machine that speaks what huggingface_hub
asks of the real one. Nothing here needs a network."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from promptprior.artifacts.artifact import Header, Prior, Prompt, TaskCard
from promptprior.artifacts.blending import blend_members, blended
from promptprior.backbone.identity import BackboneCard
from promptprior.cli import main
from promptprior.config.comparison_folder import ANSWERS
from promptprior.errors import ArtifactError
from tests.report.result_rows import answer_lines

CARD = BackboneCard("org/model", "LlamaForCausalLM", False, "f" * 16, 4, 0.02)
TASKS = (TaskCard("sst2", "1", "f" * 16, "target", ("train/1",), "/home/me/sst2.csv"),)
SCORES = {"test": {"accuracy": 0.75, "macro_f1": 0.7, "answer_nll": float("nan")}, "test_examples": 100}
FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


class Hub:
    """Repositories by "models/OWNER/NAME": the files of each commit, the newest last."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []

    def commit(self, repo: str, files: dict[str, bytes], deleted: Sequence[str] = ()) -> str:
        commits = self.repos.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        old = list(commits.values())[-1] if commits else {}
        commits[commit] = {**{name: data for name, data in old.items() if name not in deleted}, **files}
        return commit

    def reply(self, verb: str, host: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON or bytes, and headers."""
        parts = unquote(path).strip("/").split("/")
        self.asked.append(f"{verb} {path}")
        if parts[:2] == ["api", "validate-yaml"]:
            front = FRONT_MATTER.match(json.loads(body)["content"])
            read = yaml.safe_load(front[1]) if front else {}
            problem = [] if isinstance(read.get("license"), str) else [{"message": '"license" is missing'}]
            return (400 if problem else 200), {"errors": problem, "warnings": []}, {}
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked.get('type') or 'model'}s/{asked.get('organization', 'me')}/{asked['name']}"
            self.repos.setdefault(repo, {})
            return 200, {"url": f"http://{host}/{repo.removeprefix('models/')}", "id": repo}, {}
        if parts[0] == "api":
            repo, rest = "/".join(parts[1:4]), parts[4:]
            if repo not in self.repos:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            commits = self.repos[repo]
            if rest[:1] == ["preupload"]:
                files = json.loads(body)["files"]
                return 200, {"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}, {}
            if rest[:1] == ["commit"]:
                lines = [json.loads(line) for line in body.splitlines()]
                added = [line["value"] for line in lines if line["key"] == "file"]
                deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
                commit = self.commit(repo, {f["path"]: base64.b64decode(f["content"]) for f in added}, deleted)
                return 200, {"commitOid": commit, "commitUrl": f"http://{host}/{repo}/commit/{commit}"}, {}
            revision = [*commits, ""][-2 if commits else 0] if rest[1:2] in ([], ["main"]) else rest[1]
            if revision not in commits and revision:
                return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
            files = commits.get(revision, {})  # a new repository is empty
            if rest[:1] == ["tree"]:
                return 200, [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ], {}  # fmt: skip
            siblings = [{"rfilename": name} for name in files]
            return 200, {"id": "/".join(parts[2:4]), "sha": revision, "siblings": siblings, "tags": []}, {}
        kind = ["models"] if parts[0] != "datasets" else []
        owner, name, _, commit, *file = [*kind, *parts][1:]
        data = self.repos[f"{(kind or parts)[0]}/{owner}/{name}"][commit]["/".join(file)]
        return 200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content, headers = made.reply(self.command, self.headers["Host"], urlsplit(self.path).path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield made
    server.shutdown()


def prompt(seed: int = 0) -> Prompt:
    values = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(seed))
    return Prompt(
        Header("prompt", "spot", {}, "direct", {"length": 3, "width": 4}, CARD, TASKS, SCORES), {"prompt": values}
    )


def test_a_prompt_goes_to_the_hub_and_comes_back(hub: Hub):
    first = prompt().push_to_hub("me/sst2", private=True)
    second = prompt(seed=1).push_to_hub("me/sst2", license="apache-2.0", widget=["the film was good"])
    assert [*hub.repos["models/me/sst2"]] == [first, second]
    assert torch.equal(Prompt.from_hub("me/sst2").params["prompt"], prompt(seed=1).params["prompt"])
    pinned = Prompt.from_hub("me/sst2", revision=first, backbone=CARD)
    assert torch.equal(pinned.params["prompt"], prompt().params["prompt"])
    files = hub.repos["models/me/sst2"][second]
    assert {*files} == {"promptprior.json", "adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert not [name for name, data in files.items() if b"/home/me" in data]  # whose machine it was

    data = ModelCard(files["README.md"].decode()).data  # raises for a model-index that the Hub would not show
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "org/model", "peft")
    assert data.widget == [{"text": "the film was good"}]
    accuracy, f1 = data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value, accuracy.dataset_name) == ("accuracy", 0.75, "sst2")
    assert accuracy.metric_args["interval"] == pytest.approx([0.6569, 0.8246], abs=1e-4)  # statsmodels, wilson
    assert f1.metric_args == {"rows": 100}  # no share of rows: nothing is known of its error
    unasked = ModelCard(hub.repos["models/me/sst2"][first]["README.md"].decode()).data
    assert (unasked.license, unasked.get("widget")) == ("other", None)


def test_no_place_of_this_machine_is_shared(hub: Hub, tmp_path: Path):
    """Neither of the members of a blend, nor of what an estimator was made with, nor of a method's options."""
    own, of_here = prompt(), replace(CARD, name=str(tmp_path / "model"))
    options = {"source_prompts": [str(tmp_path / "a"), "org/b"], "template": "/{{ text }}"}
    params = {"backbone": "/home/me/model", "prior": "/home/me/prior", "label_words": {"0": "/", "1": "a/b"}}
    (tmp_path / "a").mkdir()
    header = replace(own.header, settings={"method": options, "estimator": {"params": params}}, backbone=of_here)
    member = Prompt(header, own.params)
    blend = blended(header, [member, member], [0.5, 0.5], [1.0, 1.0])
    blend.push_to_hub("me/blend")
    [files] = hub.repos["models/me/blend"].values()
    assert not [name for name, data in files.items() if b"/home/me" in data or str(tmp_path).encode() in data]
    read = Prompt.from_hub("me/blend")
    for shared in (read.header, *(one.header for one in blend_members(read))):
        assert shared.settings["method"] == {"source_prompts": ["a", "org/b"], "template": "/{{ text }}"}
        assert shared.settings["estimator"]["params"]["label_words"] == {"0": "/", "1": "a/b"}  # type: ignore[index]
        assert (shared.backbone.name, shared.tasks[0].path, shared.tasks[0].name) == ("model", "", "sst2")


def test_a_prior_goes_to_the_hub_and_comes_back(hub: Hub):
    header = replace(prompt().header, kind="prior", tasks=(), scores={})
    prior = Prior(header, prompt().params)
    prior.push_to_hub("me/prior")
    assert torch.equal(Prior.from_hub("me/prior").params["prompt"], prior.params["prompt"])
    hub.commit("models/me/prior", {"prompt.safetensors": b"of an earlier push", "own.txt": b"not ours"})
    newest = prior.push_to_hub("me/prior")
    assert {*hub.repos["models/me/prior"][newest]} == {"promptprior.json", "prior.safetensors", "README.md", "own.txt"}
    with pytest.raises(ArtifactError, match="is a prior; a prompt was expected"):
        Prompt.from_hub("me/prior")


def test_pickles_and_what_is_not_ours_stay_on_the_hub(hub: Hub):
    hub.commit("models/me/old", {"adapter_config.json": b"{}", "adapter_model.bin": b"cos\nsystem\n"})
    with pytest.raises(ArtifactError, match=r"adapter_model\.bin: files of this kind can run code"):
        Prompt.from_hub("me/old")
    hub.commit("models/me/code", {"modeling.py": b"import os"})
    with pytest.raises(ArtifactError, match=r"holds modeling\.py; expected promptprior\.json"):
        Prompt.from_hub("me/code")
    prompt().push_to_hub("me/sst2")
    hub.commit("models/me/sst2", {"setup.py": b"1 / 0", "../up.json": b"{}"})
    assert Prompt.from_hub("me/sst2").header.method == "spot"
    assert not [
        line for line in hub.asked if "resolve" in line and ("setup" in line or "up.json" in line or ".bin" in line)
    ]


def test_what_goes_wrong_is_one_message(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ArtifactError, match="'a/b/c' is no repository of the Hub; expected OWNER/NAME"):
        Prompt.from_hub("a/b/c")
    with pytest.raises(ArtifactError, match=r"the Hub does not do that for me/none .*check its name, your token"):
        Prompt.from_hub("me/none")
    with pytest.raises(ArtifactError, match="the Hub does not do that for me/sst2"):
        prompt().push_to_hub("me/sst2", license=["no", "licence"])  # type: ignore[arg-type]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtifactError, match="and the network"):
        prompt().push_to_hub("me/sst2")


def test_share_fetch_and_leaderboard(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompt().save_pretrained(tmp_path / "prompt")
    assert main(["share", str(tmp_path / "prompt"), "--repo", "me/sst2", "--dry-run"]) == 0
    assert hub.repos == {}
    assert main(["share", str(tmp_path / "prompt"), "--repo", "me/sst2"]) == 0
    [commit] = hub.repos["models/me/sst2"]
    assert main(["fetch", "me/sst2", "--output", str(tmp_path / "theirs")]) == 0
    assert f"prompt of spot for org/model, me/sst2 at {commit}" in capsys.readouterr().out
    assert f"revision: {commit}" in (tmp_path / "theirs.plan.yaml").read_text()
    assert {p.name for p in (tmp_path / "theirs").iterdir()} == {p.name for p in (tmp_path / "prompt").iterdir()}

    before = next((Path(__file__).parents[1] / "fixtures" / "before").glob("*/results.jsonl"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.jsonl").write_bytes(before.read_bytes())
    (tmp_path / "mine" / "notes.txt").write_text("private")
    rows = [json.loads(line) for line in before.read_text().splitlines()]
    secret = answer_lines(rows, 3, text="a secret text {i}")
    (tmp_path / "mine" / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in secret))
    assert main(["report", str(tmp_path / "mine")]) == 0
    assert "a secret text 1" in (tmp_path / "mine" / "report.html").read_text()
    assert main(["share", str(tmp_path / "mine"), "--repo", "me/runs", "--license", "cc-by-4.0"]) == 0
    [files] = hub.repos["datasets/me/runs"].values()
    assert {*files} == {"results.jsonl", "report.html", "README.md"}
    page = files["report.html"].decode()
    assert "secret" not in page  # texts of users are not shared unasked
    assert "Settings and sources" in page
    assert page.count("<script") == 3
    assert 'id="explorer' not in page
    assert "promptprior fetch me/runs --kind results" in files["README.md"].decode()
    assert main(["fetch", "me/runs", "--kind", "results", "--output", str(tmp_path / "ann")]) == 0
    assert (tmp_path / "ann" / "results.jsonl").read_bytes() == before.read_bytes()
    assert main(["fetch", "me/runs", "--output", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
