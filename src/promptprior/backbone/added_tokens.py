"""Prompts baked into a model's vocabulary: whatever serves the model then serves the prompts, as text.

    embedding   n rows more: the prompts' vectors, divided by the factor the model multiplies embeddings with
    tokenizer   a special token `<prompt:NAME:i>` for each row; a begin token is no longer put in front by itself, for
                it must stand between prompt and text, where the prompt was trained: it is part of the prompt's string
    head        n outputs more that are never the best, while all others stay as they are

The head of a tied model is untied. A head with a bias masks the new outputs by it. Every other head gets the mean of
its rows for each new output. A mean of logits is below their maximum, so no decoding by argmax ever picks it. By
Jensen's inequality its probability is at most one over the vocabulary. `suppress_tokens` in generation_config.json
makes that exactly zero wherever transformers generates. `keep_tied` leaves a tied head tied, for engines that know an
architecture only so; then the new outputs are arbitrary, and the engine must forbid them.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from promptprior.backbone.frozen import DTYPES, Frozen, load_frozen, model_folder
from promptprior.errors import ArtifactError, SpecError
from promptprior.files import read_json, write_json
from promptprior.notation import Float, Tensor

NAME = re.compile(r"[A-Za-z0-9_.-]+")
PROBES = ("The film was good.", "a", "question: who? (x)", "Überall 12 Häuser\nand a new line", "3.14 + x_1 = y")
TOLERANCE = 1e-3  # of the largest logit, or the square root of the dtype's epsilon where that is more


@dataclass(frozen=True)
class BakedPrompt:
    """A prompt in a vocabulary: write `text` right before a text (`ids` are its tokens, a begin token included).

    `rounding` is the largest difference between a vector of the prompt and what the model reads, in units of the
    embedding scale: storage in the model's dtype costs that much.
    """

    name: str
    text: str
    ids: tuple[int, ...]
    length: int
    rounding: float


def write_baked(
    frozen: Frozen, prompts: Mapping[str, Float[Tensor, "_ D"]], folder: Path, keep_tied: bool = False
) -> tuple[BakedPrompt, ...]:
    """Write model and tokenizer with prompts in their vocabulary, read both again and compare with the backbone.

    The dtype is the one the backbone is loaded in. Raises ArtifactError, and leaves a useless folder, when names are
    unusable, the model or tokenizer has no room for new tokens, or what was written does not give the same logits.
    """
    model, dtype = frozen.model, str(frozen.dtype).removeprefix("torch.")
    for name, prompt in prompts.items():
        if not NAME.fullmatch(name):
            raise ArtifactError(f"prompt name {name!r} (--names): expected letters, digits, _, . and - only")
        if token(name, 0) in frozen.tokenizer.get_vocab():
            raise ArtifactError(f"the vocabulary already has {token(name, 0)!r}: choose another name (--names)")
        check_holds(dtype, name, prompt, "bake")
    if getattr(model, "is_quantized", False):
        raise ArtifactError(
            f"{type(model).__name__} was loaded with packed weights, which take no new rows: bake into the model it "
            "was quantised from (--backbone), then quantise the folder"
        )
    if model.config.get_text_config() is not model.config:
        raise ArtifactError(
            f"{type(model).__name__} keeps its vocabulary in a nested config; baking knows plain text models only: "
            "export as peft or npy instead"
        )
    first = model.get_input_embeddings().weight.shape[0]  # the first new id
    tokenizer, begin = _baked_tokenizer(frozen, {name: len(p) for name, p in prompts.items()}, first)
    _baked_model(model, torch.cat(list(prompts.values())), keep_tied).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if begin and not frame(frozen.tokenizer)[1]:  # for engines that read this setting and no template
        settings = folder / "tokenizer_config.json"
        write_json(settings, {**read_json(settings), "add_bos_token": False})
    written = load_frozen(str(folder), dtype, str(frozen.device))
    return tuple(_check_baked(frozen, written, name, prompt) for name, prompt in prompts.items())


def check_holds(dtype: str, name: str, prompt: Float[Tensor, "_ D"], verb: str) -> None:
    """Raise ArtifactError for a prompt with numbers that a dtype does not hold, saying what to do in another one."""
    if not torch.isfinite(prompt.to(DTYPES[dtype])).all():
        raise ArtifactError(
            f"prompt {name!r} has entries up to {prompt.abs().max():.3g}, too large for {dtype}: {verb} in another "
            "dtype (--dtype float32)"
        )


def token(name: str, number: int) -> str:
    """The token of one vector of a prompt."""
    return f"<prompt:{name}:{number}>"


def _baked_tokenizer(
    frozen: Frozen, lengths: Mapping[str, int], first: int
) -> tuple[PreTrainedTokenizerBase, Sequence[int]]:
    """A tokenizer with a token for every vector, from id `first` on, and the begin tokens it no longer adds itself."""
    if not isinstance(frozen.tokenizer, PreTrainedTokenizerFast):
        raise ArtifactError(f"{type(frozen.tokenizer).__name__} has no tokenizer.json; baking needs a fast tokenizer")
    tokenizer = copy.deepcopy(frozen.tokenizer)
    begin, end = frame(tokenizer)
    if begin:  # put nothing before a text, and `end` after it as before
        tokenizer.add_bos_token = False
        tails = tokenizer.convert_ids_to_tokens(list(end))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=["$A", *tails],
            pair=["$A", *tails, "$B:1", *(f"{tail}:1" for tail in tails)],
            special_tokens=list(zip(tails, end, strict=True)),
        )
    free = max(tokenizer.get_vocab().values()) + 1
    names = [f"<unused:{i}>" for i in range(free, first)]  # rows of the table that no token had
    names += [token(name, i) for name, length in lengths.items() for i in range(length)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(names) != list(range(free, first + sum(lengths.values()))):
        raise ArtifactError(
            f"the tokenizer of {frozen.card.name} gives new tokens ids that its model's table of {first} rows has no "
            "place for: export as peft or npy instead"
        )
    return tokenizer, begin


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after every text."""
    whole, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def _baked_model(model: PreTrainedModel, rows: Float[Tensor, "n D"], keep_tied: bool = False) -> PreTrainedModel:
    """The same model with more rows in its vocabulary; it shares all other weights with the old one."""
    table, output = model.get_input_embeddings().weight.detach(), model.get_output_embeddings()
    head = output.weight.detach()
    new_rows = rows.to(table.device, torch.float64) / embedding_factor(model)
    new_table = torch.cat([table, new_rows.detach().to(table)])  # [V + n, D]
    tied, state = head.data_ptr() == table.data_ptr(), model.state_dict()
    head_name = next(name for name, module in model.named_modules() if module is output)

    # A bias over the vocabulary, the head's own or BART's, masks the new outputs
    biases = [name for name in (f"{head_name}.bias", "final_logits_bias") if name in state]
    for name in biases:
        masked = torch.full_like(state[name][..., :1], torch.finfo(state[name].dtype).min / 2)
        state[name] = torch.cat([state[name], masked.expand(*state[name].shape[:-1], len(rows))], dim=-1)
    for name in [name for name, value in state.items() if value.data_ptr() == table.data_ptr()]:
        state[name] = new_table

    # Without one, the new outputs get the mean of the head's rows
    config = copy.deepcopy(model.config)
    config.vocab_size, config.dtype = len(new_table), model.dtype
    untie = tied and not biases and not keep_tied
    factor = 1.0
    if untie:
        config.tie_word_embeddings = False
        if getattr(config, "scale_decoder_outputs", False):
            # T5 multiplies the states before a tied head; an untied head has the factor in its weights
            factor = config.d_model**-0.5
            config.scale_decoder_outputs = False
    if untie or not tied:
        mean = (head.double().mean(0) * factor).expand(len(rows), -1)
        state[f"{head_name}.weight"] = torch.cat([head * factor, mean.to(table)])

    with torch.device("meta"):
        baked = type(model)(config)
    baked.load_state_dict(state, assign=True)
    baked.generation_config = copy.deepcopy(model.generation_config)
    suppressed = baked.generation_config.suppress_tokens or ()
    baked.generation_config.suppress_tokens = [*suppressed, *range(len(table), len(new_table))]
    return baked


