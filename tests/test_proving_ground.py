"""The proving ground: its exact answers against brute force, its model, its particles against a grid, its resume."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad

from promptprior.backbone import Backbone, load
from promptprior.config.training import Settings, Training
from promptprior.fit import fit
from promptprior.methods import METHODS
from promptprior.methods.target_only.in_context import InContext

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from proving_ground import claims, coin_world, exact_posterior, pretrain, run, tables, trials
from proving_ground.coin_world import CELLS, COINS, HANDS, SIDES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    pretrain.pretrain(path, steps=6, batch_size=8, bags=50)
    return path


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load(str(folder), "float32", "cpu")


def some_throws(seed: int, count: int = 15) -> torch.Tensor:
    cells = torch.randint(2 * math.prod(CELLS), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.bincount(cells, minlength=2 * math.prod(CELLS)).double().view(*CELLS, 2)


# Exact answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rules", "split", "concentration"), [(1, 0, 1.0), (2, 2, 3.0), (3, 6, 0.7)])
def test_bayes_is_the_integral(rules: int, split: int, concentration: float):
    """Each coin by numerical integration over its own P(heads), and the rules by Bayes' formula."""
    of, throws = coin_world.family(3, rules, concentration, split), some_throws(1)
    evidence, heads = torch.ones(rules, dtype=torch.float64), torch.zeros(rules, *CELLS, dtype=torch.float64)
    for r in range(rules):
        for x in range(len(COINS)):
            of_hands = [[0, 1]] if x < len(COINS) - split else [[0], [1]]
            for hands in of_hands:
                n1, n0 = throws[hands, x].sum(0).tolist()
                m = float(of.centres[r, hands[0], x])
                ends = (concentration * m - 1, concentration * (1 - m) - 1)  # the density is p^a (1 - p)^b
                constant, total, first = (
                    quad(lambda p, a=a, b=b: p**a * (1 - p) ** b, 0, 1, weight="alg", wvar=ends)[0]
                    for a, b in ((0, 0), (n1, n0), (n1 + 1, n0))
                )
                evidence[r] *= total / constant
                for hand in hands:
                    heads[r, hand, x] = first / total
    weights = evidence / evidence.sum()
    found_rules, found = of.posterior(throws)
    torch.testing.assert_close(found_rules, weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, torch.einsum("r,rhx->hx", weights, heads), rtol=1e-4, atol=1e-6)


def test_rules_without_spread_are_weighed_by_their_likelihood():
    of, throws = coin_world.family(5, rules=4), some_throws(2)
    likelihood = [
        math.prod(
            float(rule[h, x]) ** int(throws[h, x, 0]) * float(1 - rule[h, x]) ** int(throws[h, x, 1])
            for h in range(2)
            for x in range(len(COINS))
        )
        for rule in of.centres
    ]
    expected = torch.tensor(likelihood, dtype=torch.float64) / math.fsum(likelihood)
    torch.testing.assert_close(of.posterior(throws)[0], expected, rtol=1e-6, atol=1e-9)


def test_no_predictor_is_better_on_average_than_bayes():
    """Over tasks of the family, its own Bayes predictor pays less than that of a wrong family."""
    of, wrong = coin_world.family(1, 1, 8.0), coin_world.family(2, 1, 8.0)
    bags = trials.make_bags(of, "target", 200, 2, 0)
    known = torch.stack([coin_world.counts(coin_world.make_shots(bag, 10, 0).train) for bag in bags])
    paid = {
        name: trials.mean(float(bag.nats(p)) for bag, p in zip(bags, each.posterior(known)[1], strict=True))
        for name, each in {"own": of, "broad": coin_world.broad(), "wrong": wrong}.items()
    }
    assert trials.mean(bag.entropy() for bag in bags) < paid["own"] < min(paid["broad"], paid["wrong"])


