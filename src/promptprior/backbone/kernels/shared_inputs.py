"""How tokens enter the first block, where much is shared or frozen.

Before the first attention a token's numbers depend on the token alone. So what several texts repeat is normed and
projected once, and below the first attention no gradient is carried to tokens that are never trained.
"""

from dataclasses import dataclass

from promptprior.notation import Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class SharedInputs:
    """Which input row each token reads, and which rows want a gradient: always the first ones.

    Without `source` each token is a row of its own, and the first `trained` rows want a gradient (None: all of them).
    With it token t reads row `source[t]`; the rows are P prompts of L tokens, which want a gradient, then the tokens
    of the texts. `prompt_tokens` names the tokens that read a prompt, text after text, and `reads[p, x]` is 1 where
    text x reads prompt p.
    """

    trained: int | None = None
    source: Int[Tensor, " N"] | None = None
    prompt_tokens: Int[Tensor, " XL"] | None = None
    reads: Float[Tensor, "P X"] | None = None

    def spread(self, x: Float[Tensor, "S w"]) -> Float[Tensor, "N w"]:
        """What each token reads."""
        return x if self.source is None else x.index_select(0, self.source)

    def collect(self, gradient: Float[Tensor, "N w"]) -> Float[Tensor, "n w"]:
        """The gradient of the rows that want one, given that of every token: the transpose of `spread`."""
        if self.prompt_tokens is None or self.reads is None:
            return gradient[: self.trained]
        # The sum over the texts that read a prompt, as a product: it adds up in float32 also where half goes in
        of_texts = gradient.index_select(0, self.prompt_tokens).view(self.reads.shape[1], -1)  # [X, L w]
        return (self.reads @ of_texts).view(-1, gradient.shape[1])  # [P L, w]