def embedding_factor(model: PreTrainedModel) -> float:
    """What a model multiplies its table with when it looks tokens up (Gemma: the root of the width; most: 1)."""
    embedding = model.get_input_embeddings()
    table = embedding.weight.detach()[:4096]
    with torch.no_grad():
        read = embedding(torch.arange(len(table), device=table.device))
    if torch.equal(read, table):
        return 1.0
    return float((read.double() * table.double()).sum() / table.double().square().sum())


@torch.no_grad()
def _check_baked(frozen: Frozen, written: Frozen, name: str, prompt: Float[Tensor, "L D"]) -> BakedPrompt:
    """How to write a baked prompt. Raises ArtifactError when no string gives its tokens before every text, and unless
    text in the new model gives the logits of vectors in the old one."""
    begin, _ = frame(frozen.tokenizer)
    tokens = [token(name, i) for i in range(len(prompt))]
    ids = [*written.tokenizer.convert_tokens_to_ids(tokens), *begin]
    wanted = [[*ids, *frozen.tokenizer(probe).input_ids[len(begin) :]] for probe in PROBES]
    bare = "".join([*tokens, *frozen.tokenizer.convert_ids_to_tokens(begin)])
    strings = (bare, bare + " ")  # some tokenizers need a space where a text's first word begins
    fitting = (s for s in strings if [written.tokenizer(s + probe).input_ids for probe in PROBES] == wanted)
    if (text := next(fitting, None)) is None:
        raise ArtifactError(
            f"the tokenizer of {frozen.card.name} reads a text after special tokens otherwise than alone, so no string "
            "gives the tokens this prompt was trained before: export as peft or npy instead"
        )

    text_ids = torch.tensor([frozen.tokenizer(PROBES[0]).input_ids], device=frozen.device)
    embeds = torch.cat([prompt.to(frozen.device, frozen.dtype)[None], frozen.embed(text_ids)], dim=1)
    decoder = {}
    if frozen.card.is_encoder_decoder:
        start = [[frozen.model.config.decoder_start_token_id]]
        decoder["decoder_input_ids"] = torch.tensor(start, device=frozen.device)
    old = frozen.model(inputs_embeds=embeds, **decoder).logits[0, -1].float()
    new = written.model(input_ids=torch.tensor(wanted[:1], device=frozen.device), **decoder).logits[0, -1].float()
    difference = float((new[: len(old)] - old).abs().max() / old.abs().max())
    allowed = max(TOLERANCE, torch.finfo(frozen.dtype).eps ** 0.5)
    if not difference <= allowed:
        raise ArtifactError(
            f"baked into {frozen.card.name}, prompt {name!r} gives logits that differ by {difference:.2g} of "
            f"the largest (allowed {allowed:.2g}): {frozen.card.architecture} does more with ids than to look them "
            "up; export as peft or npy instead"
        )
    read = written.embed(torch.tensor(ids[: len(prompt)])).to(prompt)
    rounding = float((read - prompt).abs().max()) / frozen.card.scale
    return BakedPrompt(name, text, tuple(ids), len(prompt), rounding)


