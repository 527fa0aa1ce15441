"""A prompt baked into the vocabulary gives, as text in the saved folder, what it gave as vectors in our engine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from promptprior.backbone import Backbone
from promptprior.backbone.added_tokens import BakedPrompt, embedding_factor, stored_dtype, token, write_baked
from promptprior.backbone.engine import as_backbone
from promptprior.backbone.frozen import Frozen, freeze, load_frozen
from promptprior.errors import ArtifactError
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import WORDS, config, tiny, tokenizer

LENGTH = 4
TEXTS = ("the film", "a", "Which is it? x + y")
FAMILIES = (
    "llama",
    "gpt2",
    "gemma2",
    "gemma3",
    "opt",
    "gpt_neox",
    "bloom",
    "qwen3",
    "mistral",
    "t5",
    "t5_gated",
    "bart",
)


def prompt_for(backbone: Backbone | Frozen, seed: int = 0) -> torch.Tensor:
    card = backbone.card
    return torch.randn(LENGTH, card.width, generator=torch.Generator().manual_seed(seed)) * card.scale * 2


def with_begin(end: bool = False) -> tf.PreTrainedTokenizerFast:
    """The tiny tokenizer, putting its begin token before every text."""
    made = tokenizer()
    single = ["<end>", "$A", "<end>"] if end else ["<end>", "$A"]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<end>", 1)])
    return made


def model_of(family: str, tied: bool, dtype: torch.dtype = torch.float32, **changes: object) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    made = config(family)
    made.tie_word_embeddings = tied
    for name, value in changes.items():
        setattr(made, name, value)
    kind = tf.AutoModelForSeq2SeqLM if made.is_encoder_decoder else tf.AutoModelForCausalLM
    model = kind.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2 if made.is_encoder_decoder else 8)
    return model.to(dtype)


def baked(frozen: Frozen, folder: Path, **prompts: torch.Tensor) -> list[BakedPrompt]:
    folder.mkdir()
    return list(write_baked(frozen, prompts, folder))


def reloaded(folder: Path) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    """As any user would."""
    made = tf.AutoConfig.from_pretrained(folder)
    kind = tf.AutoModelForSeq2SeqLM if made.is_encoder_decoder else tf.AutoModelForCausalLM
    return kind.from_pretrained(folder).eval(), tf.AutoTokenizer.from_pretrained(folder)


def logits_of_text(folder: Path, text: str, target: tuple[int, ...]) -> torch.Tensor:
    """Next-token logits at every target position, from the saved folder and a string alone."""
    model, tok = reloaded(folder)
    ids = tok(text).input_ids
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = [model.config.decoder_start_token_id, *target[:-1]]
            return model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start])).logits[0]
        both = torch.tensor([[*ids, *target[:-1]]])
        return model(input_ids=both).logits[0, len(ids) - 1 :]


def check_losses(backbone: Backbone, folder: Path, prompt: torch.Tensor, one: BakedPrompt) -> None:
    """Losses of our engine against the saved folder's."""
    target = (7, 30, 8)
    for text in TEXTS:
        [row] = backbone.tokens([text], [["x"]])
        ours = backbone.losses(prompt[None], collate([Tokens(row.text, (target,))]))[0]
        logits = logits_of_text(folder, one.text + text, target)
        theirs = torch.nn.functional.cross_entropy(logits[:, :WORDS], torch.tensor(target))
        assert theirs == pytest.approx(float(ours), rel=1e-5)


def check_equal(backbone: Backbone, folder: Path, prompt: torch.Tensor, one: BakedPrompt) -> None:
    """The losses, and the new ids' share of probability."""
    check_losses(backbone, folder, prompt, one)
    for text in TEXTS:
        logits = logits_of_text(folder, one.text + text, (7, 30, 8))
        assert int(logits.argmax(-1).max()) < WORDS
        assert logits.softmax(-1)[:, WORDS:].max() < 1 / WORDS  # Jensen's bound, at random weights


# Logits


