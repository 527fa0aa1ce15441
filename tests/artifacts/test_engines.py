"""What is exported for an engine gives our answers there: llama.cpp is run, the others' rules for what they decode are
written down here (from their sources of 2026, in our words) and applied to the files."""

import base64
import io
import json
import runpy
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
import xllamacpp
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from promptprior.artifacts.artifact import Header, Prompt
from promptprior.artifacts.engines.engine_folder import CONCATENATE, export_for_engine
from promptprior.artifacts.engines.text_client import TextClient
from promptprior.artifacts.export_prompt import export_vocabulary
from promptprior.backbone import load
from promptprior.backbone.added_tokens import TextFrame
from promptprior.backbone.frozen import Frozen, load_frozen
from promptprior.errors import ArtifactError, SpecError
from promptprior.evaluate import prompt_objective
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny

BEFORE = Path(__file__).parents[1] / "fixtures/before"
LENGTH, WIDTH = 5, 64
WORDS = ("film", "Häuser", "3.14", "x_1", "I'd", "naïve", "2026", "(well)", "don't", "  two", "日本", "A1b2", "\n", "—")
TEXTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 3 + i % 6)) + f" {i}:" for i in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with SmolLM2's kind of tokenizer, that puts a begin token before every text."""
    made = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    special, letters = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}
    rows = len(tokenizer) + 5  # some without a token
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(
        tf.LlamaConfig(vocab_size=rows, num_key_value_heads=2, max_position_embeddings=256, **sizes, **ends)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("engines") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def frozen(folder: Path) -> Frozen:
    return load_frozen(str(folder), "float32", "cpu")


@pytest.fixture(scope="module")
def prompt(frozen: Frozen) -> Prompt:
    values = torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0)) * frozen.card.scale
    header = Header("prompt", "spot", {}, "direct", {"length": LENGTH, "width": WIDTH}, frozen.card)
    return Prompt(header, {"prompt": values})


def next_token(frozen: Frozen, rows: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the token after some embeddings, [L, D] -> [V]."""
    with torch.no_grad():
        return frozen.model(inputs_embeds=rows[None].to(frozen.dtype)).logits[0, -1].double().log_softmax(-1)


def ours(frozen: Frozen, prompt: Prompt, text: str) -> torch.Tensor:
    ids = torch.tensor(frozen.tokenizer(text).input_ids)
    return next_token(frozen, torch.cat([prompt.params["prompt"][0], frozen.embed(ids)]))


# llama.cpp ---------------------------------------------------------------------------------------------------------


def llama_cpp(file: Path, letter: int) -> Callable[[str, int], dict[int, float]]:
    """Log-probabilities of the next token by its id, from llama.cpp's own server, in this process and on the CPU;
    `letter` is the id of one."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(file), 256, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    # Its attention otherwise computes in half precision, whatever the file holds
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.verbosity = -1
    server = xllamacpp.Server(settings)

    def ask(text: str, rows: int) -> dict[int, float]:
        # whatever is written, the probabilities are those before the bias; half a letter, or an end, would have none
        asked = {"prompt": text, "n_predict": 1, "n_probs": rows, "logit_bias": [[letter, 1000.0]]}
        answer = server.handle_completions(asked)
        [first] = answer["choices"][0]["logprobs"]["content"]
        return {one["id"]: one["logprob"] for one in first["top_logprobs"]}

    return ask


@pytest.mark.parametrize(("dtype", "texts", "noise"), [("float32", 10, 1e-3), ("float16", 60, 3e-2)])
def test_llama_cpp_gives_our_answers(
    dtype: str, texts: int, noise: float, folder: Path, frozen: Frozen, prompt: Prompt, tmp_path: Path
):
    baked = load_frozen(str(folder), dtype, "cpu")
    [one] = export_vocabulary({"task": prompt}, baked, tmp_path / "out", as_gguf=True)
    names = {"README.md", "model.gguf", "promptprior_prompts.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    letter = frozen.tokenizer.convert_tokens_to_ids("a")
    ask, rows = llama_cpp(tmp_path / "out" / "model.gguf", letter), len(frozen.model.get_input_embeddings().weight)
    for text in TEXTS[:texts]:
        theirs, wanted = ask(one.text + text, rows + LENGTH), ours(frozen, prompt, text)
        assert len(theirs) == rows + LENGTH
        best = max(theirs, key=lambda i: theirs[i])
        assert best < rows  # no token of a prompt
        assert float(wanted.max() - wanted[best]) < noise  # ours, but for what is as good
        old = torch.tensor([theirs[i] for i in range(rows)], dtype=torch.float64).log_softmax(-1)  # without new tokens
        assert float((old - wanted).abs().max()) < noise


def test_what_llama_cpp_would_read_otherwise_is_refused_before_any_work(frozen: Frozen, prompt: Prompt, tmp_path: Path):
    for family, reason in {"gpt2": "architecture is GPT2LMHeadModel", "llama": "tokenizer is WordLevel"}.items():
        other = tiny(family, torch.float32).frozen
        values = {"prompt": torch.zeros(1, 2, 32)}
        header = Header("prompt", "spot", {}, "direct", {"length": 2, "width": 32}, other.card)
        with pytest.raises(ArtifactError, match=f"{reason}.*--format vocabulary"):
            export_vocabulary({"task": Prompt(header, values)}, other, tmp_path / "out", as_gguf=True)
    assert not (tmp_path / "out").exists()


# vLLM: renderers/embed_utils.py and hf.py, chat_utils.py ------------------------------------------------------------


def decoded(data: str, width: int, dtype: torch.dtype) -> torch.Tensor:
    """vLLM's rules for a prompt_embeds payload: [L, D] in the model's type."""
    tensor = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True, map_location="cpu")
    assert isinstance(tensor, torch.Tensor)
    assert tensor.layout == torch.strided
    tensor = tensor.squeeze(0) if tensor.dim() > 2 else tensor
    assert tensor.dim() == 2
    assert tensor.shape[1] == width
    assert tensor.is_floating_point()
    return tensor.to(dtype)


def vllm_rows(body: dict[str, Any], template: str, frozen: Frozen) -> torch.Tensor:
    """The embeddings that vLLM makes of a chat request: a part of vectors is one special token, then as many rows."""
    marker, vectors, messages = "<prompt_embeds>", [], []
    for message in body["messages"]:
        parts = []
        for part in message["content"]:
            assert part["type"] in ("text", "prompt_embeds")
            if part["type"] == "prompt_embeds":
                vectors.append(decoded(part["data"], frozen.card.width, frozen.dtype))
            else:
                assert marker not in part["text"]
            parts.append({"type": "text", "text": part.get("text", marker)})
        messages.append({**message, "content": parts})
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(
        messages=messages, add_generation_prompt=body["add_generation_prompt"]
    )
    tokenizer = tf.AutoTokenizer.from_pretrained(frozen.card.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [marker]})
    marker_id, rows = tokenizer.convert_tokens_to_ids(marker), []
    for token in tokenizer(text, add_special_tokens=body["add_special_tokens"]).input_ids:
        rows.append(vectors.pop(0) if token == marker_id else frozen.embed(torch.tensor([token])))
    assert not vectors
    return torch.cat(rows)


