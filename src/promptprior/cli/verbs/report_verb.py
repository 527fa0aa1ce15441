"""promptprior report: results as a page, and its tables as Markdown and CSV."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from promptprior.cli.output import command_line, show
from promptprior.cli.verb import FORCE, Verb
from promptprior.config.comparison_folder import ANSWERS, PAGE, PLAN, RESULTS, SIMILARITY
from promptprior.config.plan_file import check_output, is_plan_of, plan_beside, write_outputs
from promptprior.config.training import setting
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import ArtifactError, DataError, SpecError, unknown_name

BASELINE = "prompt_tuning"


@dataclass(frozen=True)
class ReportPlan:
    """The settings of `promptprior report`."""

    results: tuple[Path, ...] = field(
        metadata={"help": "what compare wrote, a results.jsonl or its folder; several (a,b) are read as one comparison"}
    )
    output: Path | None = setting(None, "the page; by default report.html beside the (first) results")
    markdown: Path | None = setting(None, "write the tables to this Markdown file as well")
    csv: Path | None = setting(None, "write each table to a CSV file in this folder as well")
    table: Path | None = setting(None, "write the rows as one table to this .csv or .parquet file as well")
    title: str = setting("promptprior comparison", "heading of the page")
    baseline: str = setting(BASELINE, "method that the others are compared with")
    contrasts: tuple[str, ...] = setting(
        (), 'pairs "a - b" of methods to test and correct alone; by default those of the plan beside the results'
    )
    sweep: tuple[str, ...] = setting(
        (), "swept settings: length,target.steps; by default those of the plan beside the results"
    )
    published: str | None = setting(None, "a preset whose published rows stand beside the results")
    examples: int | None = setting(
        None, "single test examples of each target on the page; 0: none; by default what fits", least=0, most=10**6
    )
    force: bool = setting(False, FORCE)

    def run(self, dry_run: bool) -> None:
        """Write the page, and the tables where they are asked for, and say where they are."""
        files = [path / RESULTS if path.is_dir() else path for path in self.results]
        for file in files:
            if not file.is_file():
                raise DataError(f"{file}: no such file; expected the results.jsonl of a comparison")
        page, own_page = self.output or files[0].with_name(PAGE), files[0].with_name(PAGE)
        outputs = {"--output": page, "--markdown": self.markdown, "--csv": self.csv, "--table": self.table}
        if self.table:
            from promptprior.report.results import TABLE_SUFFIXES

            if self.table.suffix not in TABLE_SUFFIXES:
                raise SpecError(f"{self.table} (--table): expected a name that ends in {' or '.join(TABLE_SUFFIXES)}")
        for flag, output in outputs.items():
            if output is not None and (flag != "--csv" or not output.is_dir()):
                # the page beside the results is the comparison's own
                is_own = output.absolute() == own_page.absolute()
                check_output(output, "report", files, flag=flag, force=self.force, is_own=is_own)
        if dry_run:
            wanted = [str(path) for path in outputs.values() if path]
            return print(f"read {', '.join(map(str, files))}, write {', '.join(wanted)}")

        from promptprior.files import write_bytes, write_text
        from promptprior.report.curves.sweep_curves import DEFAULTS, NOT_SAID, OPTIONS, swept_value
        from promptprior.report.examples.kept_answers import read_answers
        from promptprior.report.page import make_report
        from promptprior.report.protocol.contrasts import contrast_pairs
        from promptprior.report.results import read_rows, read_wanted, rows_table
        from promptprior.report.similarity_gain import read_similarity

        rows = [row for file in files for row in read_rows(file)]
        if rows and self.baseline not in (methods := {row.method for row in rows}) | {BASELINE}:
            raise SpecError(unknown_name("method", self.baseline, methods) + " (--baseline)")
        pairs, sweep, published = self.contrasts, self.sweep, self.published
        plan_file = files[0].with_name(PLAN)
        if is_plan_of(plan_file, "compare"):
            compared = load_yaml(plan_file)
            pairs = pairs or tuple(map(str, compared.get("contrasts") or ()))
            sweep = sweep or tuple(map(str, compared.get("sweep") or ()))
            published = published or compared.get("published")
        sweep = tuple(key.replace("-", "_").removeprefix("settings.") for key in sweep)
        for key in self.sweep and sweep:  # those of a plan are known
            if {swept_value(row, key) for row in rows} <= {None, NOT_SAID}:
                known = {f"{OPTIONS}{row.method}.{name}" for row in rows for name in row.settings.get("method", ())}
                raise SpecError(unknown_name("setting", key, {*DEFAULTS, *known}) + " (--sweep)")
        planned = read_wanted(*files)
        report = make_report(
            rows,
            self.title,
            missing=len({*planned.cells} - {row.cell for row in rows}) if planned else 0,
            left_out=planned.left_out if planned else (),
            baseline=self.baseline,
            command=command_line(),
            contrasts=contrast_pairs(pairs, sorted({row.method for row in rows})),
            published=published,
            sweep=sweep,
            task_similarity=read_similarity(*(file.with_name(SIMILARITY) for file in files)),
            answers=read_answers(*(file.with_name(ANSWERS) for file in files)) if self.examples != 0 else None,
            examples=self.examples,
        )
        table = rows_table(rows, self.table.suffix) if self.table else b""
        tables = {self.csv / part.file_name: part.to_csv() for part in report.tables} if self.csv else {}
        for path in tables:
            check_output(path, "report", files, flag="--csv", force=self.force)
        if self.csv and not self.force and (plan := plan_beside(self.csv)).exists() and not is_plan_of(plan, "report"):
            raise ArtifactError(f"{plan} exists and promptprior report did not write it (--csv); choose another folder")
        if page.absolute() == own_page.absolute():
            report.write_page(page)
        else:
            write_outputs(self, plan_beside(page), "report", {page: report.write_page})
        if self.markdown:
            write_outputs(self, plan_beside(self.markdown), "report", {self.markdown: report.write_markdown})
        if self.csv:
            writers = {path: partial(write_text, text=text) for path, text in tables.items()}
            write_outputs(self, plan_beside(self.csv), "report", writers)
        if self.table:
            write_outputs(self, plan_beside(self.table), "report", {self.table: partial(write_bytes, data=table)})
        written = [page, *filter(None, [self.markdown, self.table]), *tables]
        return show("\n".join(map(str, written)), {"written": written, "best": report.best})


VERB = Verb(
    "report",
    ReportPlan,
    ReportPlan.run,
    "promptprior report runs/first --markdown first.md",
    positional=("results",),
)