@pytest.mark.parametrize("family", FAMILIES)
def test_text_in_the_saved_model_gives_the_engines_losses(family: str, tmp_path: Path):
    backbone = tiny(family, torch.float32)
    prompt = prompt_for(backbone)
    [one] = baked(backbone.frozen, tmp_path / "model", sst2=prompt)
    assert one.rounding < 1e-5
    check_equal(backbone, tmp_path / "model", prompt, one)


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False), ("bart", True)]
)
def test_the_vectors_are_rows_and_other_logits_are_untouched(family: str, tied: bool, tmp_path: Path):
    frozen = freeze(model_of(family, tied), tokenizer(), family)
    is_tied = frozen.model.get_input_embeddings().weight is frozen.model.get_output_embeddings().weight
    assert is_tied == tied
    prompt = prompt_for(frozen)
    baked(frozen, tmp_path / "model", sst2=prompt)
    model, tok = reloaded(tmp_path / "model")
    assert torch.equal(model.get_input_embeddings().weight[WORDS:], prompt)
    assert torch.equal(model.get_input_embeddings().weight[:WORDS], frozen.model.get_input_embeddings().weight)
    ids = torch.tensor([tok("no prompt at all").input_ids])
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
    with torch.no_grad():
        new, old = model(**given).logits, frozen.model(**given).logits
    assert torch.allclose(new[..., :WORDS], old, atol=1e-6)
    extra = new[..., WORDS:]
    if family == "bart":  # a bias masks them
        assert new.softmax(-1)[..., WORDS:].max() == 0
    else:
        assert torch.allclose(extra, old.mean(-1, keepdim=True).expand_as(extra), atol=1e-5)


def test_a_head_with_a_bias_masks_the_new_tokens_exactly(tmp_path: Path):
    torch.manual_seed(0)
    made = tf.PhiConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(made)
    assert model.lm_head.bias is not None
    backbone = as_backbone(freeze(model, tokenizer(), "phi"))
    prompt = prompt_for(backbone)
    [one] = baked(backbone.frozen, tmp_path / "model", p=prompt)
    check_equal(backbone, tmp_path / "model", prompt, one)
    assert logits_of_text(tmp_path / "model", one.text + "so", (7,)).softmax(-1)[:, WORDS:].max() == 0


def test_rows_that_no_token_has_keep_their_logits(tmp_path: Path):
    """Models pad their tables; a prompt goes behind the pads, whose tokens get names."""
    model = model_of("llama", True)
    model.resize_token_embeddings(WORDS + 5, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[WORDS:].normal_()
    backbone = as_backbone(freeze(model, tokenizer(), "padded"))
    prompt = prompt_for(backbone)
    [one] = baked(backbone.frozen, tmp_path / "model", p=prompt)
    assert one.ids == tuple(range(WORDS + 5, WORDS + 5 + LENGTH))
    batch = collate([Tokens(backbone.tokens(["abc"], [["x"]])[0].text, ((7, 9),))])
    logits = logits_of_text(tmp_path / "model", one.text + "abc", (7, 9))[:, : WORDS + 5]
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor([7, 9]))
    assert theirs == pytest.approx(float(backbone.losses(prompt[None], batch)[0]), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "t5"])
def test_a_head_that_stays_tied_needs_the_engine_to_forbid_new_ids(family: str, tmp_path: Path):
    backbone = tiny(family, torch.float32)
    prompt = prompt_for(backbone) * 50
    folder = tmp_path / "model"
    folder.mkdir()
    [one] = write_baked(backbone.frozen, {"p": prompt}, folder, keep_tied=True)
    model, tok = reloaded(folder)
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    check_losses(backbone, folder, prompt, one)
    [row] = backbone.tokens(["so"], [["x"]])
    [ours] = backbone.generate(prompt[None], collate([Tokens(row.text, ((5,),))]), 12)
    inputs = tok(one.text + "so", return_tensors="pt").input_ids
    made = model.generate(input_ids=inputs, max_new_tokens=12, do_sample=False)[0]
    new = made if model.config.is_encoder_decoder else made[inputs.shape[1] :]
    assert tok.decode(new, skip_special_tokens=True) == ours


def test_several_prompts_in_one_vocabulary(tmp_path: Path):
    backbone = tiny("llama", torch.float32)
    first, second = prompt_for(backbone, 1), prompt_for(backbone, 2)[:2]
    one, two = baked(backbone.frozen, tmp_path / "model", sst2=first, trec=second)
    assert two.ids == (WORDS + LENGTH, WORDS + LENGTH + 1)
    check_equal(backbone, tmp_path / "model", first, one)
    check_equal(backbone, tmp_path / "model", second, two)


