"""The small model of the proving ground: pretrained on all bags of coins, so that its context is its only knowledge.

    python experiments/proving_ground/pretrain.py FOLDER [--steps N]      # about 40 seconds of one core

A Llama of two layers reads throws ("L c cH", a token each) of one bag a sequence, and learns what the next throw will
be: with enough training, the Bayes predictor of the broad family (Ortega et al. 2019; Genewein et al. 2025). The folder
is one that `promptprior.load` reads like any model's. Weights are a function of the seed, on one machine and number of
threads.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parents[1]))
from promptprior.config.mapping import stable_hash
from promptprior.files import make_folder, write_json
from promptprior.notation import Float, Int, Tensor
from proving_ground.coin_world import ANSWERS, COINS, HANDS, SIDES, beta, broad

WORDS = ("<pad>", "<end>", *HANDS, *COINS, *(answer for coin in COINS for answer in ANSWERS[coin]))
HAND, COIN, ANSWER = (WORDS.index(first) for first in (HANDS[0], COINS[0], ANSWERS[COINS[0]][0]))  # first ids
STEPS, BATCH, RATE = 800, 32, 3e-3
THROWS = 32  # of a pretraining sequence


def config() -> tf.LlamaConfig:
    """Two layers of width 48."""
    return tf.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=96, max_position_embeddings=512, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """A token a word; numbers, which only keep texts apart, are not read."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    made.normalizer = normalizers.Replace(Regex("[0-9]+"), "")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", bos_token="<end>", unk_token="<end>"
    )


def sequences(count: int, throws: int, g: torch.Generator, is_uneven: bool = False) -> Int[Tensor, "count 3*throws"]:
    """Token ids of throws of `count` bags, each bag a sequence: hand, coin, answer.

    `is_uneven`: a sequence throws some coins more often than others. What is to be predicted stays the same, and a
    model that cannot yet tell coins apart has something to learn from.
    """
    half = torch.full((count, len(COINS)), 0.5)
    theta = beta(half, half, g)
    often = torch._standard_gamma(half.double(), generator=g) if is_uneven else half.double()  # [count, coins]
    coin = torch.multinomial(often + 1e-6, throws, replacement=True, generator=g)
    hand = torch.randint(len(HANDS), (count, throws), generator=g)
    tails = (torch.rand(count, throws, generator=g, dtype=torch.float64) >= theta.gather(1, coin)).long()
    return torch.stack([hand + HAND, coin + COIN, 2 * coin + tails + ANSWER], -1).flatten(1)


def losses(model: tf.PreTrainedModel, ids: Int[Tensor, "n 3*throws"]) -> Float[Tensor, "n throws"]:
    """What the model pays for each throw, in nats; it is trained on nothing else."""
    states = model.model(input_ids=ids).last_hidden_state[:, 1::3]  # at the coin, before its side
    logits = model.lm_head(states)  # [n, throws, V]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 2::3], reduction="none")


def bayes_losses(ids: Int[Tensor, "n 3*throws"]) -> Float[Tensor, "n throws"]:
    """What the Bayes predictor of the broad family pays for each throw, in nats."""
    coin = torch.nn.functional.one_hot(ids[:, 1::3] - COIN, len(COINS)).double()  # [n, throws, coins]
    side = torch.nn.functional.one_hot((ids[:, 2::3] - ANSWER) % 2, len(SIDES)).double()  # [n, throws, 2]
    thrown = coin[..., None] * side[:, :, None]
    before = thrown.cumsum(1) - thrown  # [n, throws, coins, 2]; hands do not matter: count them all as the left's
    heads = broad().posterior(torch.stack([before, torch.zeros_like(before)], -3))[1][..., 0, :]  # [n, throws, coins]
    p = (heads * coin).sum(-1)
    return -torch.where(side[..., 0] > 0, p.log(), (-p).log1p())


def pretrain(
    folder: Path, steps: int = STEPS, batch_size: int = BATCH, rate: float = RATE, seed: int = 0, bags: int = 2000
) -> None:
    """Train the model, compare it with Bayes on so many new bags, and write it to a folder, whole or not at all."""
    torch.manual_seed(seed)
    model, g = tf.LlamaForCausalLM(config()), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    start = time.monotonic()
    for step in range(steps):
        ids = sequences(batch_size, THROWS, g, is_uneven=True)
        loss = losses(model, ids).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            paid, best, seconds = loss.item(), float(bayes_losses(ids).mean()), time.monotonic() - start
            print(f"pretraining: step {step}, {paid:.4f} nats, Bayes {best:.4f}, {seconds:.0f} s", flush=True)
    compared = compare_with_bayes(model, seed, bags)
    made = {"steps": steps, "batch_size": batch_size, "rate": rate, "seed": seed, "against_bayes": compared}

    def write(empty: Path) -> None:
        model.save_pretrained(empty)
        tokenizer().save_pretrained(empty)
        write_json(empty / "pretraining.json", made)

    make_folder(folder, write)


@torch.no_grad()
def compare_with_bayes(model: tf.PreTrainedModel, seed: int, bags: int) -> list[dict[str, float]]:
    """Loss of the model and of the Bayes predictor after n throws, on bags that training never saw, in nats."""
    ids = sequences(bags, THROWS, torch.Generator().manual_seed(seed + 10**6))
    ours, best = losses(model, ids).double(), bayes_losses(ids)
    return [
        {
            "throws": n,
            "model": float(ours[:, n].mean()),
            "bayes": float(best[:, n].mean()),
            "excess": float((ours - best)[:, n].mean()),
            "error": float((ours - best)[:, n].std() / bags**0.5),
        }
        for n in (0, 1, 2, 4, 8, 16, THROWS - 1)
    ]


def cached_model(steps: int = STEPS) -> Path:
    """The folder of the pretrained model, which is made where it is not yet there, in $PROMPTPRIOR_CACHE or the user's
    cache; its name says how it was pretrained."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(os.environ.get("PROMPTPRIOR_CACHE") or Path(user_cache) / "promptprior")
    folder = cache / f"proving-ground-{stable_hash([steps, THROWS, WORDS, config().to_json_string(use_diff=True)])}"
    if not (folder / "pretraining.json").exists():
        pretrain(folder, steps)
    return folder


def main() -> None:
    """Pretrain, and print how near the model is to Bayes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=RATE)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pretrain(chosen.folder, chosen.steps, chosen.batch_size, chosen.rate)


if __name__ == "__main__":
    main()
