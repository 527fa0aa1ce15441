"""Hostile artifacts and prompts of other tools: headers, tensors, PEFT's configs, arrays, pickles."""

# ruff: noqa: E501  # tables of cases, a case a line

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hostile.harness import Case, Content, ForkServer
from tests.hostile.test_models import DEEP, Change, cut, file, pickled, safetensors_header


def header(**changes: Any) -> Change:
    """A change of the artifact's header; a key whose value is ... goes."""

    def write(folder: Path) -> None:
        mapping = {**json.loads((folder / "promptprior.json").read_text()), **changes}
        mapping = {key: value for key, value in mapping.items() if value is not ...}
        (folder / "promptprior.json").write_text(json.dumps(mapping))

    return write


def adapter(**changes: Any) -> Change:
    """A folder that PEFT alone wrote, with a change of its config."""

    def write(folder: Path) -> None:
        (folder / "promptprior.json").unlink()
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


def peft_file(name: str, content: str | bytes) -> Change:
    return lambda folder: (adapter()(folder), file(name, content)(folder))


def weights(
    dtype: str = "F32", shape: tuple[int, ...] = (3, 32), size: int | None = None, name: str = "prompt_embeddings"
) -> Change:
    width = 1 if "F8" in dtype else 2 if "16" in dtype else 4
    count = int(np.prod(shape)) * width if size is None else size
    head = {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, count]}}
    return file("adapter_model.safetensors", safetensors_header(head, b"\0" * count))