def stored_dtype(name: str) -> str:
    """The dtype a backbone's weights have on disk, as its config says; float32 where it does not."""
    dtype = str(AutoConfig.from_pretrained(model_folder(name), trust_remote_code=False).dtype).removeprefix("torch.")
    return dtype if dtype in DTYPES else "float32"


@dataclass(frozen=True)
class TextFrame:
    """What an engine that is sent vectors in front of a text must know of the model; it needs no weights.

    `model` is the Hub id or folder that it serves. `begin` and `begin_ids` are the tokens that the model's tokenizer
    puts before every text, as text and as ids: they stand between vectors and text. `placeholder_id` is a token that no
    ordinary text gives; `vocabulary` and `width` are those of the model's table, `dtype` is that of its stored weights.
    """

    model: str
    begin: str
    begin_ids: tuple[int, ...]
    placeholder_id: int
    vocabulary: int
    width: int
    dtype: str

    @classmethod
    def of(cls, name: str, marker: str) -> "TextFrame":
        """How a model's texts must be sent behind vectors, for which the engine writes the special token `marker`.

        Raises SpecError for a model that cannot be loaded, and ArtifactError for an encoder-decoder and for a tokenizer
        that reads a text behind a special token otherwise than alone.
        """
        try:
            folder = model_folder(name)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
            raise SpecError(f"backbone {name[:200]!r} (--backbone) could not be loaded: {reason}") from error
        if config.is_encoder_decoder:
            raise ArtifactError(
                f"{name} is an encoder-decoder, whose encoder this engine gives no vectors: export as vocabulary or "
                "peft instead"
            )
        begin_ids, _ = frame(tokenizer)
        begin = "".join(tokenizer.convert_ids_to_tokens(begin_ids))
        wanted = [[*begin_ids, *tokenizer(probe, add_special_tokens=False).input_ids] for probe in PROBES]
        placeholders = [i for i in sorted(tokenizer.all_special_ids) if i not in begin_ids]
        marked = copy.deepcopy(tokenizer)
        marked.add_tokens([AddedToken(marker, special=True, normalized=False)], special_tokens=True)
        marker_id = marked.convert_tokens_to_ids(marker)
        read = [marked(marker + begin + probe, add_special_tokens=False).input_ids for probe in PROBES]
        if read != [[marker_id, *ids] for ids in wanted] or not placeholders:
            raise ArtifactError(
                f"the tokenizer of {name} reads a text behind a special token otherwise than alone, or has no special "
                "token to spare: export as vocabulary instead"
            )
        text = config.get_text_config()
        sizes = (text.vocab_size, text.hidden_size)
        return cls(str(folder), begin, tuple(begin_ids), placeholders[-1], *sizes, stored_dtype(name))