# Tokenizers


@pytest.mark.parametrize(("family", "end"), [("llama", False), ("gpt2", False), ("bart", True)])
def test_the_begin_token_stands_between_prompt_and_text(family: str, end: bool, tmp_path: Path):
    backbone = tiny(family, torch.float32)
    frozen = replace(backbone.frozen, tokenizer=with_begin(end))
    backbone = replace(backbone, frozen=frozen)
    assert frozen.tokenizer("ab").input_ids[0] == 1
    prompt = prompt_for(backbone)
    [one] = baked(frozen, tmp_path / "model", p=prompt)
    assert one.text.endswith("3><end>")
    assert one.ids[-1] == 1
    _, tok = reloaded(tmp_path / "model")
    assert tok(one.text + "ab").input_ids == [*one.ids, *frozen.tokenizer("ab").input_ids[1:]]
    check_equal(backbone, tmp_path / "model", prompt, one)


def word_start(scheme: str) -> tf.PreTrainedTokenizerFast:
    """A sentencepiece-like tokenizer: a space before the first word, always or only where the text begins."""
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {"<pad>": 0, "</s>": 1, "?": 2, "▁": 3} | {c: 4 + i for i, c in enumerate(letters) if c != "?"}
    made = Tokenizer(models.WordLevel({k: i for i, k in enumerate(vocabulary)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme=scheme), pre_tokenizers.Split("", "isolated")]
    )
    made.normalizer = normalizers.NFKC()
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="?")


@pytest.mark.parametrize(("scheme", "ending"), [("always", ">"), ("first", "> "), ("never", ">")])
def test_tokenizers_that_mark_the_start_of_words(scheme: str, ending: str, tmp_path: Path):
    made = word_start(scheme)
    model = model_of("llama", True, vocab_size=len(made))
    [one] = baked(freeze(model, made, "words"), tmp_path / "model", p=torch.randn(LENGTH, 32))
    assert one.text.endswith(ending)
    _, tok = reloaded(tmp_path / "model")
    assert tok(one.text + "ab cd").input_ids == [*one.ids, *made("ab cd").input_ids]


# Generation


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "t5", "bart"])
def test_greedy_text_is_the_engines_and_never_a_prompt_token(family: str, tmp_path: Path):
    backbone = tiny(family, torch.float32)
    prompt = prompt_for(backbone)
    [one] = baked(backbone.frozen, tmp_path / "model", p=prompt)
    model, tok = reloaded(tmp_path / "model")
    assert model.generation_config.suppress_tokens == list(range(WORDS, WORDS + LENGTH))
    for text in TEXTS:
        [row] = backbone.tokens([text], [["x"]])
        [ours] = backbone.generate(prompt[None], collate([Tokens(row.text, ((5,),))]), 12)
        inputs = tok(one.text + text, return_tensors="pt").input_ids
        for suppressed in (model.generation_config.suppress_tokens, None):  # the head alone sees to it as well
            made = model.generate(input_ids=inputs, max_new_tokens=12, do_sample=False, suppress_tokens=suppressed)[0]
            new = made if model.config.is_encoder_decoder else made[inputs.shape[1] :]
            assert int(new.max()) < WORDS
            assert tok.decode(new, skip_special_tokens=True) == ours


def test_sampling_never_gives_a_prompt_token(tmp_path: Path):
    backbone = tiny("llama", torch.float32)
    [one] = baked(backbone.frozen, tmp_path / "model", p=prompt_for(backbone))
    model, tok = reloaded(tmp_path / "model")
    torch.manual_seed(0)
    inputs = tok(one.text + "so", return_tensors="pt").input_ids.expand(64, -1)
    options = {"input_ids": inputs, "do_sample": True, "temperature": 50.0, "top_k": 0, "min_new_tokens": 8}
    new = model.generate(**options, max_new_tokens=8)[:, inputs.shape[1] :]
    assert int(new.max()) < WORDS
    free = model.generate(**options, max_new_tokens=8, suppress_tokens=None)[:, inputs.shape[1] :]
    assert int(free.max()) >= WORDS  # near-uniform sampling would give some: the test can fail


