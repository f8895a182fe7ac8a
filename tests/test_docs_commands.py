"""The commands of the README and of docs/ are right, and run.

The flags of every ```bash and ```powershell block are parsed by the scripts' own parsers. A block of bash is
also run, as a fast variant (FASTER), the blocks of a page in their order, unless the line above it is one of
MARKS, such as `<!-- needs a GPU -->`. RUNS_THAT_ARE_THERE has the finished run that a page's commands use.
"""

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import run_classification
from accelerate.commands.launch import launch_command_parser
from cxr.cli.command_line import ArgumentParser
from make_sample_data import make_sample_data
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]

MARKS = ("needs a GPU", "needs a network", "needs credentials", "minutes long")
# What stands for a reader's folder of radiographs; the tests put the synthetic sample there.
DATA = re.compile(
    r"/data/mimic-cxr-jpg|\bDATA\b|\bsample_data\b|\bnih-cxr\b|\bpneumonia-28\b|\bradiographs/"
    r"|(?<![\w/])data/[\w-]+"
)
# What a block that runs has instead of long training, a GPU, and what installs or is the CI itself.
FASTER = (
    (
        r"(scripts/run_(?:mae_pretrain|classification)\.py)",
        r"\1 --max_train_steps 2 --max_eval_samples 32 --per_device_train_batch_size 8",
    ),
    (r"(scripts/make_sample_data\.py \S+)", r"\1 --num_images 60 --image_size 64"),
    (r"accelerate_configs/\w+\.yaml", "accelerate_configs/cpu.yaml"),
    (r"^(?:make|pip) .*", "true"),
)
RUNS_THAT_ARE_THERE = {
    "docs/results.md": "runs/pneumonia/vit",
    "docs/reading-files.md": "runs/demo/mae-vit",
    "docs/run-folder.md": "runs/demo/mae-vit",
    "docs/sharing.md": "runs/vit",
    "docs/using-a-model.md": "runs/demo/mae-vit",
}
COPIED = ("accelerate_configs", "benchmarks", "chest_xray_metrics", "docs", "mimic_cxr_dataset", "scripts")

BLOCK = re.compile(
    r"^(?: *<!-- (?P<mark>[^\n]*?) -->\n)?"
    r"(?P<indent> *)```(?P<shell>bash|powershell)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# Programs of others whose arguments are not looked at.
OTHERS = {
    ".venv/Scripts/activate",
    "cp",
    "curl",
    "docker",
    "exit",
    "export",
    "hf",
    "ls",
    "scontrol",
    "source",
    "tail",
    "test",
}


class Parsed(Exception):
    """A script's command line is parsed, and that is all that was asked of it."""


def blocks(page: Path, shell: str) -> list[tuple[str | None, str]]:
    """The mark and the text of each block of a shell."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(block["mark"], textwrap.dedent(block["text"])) for block in found if block["shell"] == shell]


def as_bash(found: list[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    return [(mark, text.replace("\\", "/").replace("`\n", "\\\n")) for mark, text in found]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without variables that are set for one command."""
    text = re.sub(r"\$\{\w+:\+([^}]*)\}", r"\1", text.replace("\\\n", " "))
    text = text.replace(".venv-serve/bin/", "")
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if word in ("|", ";", "&&", "||"):
                found.append([])
            elif found[-1] or not re.match(r"[A-Z_]+=", word):
                found[-1].append(word)
    return [words for words in found if words]


def check(words: list[str], monkeypatch) -> None:
    program, *arguments = words
    if program == "srun":
        program, *arguments = arguments
    if words[:2] == ["accelerate", "launch"]:
        launched = launch_command_parser().parse_args(arguments[1:])
        assert launched.config_file is None or (ROOT / launched.config_file).is_file(), launched.config_file
        parse(launched.training_script, launched.training_script_args, monkeypatch)
    elif program == "sbatch":  # its batch file takes a script of ours and its flags
        batch_file = next(word for word in arguments if word.endswith(".sbatch"))
        assert (ROOT / batch_file).is_file(), batch_file
        script, *flags = arguments[arguments.index(batch_file) + 1 :]
        parse(script, flags, monkeypatch)
    elif program in ("python", "python3") and arguments[0].endswith(".py"):
        parse(arguments[0], arguments[1:], monkeypatch)
    elif program in ("python", "python3") and arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif program == "pytest" or arguments[:2] == ["-m", "pytest"]:
        lost = [word for word in arguments if word.startswith("tests") and not list(ROOT.glob(word))]
        assert not lost, f"{lost}: found no such test"
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        lost = [word for word in arguments if "=" not in word and word not in targets]
        assert not lost, f"{lost}: found no such target in the Makefile"
    elif program == "pip" or arguments[:2] == ["-m", "pip"]:
        lost = [word for word in arguments if word.endswith(".txt") and not (ROOT / word).is_file()]
        assert not lost, f"{lost}: found no such requirements"
    elif arguments[:2] != ["-m", "venv"]:
        assert program in OTHERS, f"{program}: found a program that is not one of OTHERS"


def parse(script: str, arguments: list[str], monkeypatch) -> None:
    """Parses the command line of a script of ours with the script's own parser, which exits if it is bad."""
    assert (ROOT / script).is_file(), f"{script}: found no such script"
    module = importlib.import_module(Path(script).stem)
    assert Path(module.__file__) == ROOT / script
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: object())  # serve.py asks for gradio
        if hasattr(module, "parse_args"):
            module.parse_args(arguments)
        elif not hasattr(module, "main"):  # those of docs/ take no flags
            assert not arguments
        else:
            patch.setattr(ArgumentParser, "parse_args", parse_and_stop)
            with pytest.raises(Parsed):
                module.main(arguments)


