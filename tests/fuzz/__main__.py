"""`python -m tests.fuzz --count 2000 --seed 0`: random compositions against the reference."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .campaign import drawn, run
from .shrink import reproduction, shrink

SHOWN = 5
"""The most failures that are made smaller and printed."""


def main() -> int:
    """Run, report and say whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many compositions")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first")
    parser.add_argument("--report", type=Path, help="a Markdown file for the summary")
    given = parser.parse_args()
    torch.set_num_threads(1)
    campaign = run(drawn(range(given.seed, given.seed + given.count)), sys.stderr)
    report = campaign.report()
    print(report)
    if given.report is not None:
        given.report.write_text(report)
    for c, _ in campaign.failures[:SHOWN]:
        print(f"# Found as {c!r}\n{reproduction(*shrink(c))}")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
