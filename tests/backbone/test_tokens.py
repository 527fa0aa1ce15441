"""Texts and targets as ids: targets continue their text, whitespace moves to the target, ends are taught."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from promptprior.backbone.frozen import Frozen
from tests.backbone.tiny import tiny


def frozen(family: str = "llama") -> Frozen:
    return tiny(family).frozen


def spelled(made: Frozen, ids: tuple[int, ...]) -> str:
    return made.tokenizer.decode(list(ids))


@pytest.mark.parametrize(
    ("text", "delimiter", "target", "expected"),
    [
        ("is it", " ", "so", ("is it", " so")),
        ("is it ", " ", "so", ("is it", " so")),
        ("is it\n", " ", "so", ("is it", "\nso")),
        ("is it", "\n", "so", ("is it", "\nso")),
        ("is it", "", "so", ("is it", "so")),
        ("is it  ", "", "so", ("is it", "  so")),
        ("", " ", "so", ("", " so")),
    ],
)
def test_whitespace_before_a_target_belongs_to_the_target(
    text: str, delimiter: str, target: str, expected: tuple[str, str]
) -> None:
    made = frozen()
    tokens = made.tokens([text], [[target]], delimiter)[0]
    assert tokens.text == tuple(made.alone(expected[0]))
    assert tokens.targets == (tuple(made.alone(expected[1])),)


def test_the_end_token_is_added_when_asked_and_only_once() -> None:
    made = frozen()
    end = made.tokenizer.eos_token_id
    assert made.tokens(["ab"], [["c"]], end=True)[0].targets[0][-1] == end
    assert end not in made.tokens(["ab"], [["c"]])[0].targets[0]


def test_encoder_decoders_read_targets_alone_and_texts_as_they_are() -> None:
    made = frozen("t5")
    tokens = made.tokens(["is it "], [["so", "not so"]])[0]
    assert spelled(made, tokens.text) == "is it "
    assert [spelled(made, t) for t in tokens.targets] == ["so", "not so"]


def pairs() -> PreTrainedTokenizerFast:
    """A tokenizer that joins "b" and " c" across the border of text and target."""
    made = Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2, "c": 3, "b ": 4, "<end>": 9}, [("b", " ")]))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def test_a_target_that_merges_with_its_text_is_read_alone() -> None:
    made = replace(frozen(), tokenizer=pairs())
    assert made.alone("ab c") == [0, 4, 3]
    tokens = made.tokens(["ab", "a"], [["c", "a"], ["c"]])
    assert tokens[0].text == (0, 1)
    assert tokens[0].targets == ((2, 3), (2, 0))
    assert tokens[1].targets == ((2, 3),)


def test_every_text_keeps_its_own_targets() -> None:
    made = frozen()
    tokens = made.tokens(["a", "bb", "ccc"], [["x"], ["yy", "y"], ["z"]])
    assert [[spelled(made, t).strip() for t in some.targets] for some in tokens] == [["x"], ["yy", "y"], ["z"]]
    assert [spelled(made, some.text) for some in tokens] == ["a", "bb", "ccc"]