def fifo(name: str) -> Change:
    def write(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return write


J = "promptprior.json"
W = "adapter_model.safetensors"
BOTH = ("inspect", "evaluate")
PROMPTS: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "header of deep lists": (file(J, DEEP), f"{J}.*nested", BOTH),
    "header cut off": (cut(J, 100), f"{J}.*not JSON", BOTH),
    "header of no bytes": (file(J, ""), f"{J}.*not JSON", BOTH),
    "header that is a list": (file(J, "[]"), f"{J}.*JSON object", BOTH),
    "header that is null": (file(J, "null"), f"{J}.*JSON object", BOTH),
    "header that is no UTF-8": (file(J, b"{\xff}"), f"{J}.*UTF-8", BOTH),
    "header of 5000 digits": (file(J, '{"a": ' + "9" * 5000 + "}"), f"{J}.*digits", BOTH),
    "header with half a surrogate": (file(J, '{"a": "\\ud800"}'), f"{J}.*surrogate", BOTH),
    "header that is a pipe": (fifo(J), J, BOTH),
    "header of another format": (header(format_version=99), "format_version is 99", BOTH),
    "a key too many": (header(zebra=1), f"{J}.*zebra", BOTH),
    "a key too few": (header(method=...), f"{J}.*method", BOTH),
    "method that is a number": (header(method=3), f"{J}.*method", BOTH),
    "kind zebra": (header(kind="zebra"), f"{J}.*kind", BOTH),
    "kind prior": (header(kind="prior"), "is a prior", ("evaluate",)),
    "backbone that is text": (header(backbone="zebra"), f"{J}.*backbone", BOTH),
    "backbone of no keys": (header(backbone={}), f"{J}.*backbone", BOTH),
    "backbone of width NaN": (header(backbone={"name": "m", "architecture": "a", "is_encoder_decoder": False, "fingerprint": "f", "width": float("nan"), "scale": 1.0}), f"{J}.*width", BOTH),
    "no tensors": (header(tensors=...), f"{J}.*tensors", BOTH),
    "tensors that are a list": (header(tensors=[1]), f"{J}.*tensors", BOTH),
    "an entry of no keys": (header(tensors={"prompt": {}}), f"{J}.*tensors", BOTH),
    "an entry that is text": (header(tensors={"prompt": "zebra"}), f"{J}.*tensors", BOTH),
    "an entry of text as shape": (header(tensors={"prompt": {"shape": "a", "dtype": "float32", "digest": "a"}}), f"{J}.*shape", BOTH),
    "an entry of negative shape": (header(tensors={"prompt": {"shape": [-1, 3, 32], "dtype": "float32", "digest": "a"}}), "shape", ("evaluate",)),
    "another tensor": (header(tensors={"zebra": {"shape": [1], "dtype": "float32", "digest": "a"}}), "zebra", ("evaluate",)),
    "parameterisation zebra": (header(parameterisation="zebra"), "unknown parameterisation 'zebra'", ("evaluate",)),
    "parameterisation swapped": (header(parameterisation="decomposed"), "decomposed", ("evaluate", "export")),
    "parameterisation bank": (header(parameterisation="bank"), "bank", ("evaluate", "export")),
    "parameterisation lora": (header(parameterisation="lora"), "lora|tensors", ("evaluate", "export")),
    "parameterisation own": (header(parameterisation="own"), "own", ("evaluate", "export")),
    "a setting too many": (header(parameterisation_settings={"length": 3, "width": 32, "zebra": 1}), "zebra", ("evaluate", "export")),
    "no settings": (header(parameterisation_settings={}), "length", ("evaluate", "export")),
    "a setting of text": (header(parameterisation_settings={"length": "x", "width": 32}), "length", ("evaluate", "export")),
    "settings of another length": (header(parameterisation_settings={"length": 30, "width": 32}), "length|shape", ("evaluate", "export")),
    "settings of length 10**12": (header(parameterisation_settings={"length": 10**12, "width": 32}), "length|shape", ("evaluate", "export")),
    "weights cut": (cut(W, -10), W, ("evaluate",)),
    "weights of no bytes": (cut(W, 0), W, ("evaluate",)),
    "weights cut in the header": (cut(W, 20), W, ("evaluate",)),
    "junk weights": (file(W, os.urandom(999)), W, ("evaluate",)),
    "weights with a tail": (lambda folder: (folder / W).write_bytes((folder / W).read_bytes() + b"x" * 99), W, ("evaluate",)),
    "weights of other numbers": (weights(), "prompt", ("evaluate",)),
    "weights of another shape": (weights(shape=(2, 32)), "shape", ("evaluate",)),
    "weights of four dimensions": (weights(shape=(3, 32, 1, 1)), "shape", ("evaluate",)),
    "weights of no dimensions": (weights(shape=(), size=4), "shape", ("evaluate",)),
    "weights of no rows": (weights(shape=(0, 32)), "shape", ("evaluate",)),
    "weights of 10**12 rows": (weights(shape=(10**12, 32), size=384), "shape|safetensors", ("evaluate",)),
    "weights whose shape overflows": (weights(shape=(2**40, 2**40), size=384), "safetensors", ("evaluate",)),
    "weights of a lying size": (weights(shape=(3, 32), size=100), "safetensors", ("evaluate",)),
    "weights in F8_E4M3": (weights("F8_E4M3"), "F8_E4M3", ("evaluate",)),
    "weights in F8_E5M2": (weights("F8_E5M2"), "F8_E5M2", ("evaluate",)),
    "weights in F4": (weights("F4", size=48), "F4", ("evaluate",)),
    "weights in zebra": (weights("ZEBRA"), "ZEBRA", ("evaluate",)),
    "weights in integers": (weights("I32"), "integer|int32|dtype|floating", ("evaluate",)),
    "weights of another name": (weights(name="zebra"), "zebra", ("evaluate",)),
    "weights of an absolute name": (weights(name="/etc/passwd"), "passwd", ("evaluate",)),
    "weights that are a pipe": (fifo(W), W, ("evaluate",)),
    "weights that are a folder": (lambda folder: ((folder / W).unlink(), (folder / W).mkdir()), W, ("evaluate",)),
    "no weights": (lambda folder: (folder / W).unlink(), "prompt.safetensors|no such file", ("evaluate",)),
    "PEFT config of deep lists": (peft_file("adapter_config.json", DEEP), "adapter_config.json.*nested", BOTH),
    "PEFT config that is a list": (peft_file("adapter_config.json", "[]"), "adapter_config.json", BOTH),
    "PEFT config of no bytes": (peft_file("adapter_config.json", ""), "adapter_config.json", BOTH),
    "PEFT type zebra": (adapter(peft_type="ZEBRA"), "ZEBRA", BOTH),
    "PEFT type that is a list": (adapter(peft_type=["PROMPT_TUNING"]), "peft_type", BOTH),
    "PEFT task that is a mapping": (adapter(task_type={"a": 1}), "task_type", BOTH),
    "PEFT length 10**12": (adapter(num_virtual_tokens=10**12), "num_virtual_tokens|shape", BOTH),
    "PEFT length true": (adapter(num_virtual_tokens=True), "num_virtual_tokens|shape", BOTH),
    "PEFT length 0": (adapter(num_virtual_tokens=0), "num_virtual_tokens|shape", BOTH),
    "PEFT weights in integers": (lambda folder: (adapter()(folder), weights("I32")(folder)), "I32|int32|integers", BOTH),
    "PEFT pickle": (lambda folder: (adapter()(folder), (folder / W).unlink(), file("adapter_model.bin", b"x")(folder)), "pickle", BOTH),
}  # fmt: skip
VERBS = {
    "inspect": ("inspect", "p"),
    "evaluate": ("evaluate", "--prompt", "p", "--target", "GOOD", "--backbone", "MODEL", "--dtype", "float32", "--limit", "2"),
    "export": ("export", "p", "--format", "npy", "--output", "out"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name, (_, _, verbs) in PROMPTS.items() for verb in verbs])
