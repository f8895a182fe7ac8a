"""Manages a hub directory: models by name and revision, in the layout of the Hugging Face Hub's cache.

    python scripts/hub.py push runs/vit my-lab/cxr-vit --hub_dir models --message "1k images" --tag v1
    python scripts/hub.py list --hub_dir models
    python scripts/hub.py log my-lab/cxr-vit --hub_dir models
    python scripts/hub.py tag my-lab/cxr-vit v2 --revision 3f9a --hub_dir models
    python scripts/hub.py verify --hub_dir models
    python scripts/hub.py gc --hub_dir models

The training scripts take `--model_name_or_path my-lab/cxr-vit --hub_dir models`. push and tag print the
commit and the `from_pretrained` line that loads it with plain transformers. Without --hub_dir, push goes to
the Hugging Face Hub, as a private model. Exit status: 1 if verify or list finds a problem, 2 if a command
fails, otherwise 0.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from cxr.cli.command_line import ArgumentParser
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.sharing import local_hub
from cxr.sharing.push import loading_code
from cxr.sharing.push import push_folder
from rich.console import Console
from rich.table import Table


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__, usage="COMMAND ... --hub_dir DIR")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> ArgumentParser:
        command = commands.add_parser(name, prog=f"{parser.prog} {name}", description=text, help=text)
        command.usage = None  # argparse's own, with the positional arguments
        command.set_defaults(run=run)
        command.add_argument(
            "--hub_dir", type=Path, required=name != "push", metavar="FOLDER", help="the hub directory"
        )
        return command

    push = add(
        "push", push_model, "add a model as a new revision; without --hub_dir, to the Hugging Face Hub"
    )
    push.add_argument("model_dir", type=Path, metavar="FOLDER", help="a run folder or a model folder")
    push.add_argument("model_id", type=local_hub.parse_model_id, metavar="ORG/NAME")
    push.add_argument(
        "--message", type=local_hub.without_ids, default="Push a model", metavar="TEXT", help="commit message"
    )
    push.add_argument(
        "--tag", type=local_hub.parse_tag, metavar="TAG", help="a permanent name for this revision"
    )

    add("list", list_models, "list the models, their revisions and their size")

    log = add("log", show_log, "list the revisions of a model, newest first")
    log.add_argument("model_id", type=local_hub.parse_model_id, metavar="ORG/NAME")
    log.add_argument("--revision", default="main", metavar="REV", help="tag or commit to start from")

    tag = add("tag", set_tag, "give a revision a permanent name")
    tag.add_argument("model_id", type=local_hub.parse_model_id, metavar="ORG/NAME")
    tag.add_argument("tag", type=local_hub.parse_tag, metavar="TAG")
    tag.add_argument("--revision", default="main", metavar="REV", help="tag or commit")

    for command in (
        add("verify", verify, "read every file and list what differs from what was pushed"),
        add(
            "gc",
            collect_garbage,
            "remove revisions that neither main nor a tag leads to, and files that only they use",
        ),
    ):
        command.add_argument(
            "model_id", type=local_hub.parse_model_id, nargs="?", metavar="ORG/NAME", help="default: all"
        )
    return parser.parse_args(argv)


def push_model(args: argparse.Namespace) -> None:
    options = {"hub_dir": args.hub_dir, "model_id": args.model_id, "message": args.message, "tag": args.tag}
    commit = push_folder(args.model_dir, **options)
    is_run = (args.model_dir / "args.json").is_file()
    model_dir = args.model_dir / "model" if is_run else args.model_dir
    print_loading_code(args, model_dir, commit, args.tag or commit)


def list_models(args: argparse.Namespace) -> None:
    table = Table()
    for name in ("model", "main", "time", "revisions", "MiB", "tags"):
        table.add_column(name, justify="right" if name in ("revisions", "MiB") else "left", no_wrap=True)
    problems = []
    for name in local_hub.model_ids(args.hub_dir):
        try:
            log, refs = local_hub.read_log(args.hub_dir, name), local_hub.read_refs(args.hub_dir, name)
            blobs = local_hub.repository_dir(args.hub_dir, name) / "blobs"
            size = sum(path.stat().st_size for path in blobs.iterdir()) / 2**20
        except (UserError, OSError) as error:  # the other models are still listed
            problems.append(str(error))
            continue
        tags = ", ".join(tag for tag in refs if tag != "main")
        table.add_row(name, log[0].commit[:8], log[0].time[:16], str(len(log)), f"{size:.1f}", tags)
    width = None if sys.stdout.isatty() else 1000  # in a file, no cell is cut
    Console(width=width).print(table)
    end_with(problems, args.hub_dir)


def show_log(args: argparse.Namespace) -> None:
    refs = local_hub.read_refs(args.hub_dir, args.model_id)
    for commit in local_hub.read_log(args.hub_dir, args.model_id, args.revision):
        names = ", ".join(name for name, named in refs.items() if named == commit.commit)
        shown = f" ({names})" if names else ""
        print(f"{commit.commit}{shown}\n    {commit.time[:19]}  {commit.message}")


def set_tag(args: argparse.Namespace) -> None:
    commit = local_hub.set_tag(args.hub_dir, args.model_id, args.tag, args.revision)
    snapshot = local_hub.repository_dir(args.hub_dir, args.model_id) / "snapshots" / commit
    print_loading_code(args, snapshot, commit, args.tag)


def print_loading_code(args: argparse.Namespace, model_dir: Path, commit: str, revision: str) -> None:
    """Prints the commit and, below it, the Python code that loads it."""
    code = loading_code(model_dir, hub_dir=args.hub_dir, model_id=args.model_id, revision=revision)
    print(f"{commit}\n{code}")


def verify(args: argparse.Namespace) -> None:
    problems = [line for name in chosen(args) for line in local_hub.find_problems(args.hub_dir, name)]
    end_with(problems, args.hub_dir)
    print(f"All files of {len(chosen(args))} models are as they were pushed.")


def collect_garbage(args: argparse.Namespace) -> None:
    for name in chosen(args):
        revisions, contents = local_hub.collect_garbage(args.hub_dir, name)
        print(f"{name}: removed {revisions} revisions and {contents} files")


def chosen(args: argparse.Namespace) -> list[str]:
    """Returns the given model, or all of them. Raises UserError for an unknown one, or if there is none."""
    if args.model_id:
        local_hub.check_is_known(args.hub_dir, args.model_id)
        return [args.model_id]
    found = local_hub.model_ids(args.hub_dir)
    if not found:
        raise UserError(f"--hub_dir {args.hub_dir}: found no model, expected a directory of pushed models")
    return found


def end_with(problems: list[str], hub_dir: Path) -> None:
    """Prints the problems and exits with status 1 if there are any."""
    for line in problems:
        print(line)
    if problems:
        print(f"{len(problems)} problems; push the models again, or restore {hub_dir} from a copy")
        sys.exit(1)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if args.command != "push" and not args.hub_dir.is_dir():
        raise UserError(f"--hub_dir {args.hub_dir}: found no such folder; expected one that was pushed to")
    args.run(args)


if __name__ == "__main__":
    run_script(main)
