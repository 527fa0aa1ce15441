# %% [markdown]
# # Read a report
#
# A report is made from rows, and reading needs no model. These are the rows of the study
# [demo](../studies/demo.md): SmolLM2-135M, real runs, made by `make demo`.

# %%
from pathlib import Path

from promptprior.report.page import make_report
from promptprior.report.results import read_rows

rows = read_rows(Path("docs/studies/results/demo.jsonl"))
report = make_report(rows)
row = rows[-1]
print(f"{len(rows)} rows of {len(report.grid.methods)} methods on {', '.join(report.grid.targets)}")
print(f"one row: {row.method} on {row.target}, k = {row.k}, seed {row.seed}: {row.metric} {row.score:.2f}")

# %% [markdown]
# **First what the numbers cannot say.** Gates of [the protocol](../protocol.md) that the rows do not pass come before
# any score.

# %%
for caution in report.cautions:
    print(f"{caution.gate}\n    found: {caution.found}\n    so: {caution.so}")

# %% [markdown]
# **Then what was found**, in sentences. A method is called better only where three ways of looking agree.

# %%
print("\n".join(report.headline))

# %% [markdown]
# **Then a score with its interval.** Seeds are few, so it is Student's t over seeds, cut at the metric's range. It does
# not hold the noise of the test rows, which all seeds share.

# %%
for method in report.grid.methods:
    for target in report.grid.targets:
        k = 0 if (method, target, 0) in report.grid.intervals else 4
        found = report.grid.intervals.get((method, target, k))
        if found is not None:
            span = "one run" if found.low is None else f"[{found.low:.3f}, {found.high:.3f}]"
            print(f"{method:14}{target:18}{found.estimate:.3f}  {span}")

# %% [markdown]
# **Then everything else.** All that the page shows is in tables that can also be written as Markdown
# or CSV. [Reading a report](../reading_a_report.md) explains every column.

# %%
for section in report.sections:
    print(f"{section.title}: {', '.join(table.name for table in section.tables) or 'plots'}")