def test_the_score_is_the_expected_loss():
    theta = coin_world.broad().draw(torch.Generator().manual_seed(1))
    bag = coin_world.make_bag("bag", theta, 2, torch.Generator().manual_seed(2))
    heads = torch.rand(*CELLS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    losses = []
    for h in range(2):
        for x in range(len(COINS)):
            p, q = float(theta[h, x]), float(heads[h, x])
            losses.append(-p * math.log(q) - (1 - p) * math.log(1 - q))
    assert float(bag.nats(heads)) == pytest.approx(math.fsum(losses) / len(losses))
    assert torch.equal(theta[0], theta[1])  # both hands throw the same coins


def test_throws_come_out_as_the_coins_say():
    theta = coin_world.family(0, 1, 4.0, split=6).draw(torch.Generator().manual_seed(0))
    thrown = coin_world.counts(coin_world.make_throws("many", theta, 24_000, torch.Generator().manual_seed(1)))
    error = (theta * (1 - theta) / thrown.sum(-1)).sqrt()
    assert ((thrown[..., 0] / thrown.sum(-1) - theta).abs() < 5 * error + 1e-3).all()


# The model ------------------------------------------------------------------------------------------------------------


def test_the_library_reads_throws_as_pretraining_wrote_them(backbone: Backbone, folder: Path):
    bag = coin_world.make_bag("bag", coin_world.broad().draw(torch.Generator().manual_seed(1)), 6,
                              torch.Generator().manual_seed(2))  # fmt: skip
    example = bag.task.split("train")[0]
    _, hand, coin = example.text.split()
    [tokens] = backbone.tokens([example.text], [example.choices])
    words = pretrain.WORDS
    assert [words[i] for i in tokens.text] == [hand, coin]
    assert [words[i] for row in tokens.targets for i in row] == [coin + side for side in SIDES]
    shown = InContext().tokens(backbone, bag.task, bag.task.split("train"))
    assert len(shown) == 18
    assert {words[i] for i in shown[0::3]} <= {*HANDS}
    assert {words[i] for i in shown[1::3]} <= {*COINS}
    assert [words[i][0] for i in shown[2::3]] == [words[i] for i in shown[1::3]]
    assert (folder / "pretraining.json").exists()


def test_the_bayes_loss_of_a_sequence_is_that_of_counting():
    ids = pretrain.sequences(3, 12, torch.Generator().manual_seed(0), is_uneven=True)
    expected = torch.empty(3, 12, dtype=torch.float64)
    for s, sequence in enumerate(ids.view(3, 12, 3).tolist()):
        seen: dict[tuple[int, int], int] = {}
        for t, (_, coin, side) in enumerate(sequence):
            before = sum(count for (other, _), count in seen.items() if other == coin)
            expected[s, t] = -math.log((seen.get((coin, side), 0) + 0.5) / (before + 1))
            seen[coin, side] = seen.get((coin, side), 0) + 1
    torch.testing.assert_close(pretrain.bayes_losses(ids), expected)


def test_pretraining_gives_the_same_weights_again(folder: Path, tmp_path: Path):
    pretrain.pretrain(tmp_path / "again", steps=6, batch_size=8, bags=50)
    first, again = (load(str(path), "float32", "cpu", check=False) for path in (folder, tmp_path / "again"))
    assert first.card.fingerprint == again.card.fingerprint


# Particles and the grid -----------------------------------------------------------------------------------------------


def plane_posterior(backbone: Backbone, tokens: int, width: int) -> exact_posterior.PlanePosterior:
    bag = coin_world.make_bag("bag", coin_world.broad().draw(torch.Generator().manual_seed(1)), 2,
                              torch.Generator().manual_seed(2))  # fmt: skip
    plane = exact_posterior.random_plane(backbone, tokens, width, 0)
    return exact_posterior.PlanePosterior(backbone, plane, some_throws(4, 30), bag)


def test_the_density_is_the_models_own(backbone: Backbone):
    """By the model's forward pass on embeddings that are put together by hand, text by text."""
    posterior = plane_posterior(backbone, 2, 1)
    z = torch.tensor([[[0.5], [-1.5]], [[0.0], [2.0]]])
    model, words = backbone.frozen.model, pretrain.WORDS
    expected = []
    for each in z:
        prompt = posterior.plane.base + each * posterior.plane.directions[:, 0]
        total = -float(each.square().sum()) / 2
        for h, hand in enumerate(HANDS):
            for x, coin in enumerate(COINS):
                text = backbone.frozen.embed(torch.tensor([words.index(hand), words.index(coin)]))
                logits = model(inputs_embeds=torch.cat([prompt, text])[None]).logits[0, -1]
                logs = torch.log_softmax(logits, 0)[[words.index(coin + side) for side in SIDES]]
                total += float((posterior.throws[h, x] * logs).sum())
        expected.append(total)
    torch.testing.assert_close(posterior.describe(z)[0], torch.tensor(expected).double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("tokens", "width", "kernel"), [(1, 1, "rbf"), (1, 2, "rbf"), (2, 1, "per_token")])
def test_particles_are_within_monte_carlo_error_of_the_grid(backbone: Backbone, tokens: int, width: int, kernel):
    posterior = plane_posterior(backbone, tokens, width)
    exact = posterior.integrate()
    z = posterior.particles(kernel, 12, 50, seed=0)
    found = exact.compare(z, posterior.describe(z)[1])
    assert found["edge"] < 0.02
    assert found["error"] < 2 * found["monte_carlo"]
    assert 0.5 < found["variance"] < 1.5
    alone = posterior.particles("none", 5, 60, seed=0)  # chains go to the mode: no posterior
    assert exact.compare(alone, posterior.describe(alone)[1])["variance"] < 0.2


def test_kernels_keep_the_variance_that_theory_says():
    """log(M + 1) / d in many dimensions (docs/bmtpt.md)."""
    kept = exact_posterior.gaussian_variance("rbf", 0, 5, (40, 8), 0)
    assert kept == pytest.approx(math.log(6) / 320, rel=0.2)


# Trials and the command -----------------------------------------------------------------------------------------------

STEPS = Settings(length=2, source=Training(steps=2, batch_size=8), target=Training(steps=2, learning_rates=(0.1,)))
SMALL = trials.Setup(targets=2, sources=2, source_throws=24, settings=STEPS)


def test_a_trial_scores_every_arm_on_the_same_targets(backbone: Backbone):
    arms = claims.arms("in_context", "multitask", "bmtpt_predictive", "tpt")
    rows = trials.measure_gains(trials.Trial(backbone, coin_world.family(0, 2), (4, 6), 0, SMALL), arms)
    assert {row["arm"] for row in rows} == {*arms, "broad_bayes", "bayes", "entropy"}
    assert all(math.isfinite(row["nats"]) and row["targets"] == 2 for row in rows)
    found = trials.shares(rows, 4)
    assert found["untrained"] == 0
    assert found["bayes"] == 1


def test_claims_that_share_an_arm_measure_it_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch):
    fitted = []
    monkeypatch.setattr(trials, "fit", lambda recipe, *rest: fitted.append(recipe.name) or fit(recipe, *rest))
    conditions = claims.FAMILIES["2 rules"]
    claims.family_trial.cache_clear()
    both = [
        claims.measuring(partial(claims.arms, *names), (4, 6))(backbone, conditions, 0, SMALL)
        for names in (("multitask", "prompt_tuning"), ("reptile", "multitask"))
    ]
    assert fitted == ["multitask", "reptile"]
    alone = trials.Trial(backbone, coin_world.family(0, **conditions), (4, 6), 0, SMALL)
    assert both[1] == trials.measure_gains(alone, claims.arms("reptile", "multitask"))