def client(folder: Path) -> dict[str, Any]:
    return runpy.run_path(str(folder / "client.py"))


def test_vllm_decodes_the_folder_to_our_input(folder: Path, frozen: Frozen, prompt: Prompt, tmp_path: Path):
    [note] = export_for_engine(prompt, "vllm", tmp_path / "out", "a task", str(folder))
    assert "0 of the 5 are computed once" in note
    template = (tmp_path / "out" / "concat.jinja").read_text()
    for text in TEXTS[:20]:
        body = client(tmp_path / "out")["request_body"](text, ["yes", "no"])
        assert body["structured_outputs"] == {"choice": [" yes", " no"]}
        theirs = next_token(frozen, vllm_rows(body, template, frozen))
        assert torch.equal(theirs, ours(frozen, prompt, text.rstrip()))
    command = (tmp_path / "out" / "serve.sh").read_text()
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    assert words[words.index("--served-model-name") + 1] == body["model"] == "a task"
    assert {"--enable-prompt-embeds", "--chat-template-content-format"} <= {*words}
    assert words[words.index("--dtype") + 1] == "float32"
    half = export_for_engine(prompt, "vllm", tmp_path / "half", "b", str(folder), "bfloat16")
    assert half
    assert torch.load(tmp_path / "half" / "prompt.pt", weights_only=True).dtype == torch.bfloat16


def test_a_length_of_whole_blocks_needs_no_note(folder: Path, frozen: Frozen, tmp_path: Path):
    header = Header("prompt", "spot", {}, "direct", {"length": 32, "width": WIDTH}, frozen.card)
    long = Prompt(header, {"prompt": torch.zeros(1, 32, WIDTH)})
    assert export_for_engine(long, "vllm", tmp_path / "out", "a", str(folder)) == []


def test_a_client_computes_the_prompt_that_each_text_reads(tmp_path: Path):
    backbone = load(str(BEFORE / "backbone"), "float32", "cpu")
    prompt = Prompt.from_pretrained(BEFORE / "prompts" / "attempt", backbone.card)
    frozen = load_frozen(str(BEFORE / "backbone"), "float32", "cpu")
    asking = TextClient(prompt, backbone, "served", dtype="float32")
    first, second = asking.prompts(["ab", "a quite different text"])
    assert not torch.allclose(first, second)
    for text in ("ab", "a quite different text"):
        theirs = next_token(frozen, vllm_rows(asking.request_body(text, ["x"]), CONCATENATE, frozen))
        tokens = Tokens(tuple(frozen.tokenizer(text).input_ids), tuple((i,) for i in range(5, 15)))
        wanted = prompt_objective(prompt, backbone).losses(prompt.params, collate([tokens]))
        assert torch.allclose(-theirs[5:15].float(), wanted, atol=1e-4)
    shape = {"length": 2, "width": backbone.width}
    plain = replace(prompt.header, parameterisation="direct", parameterisation_settings=shape, head="linear")
    with pytest.raises(ArtifactError, match="with linear head and 1 copies is more than vectors"):
        replace(asking, prompt=Prompt(plain, {"prompt": torch.zeros(1, 2, backbone.width)})).prompts(["a"])


