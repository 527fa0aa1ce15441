"""Tiny random models of the families the engine must be exact for, and a byte-level tokenizer for them."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.overrides import TorchFunctionMode

from promptprior.backbone.engine import Backbone, as_backbone
from promptprior.backbone.frozen import freeze

WORDS = 96
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3", "opt", "gpt_neox", "gemma2", "gemma3", "mistral", "bloom")
ENCODER_DECODER = ("t5", "t5_gated", "bart")
FAMILIES = CAUSAL + ENCODER_DECODER

SIZE = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}
ENDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, **ENDS}


def config(family: str) -> tf.PretrainedConfig:
    """The configuration of a tiny model."""
    gemma = {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
    made = {
        "gpt2": lambda: tf.GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=128, **ENDS),
        "llama": lambda: tf.LlamaConfig(**LLAMA_LIKE, **ENDS),
        "qwen2": lambda: tf.Qwen2Config(**LLAMA_LIKE, **ENDS),
        "qwen3": lambda: tf.Qwen3Config(**LLAMA_LIKE, head_dim=16, **ENDS),
        "opt": lambda: tf.OPTConfig(**SIZE, ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=16, **ENDS),
        "gpt_neox": lambda: tf.GPTNeoXConfig(**SIZE, intermediate_size=48, max_position_embeddings=128, **ENDS),
        "gemma2": lambda: tf.Gemma2Config(**gemma, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **ENDS),
        "gemma3": lambda: tf.Gemma3TextConfig(**gemma, **ENDS),
        "mistral": lambda: tf.MistralConfig(**LLAMA_LIKE, sliding_window=6, **ENDS),
        "bloom": lambda: tf.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, **ENDS),
        "t5": lambda: tf.T5Config(**T5, decoder_start_token_id=0),
        "t5_gated": lambda: tf.T5Config(
            **T5, decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False
        ),
        "bart": lambda: tf.BartConfig(
            vocab_size=WORDS,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
            **ENDS,
        ),
    }
    return made[family]()


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """One token per printable ASCII character; 0 pads, 1 ends."""
    vocabulary = {"<pad>": 0, "<end>": 1} | {chr(32 + i): 2 + i for i in range(WORDS - 2)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(single="$A")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", bos_token="<end>", unk_token="?"
    )


def saved_model(folder: Path, seed: int = 0) -> Path:
    """A folder with a tiny Llama of this seed and its tokenizer, as `load` reads it."""
    torch.manual_seed(seed)
    tf.AutoModelForCausalLM.from_config(config("llama")).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tiny(family: str, dtype: torch.dtype = torch.float64, check: bool = False, **options: int | bool) -> Backbone:
    """A tiny random backbone of a family, with weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    made = config(family)
    kind = tf.AutoModelForSeq2SeqLM if made.is_encoder_decoder else tf.AutoModelForCausalLM
    model = kind.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8 if made.is_encoder_decoder is False else 2)
    return as_backbone(freeze(model.to(dtype), tokenizer(), f"tiny-{family}"), check=check, **options)


class TrueFloat64(TorchFunctionMode):
    """Undo the casts to float32 inside transformers (norms, softmax), so that float64 means float64.

    Without it two exact routes differ by 1e-8: noise of 1e-16 flips a rounding to float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wide = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if wide and func is torch.Tensor.float:
            return args[0]
        if wide and func is torch.Tensor.to:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if wide and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