def test_predictions_are_those_of_the_model(backbone: Backbone):
    """Without a prompt: the next token's probabilities after hand and coin."""
    [bag] = trials.make_bags(coin_world.broad(), "target", 1, 2, 0)
    method = METHODS["zero_shot"]
    episodes = [trials.make_episode(method, bag, 4, 0)]
    heads = trials.predict_heads(backbone, trials.adapt(method, episodes, backbone, None, STEPS))
    text = torch.tensor([[pretrain.WORDS.index("R"), pretrain.WORDS.index("c")]])
    logits = backbone.frozen.model(text).logits[0, -1][[pretrain.WORDS.index(f"c{side}") for side in SIDES]]
    assert float(heads[0, 1, 2]) == pytest.approx(float(torch.softmax(logits, 0)[0]), rel=1e-4)


def test_a_run_measures_only_what_is_missing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def measure(backbone: Backbone, condition: object, fit: int, setup: trials.Setup) -> list[trials.Result]:
        calls.append((condition, fit))
        return [{"arm": "some, 5", "variance": 1.0 + fit}]

    claim = replace(claims.KERNELS, conditions={"1": 1, "2": 2}, measure=measure)
    monkeypatch.setitem(claims.CLAIMS, "kernels", claim)
    command = ["--output", str(tmp_path / "out"), "--claims", "kernels", "--workers", "1", "--model", str(folder)]
    run.main([*command, "--fits", "2"])
    assert sorted(calls) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    with (tmp_path / "out" / "rows.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # a crash while writing
    run.main([*command, "--fits", "3"])
    assert sorted(calls[4:]) == [(1, 2), (2, 2)]
    run.main([*command, "--fits", "3"])
    assert len(calls) == 6
    run.main([*command, "--fits", "1", "--targets", "3"])  # other settings: nothing is mixed
    assert len(calls) == 8
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| some, 5 | 1.00 one run | 1.00 one run |" in text
    assert "plotly" in (tmp_path / "out" / "figures.html").read_text()
    with pytest.raises(SystemExit):
        run.main([*command, "--claims", "nothing"])


@pytest.mark.parametrize("name", [name for name, claim in claims.CLAIMS.items() if claim.kind == "share"])
def test_tables_have_every_contrast(name: str):
    claim = claims.CLAIMS[name]
    some = ["untrained", "bayes", "broad_bayes", "entropy", *dict.fromkeys(a for pair in claim.contrasts for a in pair)]
    records = [
        {
            "claim": name, "condition": condition, "fit": fit,
            "rows": [{"arm": arm, "throws": 4, "targets": 3, "nats": 0.7 - 0.1 * place + 0.01 * fit * (place > 3)}
                     for place, arm in enumerate(some)],
        }
        for condition in claim.conditions
        for fit in range(3)
    ]  # fmt: skip
    made = tables.TABLES[claim.kind](claim, records)
    assert len(made) == (2 if claim.contrasts else 1)
    assert len(made[-1].rows) == len(claim.conditions) * max(1, len(claim.contrasts))


def test_the_tables_of_what_was_measured_are_those_of_its_rows(tmp_path: Path) -> None:
    measured = Path(__file__).parents[1] / "docs/studies/results/proving_ground"
    lines = [json.loads(line) for line in (measured / "rows.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    for claim in claims.CLAIMS.values():  # whole fits; some claims have more than others
        own = [line["fit"] for line in lines if line["claim"] == claim.name]
        assert len(own) == len({*own}) * len(claim.conditions)
    tables.write_tables(lines, tmp_path)
    assert (tmp_path / "tables.md").read_text() == (measured / "tables.md").read_text()