def parse_and_stop(parser: ArgumentParser, arguments: list[str]) -> None:
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {unknown}")
    raise Parsed


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_have_known_marks_and_commands_that_parse(page, monkeypatch, sample_root):
    found = blocks(page, "bash")
    assert len(found) == page.read_text(encoding="utf-8").count("```bash")
    for mark, text in found + as_bash(blocks(page, "powershell")):
        assert mark in (None, *MARKS)
        for words in commands(DATA.sub(sample_root.as_posix(), text)):
            check(words, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        "python scripts/run_classification.py --output_dirs runs/a",
        "accelerate launch --quiet scripts/run_mae_pretrain.py --config_name resnet-18",
        "accelerate launch --quit scripts/run_mae_pretrain.py",
        "accelerate launch --config_file accelerate_configs/gpu.yaml scripts/run_mae_pretrain.py",
        "python scripts/run_study.py --output_dir a --preset large",
        "FOO=1 python scripts/hub.py lists --hub_dir models | cat",
        "python scripts/train.py",
        "python -m pytest tests/test_nothing.py",
        "make tests",
        "pip install -r requirement.txt",
        "pyhton scripts/hub.py list --hub_dir models",
    ],
)
def test_command_that_is_wrong_is_found(wrong, monkeypatch):
    with pytest.raises((SystemExit, AssertionError)):
        for words in commands(wrong):
            check(words, monkeypatch)


@pytest.mark.skipif(sys.platform == "win32", reason="it compares with make")
def test_demo_for_windows_is_that_of_the_makefile():
    demo = subprocess.run(["make", "-n", "-B", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    [_, (_, for_windows)] = as_bash(blocks(ROOT / "docs" / "install.md", "powershell"))
    assert script_calls(for_windows) == script_calls(demo.stdout)


def script_calls(text: str) -> list[list[str]]:
    """The scripts that the commands of a text start, each with the words behind it in any order."""
    found = []
    for words in commands("\n".join(line for line in text.splitlines() if "'" not in line)):
        for start, word in enumerate(words):
            if word.startswith("scripts/"):
                found.append([word, *sorted(words[start + 1 :])])
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """What a reader has after the README's two commands: data, and a finished run."""
    folder = tmp_path_factory.mktemp("docs")
    make_sample_data(folder / "sample_data", num_images=400, image_size=64, seed=0, num_proc=2)
    flags = [
        *TINY_VIT,
        *QUICK,
        "--max_train_steps=2",
        "--evaluate_test",
        f"--data_dir={folder / 'sample_data'}",
    ]
    run_main(run_classification, folder / "run", *flags)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the blocks are for bash")
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_without_a_mark_run(page, prepared, tmp_path):
    name = page.relative_to(ROOT).as_posix()
    for folder in COPIED:
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "_build")
        )
    (tmp_path / "sample_data").symlink_to(prepared / "sample_data")
    if name in RUNS_THAT_ARE_THERE:
        shutil.copytree(prepared / "run", tmp_path / RUNS_THAT_ARE_THERE[name])
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for mark, text in blocks(page, "bash"):
        if mark is None:
            text = DATA.sub("sample_data", text)
            for pattern, replacement in FASTER:
                text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=tmp_path,
                env=os.environ | {"PATH": search_path},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=300,
            )
            said = done.stdout.decode(errors="replace")[-3000:]
            assert done.returncode == 0, f"{name}:\n{text}\n{said}"
