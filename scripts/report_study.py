"""Puts the results of finished runs side by side: a table on the terminal and, with --output, as Markdown.

    python scripts/report_study.py runs/demo
    python scripts/report_study.py runs/vit-1k runs/resnet-1k --output table.md

A run is a folder with results.json; a folder without one stands for the runs in it. Nothing here needs torch.
"""

import json
import sys
from pathlib import Path

from cxr.command_line import ArgumentParser
from cxr.records import write_text
from rich.console import Console
from rich.table import Table

METRICS = ("accuracy", "precision", "recall", "f1", "auroc", "average_precision")
COLUMNS = ("run", "model", "trained on", "split", "n", *METRICS)


def find_runs(folders: list[Path]) -> list[Path]:
    """Returns the classification runs in `folders`. Raises FileNotFoundError when one holds none."""
    runs = []
    for folder in folders:
        inside = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        found = [run for run in inside if "validation" in read_results(run)]
        if not found:
            raise FileNotFoundError(
                f"{folder}: found no results.json of a classification run in it or one level below; "
                "expected the --output_dir of run_classification.py, or the folder above several"
            )
        runs += found
    return runs


def read_results(run: Path) -> dict:
    """Returns the content of `results.json`; nothing for a run that has not ended."""
    path = run / "results.json"
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found broken JSON ({error}); expected what a run wrote") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path}: found {type(results).__name__}, expected what a run wrote")
    return results


def table_rows(runs: list[Path]) -> list[list[str]]:
    """Returns a row of text per run: of the test split where it was evaluated, else of validation."""
    rows = []
    for run in runs:
        results = read_results(run)
        split = "test" if "test" in results else "validation"
        try:
            measured = results[split]
            counts = f"{results['num_train_images']:,}", split, f"{measured['n']:,}"
            numbers = ["undefined" if measured[name] is None else f"{measured[name]:.3f}" for name in METRICS]
            rows.append([run.name, results["model"], *counts, *numbers])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{run / 'results.json'}: not what a run writes (at {error}); run it again"
            ) from error
    return rows


def to_markdown(rows: list[list[str]]) -> str:
    ruler = ["---"] * 4 + ["---:"] * (len(COLUMNS) - 4)
    return "".join(
        f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n" for cells in (COLUMNS, ruler, *rows)
    )


def print_table(rows: list[list[str]]) -> None:
    table = Table(caption="accuracy, precision, recall and F1 at a threshold of 0.5")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number < 4 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__, usage="FOLDER [FOLDER ...] [flags]")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, or a folder of runs")
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    args = parser.parse_args(argv)
    if args.output and not args.output.parent.is_dir():
        parser.error(
            f"--output {args.output}: found no folder {args.output.parent}; expected an existing one"
        )
    try:
        runs = find_runs(args.folders)
        rows = table_rows(runs)
        print_table(rows)
        if args.output:
            write_text(args.output, to_markdown(rows))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for run in runs:
        print(f"Figures of {run.name}: {run / '*.png'}")


if __name__ == "__main__":
    main()
