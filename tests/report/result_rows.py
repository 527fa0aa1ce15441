"""Result rows for tests: one that is whole, and a grid that looks like a real comparison."""

import math

import numpy as np

from promptprior.report.examples.kept_answers import ExampleSet, example_line


def result_row(**changes):
    """One whole row of results.jsonl, with some values changed."""
    return {
        "cell": "c0",
        "method": "prompt_tuning",
        "target": "capital",
        "family": "geography",
        "k": 16,
        "seed": 13,
        "split": "test",
        "metric": "accuracy",
        "score": 0.5,
        "scores": {"accuracy": 0.5, "nll": 0.7},
        "dev_score": 0.55,
        "steps": 100,
        "best_step": 80,
        "curve": [{"step": 0, "train_loss": 2.0, "dev_score": 0.3, "dev_nll": None}],
        "settings": {"lr": 0.3, "length": 16},
        "cost": {
            "seconds": 12.5,
            "rows": 1600,
            "tokens": 40000,
            "source_seconds": 0.0,
            "source_rows": 0,
            "source_tokens": 0,
        },
        "parameters": {"trainable": 9216, "stored": 9216},
        "sources": [],
        "n_test": 200,
        "backbone": {"name": "SmolLM2-135M-Instruct", "fingerprint": "ab12cd34"},
        "shots": {"train_ids": ["a", "b"], "dev_ids": ["c"]},
        "versions": {"promptprior": "0.1.0", "torch": "2.13.0"},
        "status": "ok",
        "error": "",
        "diagnostics": {},
        "constant": None,
    } | changes


TARGETS = {
    "capital_of": ("geography", 0.42, 0.16),
    "currency_of": ("geography", 0.35, 0.12),
    "rhymes_with": ("phonetics", 0.58, 0.05),
    "syllable_count": ("phonetics", 0.61, -0.08),
    "plural_of_a_rather_long_task_name": ("lexical", 0.72, 0.01),
    "antonym": ("lexical", 0.55, 0.09),
    "chemical_symbol": ("chemistry", 0.47, 0.14),
    "is_prime": ("numbers", 0.53, -0.01),
}
TRANSFER = {"zero_shot": None, "prompt_tuning": 0.0, "multitask": 1.0, "spot": 0.7}


def grid_rows(ks=(4, 16), seeds=(13, 21, 42), targets=TARGETS, methods=TRANSFER):
    """A finished grid in which transfer helps on some targets, hurts on one and does nothing on others."""
    rng = np.random.default_rng(5)
    rows = []
    for target, (family, base, gain) in targets.items():
        for method in methods:
            for k in (0,) if method == "zero_shot" else ks:
                for seed in (0,) if method == "zero_shot" else seeds:
                    rows.append(one(rng, method, target, family, base, gain, k, seed))
    return rows


def one(rng, method, target, family, base, gain, k, seed):
    share = TRANSFER[method]
    level = base - 0.18 if share is None else base + share * gain + 0.05 * math.log2(k / 4)
    score = round(float(np.clip(level + rng.normal(0, 0.0 if share is None else 0.025), 0.01, 0.99)), 4)
    steps = 0 if share is None else 200
    source = 90.0 * (share or 0.0)
    return result_row(
        cell=f"{method}-{target}-{k}-{seed}",
        method=method,
        target=target,
        family=family,
        k=k,
        seed=seed,
        score=score,
        scores={"accuracy": score, "nll": round(1.2 - score, 4)},
        dev_score=None if share is None else round(min(score + 0.03, 1.0), 4),
        steps=steps,
        best_step=steps - 40 if steps else None,
        curve=curve(rng, score, share) if steps else [],
        settings={} if share is None else {"lr": 0.3 if share else 0.1, "length": 16, "schedule": "linear"},
        cost={
            "seconds": 0.0 if share is None else round(float(rng.uniform(5, 9)) * (1 + k / 16), 3),
            "rows": steps * 16,
            "tokens": steps * 500,
            "source_seconds": source and source + seed / 100,  # each seed has a prior of its own
            "source_rows": int(source * 400),
            "source_tokens": int(source * 9000),
        },
        parameters={"trainable": 9216 if steps else 0, "stored": 9216 if steps else 0},
        sources=["country_of", "hypernym", "past_tense"] if share else [],
    )


