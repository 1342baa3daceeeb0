"""The command `python -m benchmarks.check_data`: are the rating files there, and are they right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.__main__ import default_data
from benchmarks.problems import rating_downloads
from benchmarks.problems.rating_downloads import EXPECTED, Finding
from benchmarks.problems.rating_files import SOURCES

app = typer.Typer(add_completion=False)


@app.command()
def main(
    data: Annotated[Path | None, typer.Option(help="The folder of the data sets.")] = None,
) -> None:
    """Say of each rating data set where it comes from, and check the file if it is there."""
    folder = data or default_data()
    typer.echo(f"data folder: {folder or 'none given (--data, or the variable ODEOPT_DATA)'}")
    findings = [rating_downloads.check(name, folder) for name in SOURCES]
    for finding in findings:
        typer.echo(f"\n{describe(finding)}")
    if any(finding.wrong for finding in findings):
        raise typer.Exit(1)


def describe(finding: Finding) -> str:
    """A few lines about a data set."""
    source, expected = SOURCES[finding.name], EXPECTED[finding.name]
    lines = [
        f"{finding.name}: {source.file}, {_verdict(finding)}",
        *(f"  wrong: {what}" for what in finding.wrong),
        f"  {source.origin}",
        f"  Terms: {expected.terms}.",
    ]
    if finding.present and not finding.same_file:
        lines.append("  The file is not, byte for byte, the one that the reports were made with.")
    return "\n".join(lines)


def _verdict(finding: Finding) -> str:
    if not finding.present:
        return "not there"
    return "NOT as expected" if finding.wrong else "there and as expected"


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.check_data")