# SGLang: managers/tokenizer_manager_score_mixin.py ------------------------------------------------------------------


def test_sglang_scores_labels_as_we_do(folder: Path, frozen: Frozen, prompt: Prompt, tmp_path: Path):
    export_for_engine(prompt, "sglang", tmp_path / "out", "task", str(folder))
    labels = ["x", "A"]
    tokens = [frozen.tokenizer(" " + label, add_special_tokens=False).input_ids for label in labels]
    request_body = client(tmp_path / "out")["request_body"]
    for text in TEXTS[:20]:
        if [len(of_label) for of_label in tokens] != [1, 1]:
            with pytest.raises(SystemExit, match="more than one token"):
                request_body(text, labels, frozen.tokenizer)
            labels = [
                frozen.tokenizer.decode([i])[1:] for i in range(3, 330) if frozen.tokenizer.decode([i])[:1] == " "
            ]
            labels = [label for label in labels if label.isalpha()][:2]
            tokens = [frozen.tokenizer(" " + label, add_special_tokens=False).input_ids for label in labels]
        body = request_body(text, labels, frozen.tokenizer)
        ids = torch.tensor(body["query"] + body["items"][0])
        at = ids == body["embed_override_token_id"]
        assert int(at.sum()) == len(body["query_embed_overrides"])  # one for each, or the server refuses
        rows = frozen.embed(ids).clone()
        rows[at] = torch.tensor(body["query_embed_overrides"], dtype=torch.float32)
        theirs = next_token(frozen, rows)[body["label_token_ids"]]
        wanted = ours(frozen, prompt, text.rstrip())[[token for (token,) in tokens]]
        assert torch.equal(theirs.softmax(-1), wanted.softmax(-1))


# TensorRT-LLM: PromptTuningEmbedding, and Triton's prompt_table_extra_ids ----------------------------------------


def test_tensorrt_llm_looks_up_our_rows(folder: Path, frozen: Frozen, prompt: Prompt, tmp_path: Path):
    export_for_engine(prompt, "tensorrt-llm", tmp_path / "out", "task", str(folder))
    vocabulary = len(frozen.model.get_input_embeddings().weight)
    for text in TEXTS[:20]:
        arrays = client(tmp_path / "out")["inputs"](text, frozen.tokenizer)
        ids, extra = torch.from_numpy(arrays["input_ids"])[0].long(), arrays["prompt_table_extra_ids"][0]
        is_row = ids >= vocabulary
        assert (extra > 0).tolist() == is_row.tolist()  # else blocks of different prompts are taken for the same
        assert len({*extra.tolist()} - {0}) == 1
        table = torch.from_numpy(np.load(tmp_path / "out" / "prompt_table.npy", allow_pickle=False)).flatten(0, 1)
        rows = torch.where(
            is_row[:, None], table[(ids - vocabulary).clamp(min=0)], frozen.embed(ids.clamp(max=vocabulary - 1))
        )
        assert torch.equal(next_token(frozen, rows), ours(frozen, prompt, text.rstrip()))
        assert int(arrays["input_lengths"][0, 0]) == len(ids)
        assert int(arrays["prompt_vocab_size"][0, 0]) == LENGTH
    assert json.dumps(client(tmp_path / "out")["request_body"]("a", frozen.tokenizer))


def test_what_an_engine_cannot_carry_is_refused(folder: Path, prompt: Prompt, tmp_path: Path):
    t5 = tiny("t5", torch.float32).frozen
    header = Header("prompt", "spot", {}, "direct", {"length": 2, "width": 32}, t5.card)
    with pytest.raises(ArtifactError, match="an encoder-decoder, which vllm sends no vectors: export as vocabulary"):
        export_for_engine(Prompt(header, {"prompt": torch.zeros(1, 2, 32)}), "vllm", tmp_path / "out", "a", "t5")
    large = Prompt(prompt.header, {"prompt": prompt.params["prompt"] * 1e6})
    with pytest.raises(ArtifactError, match="too large for float16: serve in another dtype"):
        export_for_engine(large, "sglang", tmp_path / "out", "a", str(folder), "float16")
    with pytest.raises(ArtifactError, match=r"has width 64; .* reads vectors of 32: name the backbone"):
        export_for_engine(prompt, "vllm", tmp_path / "out", "a", str(BEFORE / "backbone"))
    with pytest.raises(SpecError, match=r"no/such-model.*could not be loaded"):
        TextFrame.of("/no/such-model", "<prompt_embeds>")
    assert not (tmp_path / "out").exists()