def curve(rng, score, share):
    points = []
    for step in range(0, 201, 20):
        grown = 1 - math.exp(-step / (60 if not share else 25))
        points.append(
            {
                "step": step,
                "train_loss": round(2.2 - 1.6 * grown + float(rng.normal(0, 0.05)), 4) if step else None,
                "dev_score": round(0.2 + (score - 0.2) * grown + float(rng.normal(0, 0.01)), 4),
                "dev_nll": round(1.5 - 0.9 * grown * score, 4),
            }
        )
    return points


def bank_rows(targets=("capital_of", "antonym"), k=16, seeds=(13, 21), tokens=40, static=False):
    """Rows of a method with a bank, with what its diagnostics say; where static, every text gets the same tokens."""
    rng = np.random.default_rng(3)
    return [
        result_row(
            cell=f"tpt-{target}-{seed}", method="tpt", target=target, k=k, seed=seed,
            sources=["country_of", "past_tense"], score=round(0.5 + float(rng.normal(0, 0.02)), 4),
            diagnostics={"retrieval": retrieval(rng, target, tokens, static)},
        )
        for target in targets
        for seed in seeds
    ]  # fmt: skip


def retrieval(rng, target, tokens, static):
    tasks = ["country_of", "past_tense", target]
    use = [np.where(np.arange(tokens) < 8, 1.0, 0.0) if static else rng.dirichlet(np.full(tokens, 0.2)) for _ in tasks]
    table = [[round(float(v), 3) for v in (row if static else np.minimum(1, 8 * row))] for row in use]
    return {
        "rows": tokens,
        "retrieved": 8,
        "rows_used": 30,
        "dead_rows": tokens - 30,
        "entropy": 3.0 if static else 4.6,
        "overlap_within_task": 1.0 if static else 0.62,
        "overlap_between_tasks": 1.0 if static else 0.21,
        "overlap_if_random": 0.11,
        "distinct_sets": 1 if static else 90,
        "texts": 128,
        "tasks": tasks,
        "map": table,
        "tokens": [{"row": i, "share": 0.9, "rms": 1.2, "words": [" the", "<s>"]} for i in range(15)],
    }


SOURCES = ("country_of", "hypernym", "past_tense")


def task_similarity(targets=TARGETS, sources=SOURCES):
    """Similarities in which gradients foretell the planted gains and the others are noise."""
    rng = np.random.default_rng(4)
    return {
        "backbone": {"name": "SmolLM2-135M-Instruct", "fingerprint": "ab12cd34"},
        "shots": 16,
        "seed": 13,
        "steps": 20,
        "pairs": [
            {
                "source": source,
                "target": target,
                "gradient": gain * 4 + 0.1 * s,
                **{m: float(rng.uniform(-0.2, 0.8)) for m in ("prompt", "token")},
                **{m: float(rng.uniform(0, 1)) for m in ("label", "format")},
            }
            for target, (_, _, gain) in targets.items()
            for s, source in enumerate(sources)
        ],
    }


def answer_lines(rows, examples=30, n_test=200, text="Text {i} of {target}"):
    """Lines of answers.jsonl for rows: for each target a set of examples, and answers of which some are wrong.

    A right answer has a probability of 0.9 and a wrong one of 0.6; zero_shot is wrong on every third example.
    """
    lines, choices = {}, ["yes", "no", "perhaps"]
    for row in rows:
        target, rng = row["target"], np.random.default_rng(len(lines))
        labels = [i % 3 for i in range(examples)]
        of_target = ExampleSet(
            target, n_test, tuple(str(i) for i in range(examples)),
            tuple(text.format(i=i, target=target) for i in range(examples)),
            tuple((choices[label],) for label in labels), (tuple(choices),),
        )  # fmt: skip
        lines.setdefault(target, example_line(of_target))
        is_wrong = [i % 3 == 1 if row["method"] == "zero_shot" else rng.uniform() < 0.3 for i in range(examples)]
        lines[row["cell"], "answers"] = {
            "cell": row["cell"], "examples": of_target.key,
            "answers": [(label + wrong) % 3 for label, wrong in zip(labels, is_wrong, strict=True)],
            "probabilities": [0.6 if wrong else 0.9 for wrong in is_wrong],
            "gold_probabilities": [0.2 if wrong else 0.9 for wrong in is_wrong],
        }  # fmt: skip
    return list(lines.values())