# Dtypes


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_a_model_in_bfloat16_is_saved_so_and_rounding_is_named(family: str, tmp_path: Path):
    frozen = freeze(model_of(family, True, torch.bfloat16), tokenizer(), family)
    backbone = as_backbone(frozen)
    prompt = prompt_for(backbone)
    [one] = baked(frozen, tmp_path / "model", p=prompt)
    assert 0 < one.rounding < 0.1
    assert stored_dtype(str(tmp_path / "model")) == "bfloat16"
    model, _ = reloaded(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    read = model.get_input_embeddings()(torch.tensor(one.ids))
    exact = family != "gemma2"  # its factor makes a second rounding
    difference = (read.float() - prompt.bfloat16().float()).abs() / prompt.abs().clamp(min=1e-3)
    assert float(difference.detach().max()) <= (0 if exact else 2**-7)


@pytest.mark.parametrize(("family", "factor"), [("llama", 1.0), ("gemma2", 32**0.5), ("gemma3", 32**0.5), ("t5", 1.0)])
def test_the_factor_on_embeddings_is_measured(family: str, factor: float):
    assert embedding_factor(tiny(family, torch.float32).frozen.model) == pytest.approx(factor, rel=1e-6)


# Errors


def test_names_that_cannot_be_tokens(tmp_path: Path):
    frozen = tiny("llama", torch.float32).frozen
    for name in ("a b", "a>b", ""):
        with pytest.raises(ArtifactError, match=r"\(--names\): expected letters, digits"):
            write_baked(frozen, {name: torch.zeros(2, 32)}, tmp_path)
    [_] = baked(frozen, tmp_path / "model", p=prompt_for(frozen))
    again = freeze(*reloaded(tmp_path / "model"), "again")
    with pytest.raises(ArtifactError, match=r"vocabulary already has '<prompt:p:0>': choose another name"):
        write_baked(again, {"p": torch.zeros(2, 32)}, tmp_path)


def test_a_baked_model_can_be_baked_again(tmp_path: Path):
    backbone = tiny("llama", torch.float32)
    [one] = baked(backbone.frozen, tmp_path / "once", p=prompt_for(backbone))
    frozen = freeze(*reloaded(tmp_path / "once"), "again")
    [two] = baked(frozen, tmp_path / "twice", q=prompt_for(backbone, 2))
    check_equal(backbone, tmp_path / "twice", prompt_for(backbone), one)
    check_equal(backbone, tmp_path / "twice", prompt_for(backbone, 2), two)


def test_packed_weights_are_refused(tmp_path: Path):
    frozen = tiny("llama", torch.float32).frozen
    frozen.model.is_quantized = True  # as transformers marks what bitsandbytes packed
    with pytest.raises(
        ArtifactError, match=r"packed weights, which take no new rows: bake into the model it was quantised"
    ):
        write_baked(frozen, {"p": torch.zeros(2, 32)}, tmp_path)


def test_numbers_that_the_dtype_cannot_hold(tmp_path: Path):
    frozen = freeze(model_of("llama", True, torch.float16), tokenizer(), "half")
    with pytest.raises(ArtifactError, match=r"entries up to 1e\+06, too large for float16.*--dtype float32"):
        write_baked(frozen, {"p": torch.full((2, 32), 1e6)}, tmp_path)


def test_a_model_that_reads_more_than_one_table_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever an architecture does with ids, what was written is compared with what was meant."""
    frozen = tiny("llama", torch.float32).frozen
    monkeypatch.setattr("promptprior.backbone.added_tokens.embedding_factor", lambda model: 1.5)
    with pytest.raises(
        ArtifactError,
        match=r"logits that differ by .* of the largest .*LlamaForCausalLM does more with ids.*peft or npy",
    ):
        write_baked(frozen, {"p": prompt_for(frozen)}, tmp_path)


def test_a_tokenizer_without_rules_for_every_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def without_new_tokens(*source: str) -> Frozen:
        return replace(load_frozen(*source), tokenizer=tokenizer())

    monkeypatch.setattr("promptprior.backbone.added_tokens.load_frozen", without_new_tokens)
    with pytest.raises(ArtifactError, match=r"reads a text after special tokens otherwise than alone"):
        write_baked(tiny("llama", torch.float32).frozen, {"p": torch.zeros(2, 32)}, tmp_path)


def test_tokens_are_named_after_prompt_and_place():
    assert token("sst2", 3) == "<prompt:sst2:3>"