def test_a_damaged_prompt_is_refused(name: str, verb: str, server: ForkServer) -> None:
    change, refused, _ = PROMPTS[name]

    def make(folder: Path) -> None:
        shutil.copytree(server.shared / "prompt", folder)
        change(folder)

    server.check(Case(name, VERBS[verb], {"p": make}, refused))


def npy(claim: str, data: bytes = b"") -> bytes:
    text = claim.encode().ljust(118, b" ") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npy_of(shape: str, descr: str = "<f4", data: bytes = b"\0" * 400) -> bytes:
    return npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}", data)


def saved(value: Callable[[], object]) -> Callable[[Path], object]:
    return lambda path: torch.save(value(), path)


def cycle() -> object:
    items: list[object] = []
    items.append(items)
    return items


def deep() -> object:
    value: object = torch.zeros(3, 32)
    for _ in range(300):
        value = [value]
    return value


def zipped(path: Path, compress: int = zipfile.ZIP_STORED, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def deflated(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.zeros(3, 32), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))


def bomb(path: Path) -> None:
    zipped(path, zipfile.ZIP_DEFLATED, **{"archive/data.pkl": b"\0" * 10**8})


IMPORTS: dict[str, tuple[str, Content, str]] = {
    "npy of 3.6 TB": ("x.npy", npy_of(f"({10**12}, 1)"), "x.npy"),
    "npy of 430 GB": ("x.npy", npy_of("(1073741824, 100)"), "x.npy"),
    "npy of a negative shape": ("x.npy", npy_of("(-3, 32)"), "x.npy"),
    "npy whose shape overflows": ("x.npy", npy_of("(9223372036854775807, 9223372036854775807)"), "x.npy"),
    "npy cut off": ("x.npy", npy_of("(3, 100)"), "x.npy"),
    "npy of objects": ("x.npy", npy_of("(3, 32)", "|O"), "x.npy"),
    "npy of text": ("x.npy", npy_of("(3, 4)", "<U8"), "x.npy"),
    "npy of complex numbers": ("x.npy", npy_of("(5, 5)", "<c16"), "x.npy"),
    "npy of dates": ("x.npy", npy_of("(5, 10)", "<M8[s]"), "x.npy"),
    "npy of integers": ("x.npy", npy_of("(10, 10)", "<i4"), "x.npy"),
    "npy of no dimensions": ("x.npy", npy_of("()"), "x.npy"),
    "npy of no rows": ("x.npy", npy_of("(0, 32)"), "x.npy"),
    "npy of 40 dimensions": ("x.npy", npy_of("(1,) * 40"), "x.npy"),
    "npy header that runs code": ("x.npy", npy("__import__('os').system('touch executed')"), "x.npy"),
    "npy header that is deep": ("x.npy", npy("(" * 110), "x.npy"),
    "npy of no bytes": ("x.npy", b"", "x.npy"),
    "npy that is text": ("x.npy", "zebra", "x.npy"),
    "npy of NaN": ("x.npy", npy_of("(3, 32)", data=b"\xff" * 384), "NaN"),
    "npz named npy": ("x.npy", lambda path: zipped(path, prompt=npy_of("(3, 32)")), "x.npy"),
    "junk zip named npy": ("x.npy", b"PK\x03\x04" + b"\xff" * 50, "x.npy"),
    "npy that is a pipe": ("x.npy", lambda path: os.mkfifo(path), "x.npy"),
    "npy that is a device": ("x.npy", lambda path: path.symlink_to("/dev/zero"), "x.npy"),
    "npy that is itself": ("x.npy", lambda path: path.symlink_to(path.name), "x.npy"),
    "npy that is a folder": ("x.npy/a", b"", "x.npy"),
    "pt that runs code": ("m/model.safetensors", b"", ""),
    "pt of no bytes": ("x.pt", b"", "x.pt"),
    "pt that is text": ("x.pt", "zebra", "x.pt"),
    "pt that is a zip bomb": ("x.pt", bomb, "x.pt"),
    "pt of sparse numbers": ("x.pt", saved(lambda: torch.eye(32).to_sparse()), "x.pt"),
    "pt of compressed rows": ("x.pt", saved(lambda: torch.eye(32).to_sparse_csr()), "x.pt"),
    "pt of stride 0, 4 TB": ("x.pt", saved(lambda: torch.zeros(1).expand(10**12, 1)), "x.pt"),
    "pt of stride 0, 12 GB": ("x.pt", saved(lambda: torch.full((1,), torch.nan).expand(10**8, 32)), "x.pt"),
    "pt on meta": ("x.pt", saved(lambda: torch.zeros(3, 32, device="meta")), "x.pt"),
    "pt that holds itself": ("x.pt", saved(cycle), "x.pt"),
    "pt 300 deep": ("x.pt", saved(deep), "x.pt"),
    "pt of two tensors": ("x.pt", saved(lambda: [torch.zeros(3, 32)] * 2), "--tensor"),
    "pt of 10,000 tensors": ("x.pt", saved(lambda: {f"t{i}": torch.zeros(1) for i in range(10_000)}), "--tensor"),
    "pt of text": ("x.pt", saved(lambda: {"prompt": "zebra"}), "x.pt"),
    "pt of booleans": ("x.pt", saved(lambda: torch.ones(3, 32, dtype=torch.bool)), "x.pt"),
    "pt of complex numbers": ("x.pt", saved(lambda: torch.ones(3, 32, dtype=torch.complex64)), "x.pt"),
    "pt of a quantised tensor": ("x.pt", saved(lambda: torch.quantize_per_tensor(torch.ones(3, 32), 0.1, 0, torch.qint8)), "x.pt"),
    "pt of F8 with NaN": ("x.pt", saved(lambda: torch.full((3, 32), torch.nan).to(torch.float8_e5m2)), "NaN"),
    "pt of no rows": ("x.pt", saved(lambda: torch.zeros(0, 32)), "x.pt"),
    "safetensors of F4": ("x.safetensors", safetensors_header({"p": {"dtype": "F4", "shape": [3, 32], "data_offsets": [0, 48]}}, b"\0" * 48), "F4"),
    "safetensors that overlap": ("x.safetensors", safetensors_header({n: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]} for n in "ab"}, b"\0" * 4), "x.safetensors"),
    "safetensors of a header of 100 MB": ("x.safetensors", safetensors_header(b"", length=10**8), "x.safetensors"),
    "safetensors that is a pipe": ("x.safetensors", lambda path: os.mkfifo(path), "x.safetensors"),
    "an ending that is unknown": ("x.zebra", b"", "x.zebra"),
}  # fmt: skip
del IMPORTS["pt that runs code"]


