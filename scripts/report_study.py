"""Reports a study, or any finished runs: the answer, tables with intervals, figures and an HTML page.

    python scripts/report_study.py runs/paper
    python scripts/report_study.py runs/vit-1k runs/resnet-1k --output_dir runs/side-by-side

A run is a folder with results.json. For a folder without it, all runs in that folder are reported and, if it
has a plan.json, also the planned runs that have not finished. The answer comes first: for each question that
the runs can answer, the difference of AUROC with its interval and p-value, and the verdict in words. Writes
report.html (one file, for any browser), report.md, report.csv, report-findings.csv (of tasks with several
labels) and figures/, each figure as PNG and SVG. Runs that differ only in their seed form a row; rows that
differ only in model, augmentation or masking form a table. Does not need torch. The report contains no images
and no ids of patients. Exit status: 0 done, 2 wrong flags, or a run folder that is not valid.
"""

import argparse
import sys
from pathlib import Path

from cxr.cli.command_line import ArgumentParser
from cxr.cli.command_line import add_folder
from cxr.cli.command_line import add_number
from cxr.cli.command_line import number
from cxr.errors import run_script
from cxr.evaluation import intervals
from cxr.run_folder.files import make_output_dir
from cxr.study import worth
from cxr.study.answer import answer
from cxr.study.figures import draw_figures
from cxr.study.measuring import measure_tables
from cxr.study.report import print_answer
from cxr.study.report import print_table
from cxr.study.report import write_report
from cxr.study.results import gather_rows
from rich.console import Console


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__, usage="FOLDER [FOLDER ...] [flags]")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, or a folder of runs")
    add_folder(parser, "--output_dir", "write the report here (default: FOLDER, if only one is given)")
    add_number(
        parser,
        "--num_resamples",
        number(int, "a whole number from 2", lambda value: value >= 2),
        "resample the patients N times for each interval over patients",
        default=intervals.NUM_RESAMPLES,
    )
    args = parser.parse_args(argv)
    if len(args.folders) > 1 and not args.output_dir:
        parser.error("found several folders and no --output_dir; name an --output_dir for the report")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    output_dir = (args.output_dir or args.folders[0]).expanduser()
    rows = gather_rows(args.folders)
    make_output_dir(output_dir)
    tables = measure_tables(rows, args.num_resamples)
    figures = draw_figures(tables, output_dir / "figures")
    title = f"Chest X-ray study: {args.folders[0].absolute().name}"
    answers, worths = answer(tables), worth.worths(tables)
    write_report(tables, answers, worths, figures, output_dir, title=title, num_resamples=args.num_resamples)
    console = Console(width=None if sys.stdout.isatty() else 140)
    print_answer(answers, worths, tables, console)
    for table in tables:
        print_table(table, console)
    print(f"Report: {output_dir / 'report.html'}; report.md, report.csv and figures/ are in the same folder")


if __name__ == "__main__":
    run_script(main)