@pytest.mark.parametrize("name", IMPORTS)
def test_a_hostile_prompt_of_another_tool_is_refused(name: str, server: ForkServer) -> None:
    path, content, refused = IMPORTS[name]
    words = ("import", path.split("/")[0], "--backbone", "MODEL", "--output", "out")
    server.check(Case(name, words, {path: content}, refused))


def test_a_pickle_is_never_run(server: ForkServer) -> None:
    def make(path: Path) -> None:
        folder = path.parent
        (folder / "model.safetensors").write_bytes(b"")
        pickled(folder)
        (folder / "pytorch_model.bin").rename(path)

    server.check(Case("pickle", ("import", "x.pt", "--backbone", "MODEL", "--output", "out"), {"x.pt": make}, "x.pt"))


GOOD = {
    "npy": ("x.npy", npy_of("(3, 32)", data=np.ones((3, 32), "<f4").tobytes())),
    "npy of doubles": ("x.npy", npy_of("(3, 32)", "<f8", np.ones((3, 32)).tobytes())),
    "pt": ("x.pt", saved(lambda: torch.ones(3, 32))),
    "pt of a view": ("x.pt", saved(lambda: torch.ones(32, 3).T)),
    "deflated pt": ("x.pt", deflated),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_prompt_of_another_tool_is_accepted(name: str, server: ForkServer) -> None:
    path, content = GOOD[name]
    if name == "deflated pt":
        words = ("import", path, "--backbone", "MODEL", "--output", "out")
        server.check(Case(name, words, {path: content}, refused="x.pt"))
    else:
        server.check(Case(name, ("import", path, "--backbone", "MODEL", "--output", "out"), {path: content}))
