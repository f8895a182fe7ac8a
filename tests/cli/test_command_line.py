"""Every script's help, and one line with exit status 2 for every wrong flag."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import run_classification
import run_mae_pretrain
from cxr.cli import command_line
from cxr.errors import INFERENCE_ADVICE
from cxr.errors import TRAINING_ADVICE

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))
PARSERS = {"pretrain": run_mae_pretrain.parse_args, "classification": run_classification.parse_args}


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What `--help` of every script prints, run in this process, which has torch imported already."""
    printed = {script.stem: io.StringIO() for script in SCRIPTS}
    for script in SCRIPTS:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed[script.stem]):
            patch.setattr(sys, "argv", [str(script), "--help"])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == 0
    return {name: text.getvalue() for name, text in printed.items()}


@pytest.mark.parametrize("name", [script.stem for script in SCRIPTS])
def test_help_works_and_shows_a_command(helps, name):
    assert helps[name].startswith("usage: ") and f"{name}.py" in helps[name]
    assert "--version" in helps[name]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_is_the_same_from_a_folder_that_is_not_the_repository(helps, script, tmp_path):
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == helps[script.stem].split()


def cpu_seconds(*words: str) -> tuple[float, bool]:
    """Returns what a Python command takes, the best of three, and whether it imported torch."""
    code = (
        "import runpy, sys, time\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(time.process_time(), 'torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *words]
    environment = os.environ | {"PYTHONPATH": str(Path(words[0]).parent)}
    runs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr.split()
        for _ in range(3)
    ]
    return min(float(run[-2]) for run in runs), runs[0][-1] == "True"


@pytest.fixture(scope="module")
def a_second(tmp_path_factory) -> float:
    """A second of a machine that imports pandas in a quarter of it, in CPU seconds of this one."""
    script = tmp_path_factory.mktemp("yardstick") / "imports.py"
    script.write_text("import pandas", encoding="utf-8")
    return 4 * cpu_seconds(str(script))[0]


@pytest.mark.timing
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_takes_less_than_a_second_and_imports_no_torch(script, a_second):
    seconds, has_torch = cpu_seconds(str(script), "--help")
    print(f"{seconds:.2f} s; a usual machine's second takes {a_second:.2f} s here")
    assert seconds < a_second and not has_torch


TRAININGS, USES = ("run_mae_pretrain", "run_classification"), ("predict", "serve", "export_onnx")


@pytest.mark.parametrize("name", [*TRAININGS, *USES])
def test_advice_about_errors_names_flags_of_the_script(helps, name):
    advice = TRAINING_ADVICE if name in TRAININGS else INFERENCE_ADVICE
    flags = set(re.findall(r"--\w+", " ".join(advice.values()))) - {"--shm", "--ipc"}  # of docker
    assert flags <= set(re.findall(r"--\w+", helps[name]))
    assert bool(flags) == (name in TRAININGS)


@pytest.mark.parametrize("name", USES)
def test_scripts_that_use_a_model_find_it_alike(helps, name):
    said = " ".join(helps[name].split())
    assert "MODEL a classifier: a model folder, a run folder, or ORG/NAME in --hub_dir or on the Hub" in said
    assert "--model_revision REV branch, tag or commit of a model given by name (default: main)" in said


def error_of(parse, argv: list[str], capsys) -> str:
    """The one line that a wrong command line ends with."""
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == "" and "Traceback" not in captured.err
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err


# flags -> what the line must say: what was found and what was expected
WRONG = {
    "mask ratio of all": (
        ["--mask_ratio", "1.0"],
        "--mask_ratio",
        "found 1.0",
        "expected a number in [0, 1)",
    ),
    "negative mask ratio": (
        ["--mask_ratio", "-0.1"],
        "--mask_ratio",
        "found -0.1",
        "expected a number in [0, 1)",
    ),
    "mask ratio nan": (["--mask_ratio", "nan"], "--mask_ratio", "found nan", "expected a number in [0, 1)"),
    "mask ratio in words": (["--mask_ratio", "half"], "found 'half'", "expected a number in [0, 1)"),
    "batch of none": (["--per_device_train_batch_size", "0"], "found 0", "expected a whole number from 1"),
    "batch of a half": (
        ["--per_device_train_batch_size", "0.5"],
        "found '0.5'",
        "expected a whole number from 1",
    ),
    "negative workers": (["--dataloader_num_workers", "-1"], "found -1", "expected a whole number from 0"),
    "negative learning rate": (["--learning_rate", "-1"], "found -1", "expected a number above 0"),
    "infinite learning rate": (["--base_learning_rate", "inf"], "found inf", "expected a number above 0"),
    "two learning rates": (["--learning_rate", "1", "--base_learning_rate", "1"], "not allowed with"),
    "warm-up of all": (["--warmup_ratio", "1"], "found 1", "expected a number in [0, 1)"),
    "crop of nothing": (["--crop_scale", "0", "1"], "found 0", "expected a number in (0, 1]"),
    "crop the wrong way round": (
        ["--crop_scale", "0.9", "0.2"],
        "found 0.9 0.2",
        "expected MIN not above MAX",
    ),
    "unknown model": (["--config_name", "vit-mae-giant"], "'vit-mae-giant'", "vit-mae-tiny"),
    "unknown dataset": (["--dataset_config_name", "edema"], "'edema'", "pleural_effusion"),
    "unknown labeler": (["--labeler", "gpt"], "'gpt'", "negbio", "chexpert"),
    "unknown view": (["--view", "side"], "'side'", "lateral"),
    "unknown schedule": (["--lr_scheduler_type", "step"], "'step'", "cosine"),
    "unknown flag": (["--no_such_flag"], "--no_such_flag"),
    "abbreviated flag": (["--mask", "0.5"], "--mask"),
    "checkpoints every now and then": (["--checkpointing_steps", "often"], "found 'often'", "expected"),
    "model and config": (["--model_name_or_path", "a", "--config_name", "vit-mae-tiny"], "not allowed with"),
    "overrides of a pretrained model": (
        ["--model_name_or_path", "a", "--config_overrides", "patch_size=8"],
        "--config_overrides",
        "--config_name",
    ),
    "overrides that are no pairs": (
        ["--config_name", "vit-mae-tiny", "--config_overrides", "patch_size:8"],
        "found 'patch_size:8'",
        "expected key=value",
    ),
    "push of no name": (["--push_to_hub", "--hub_dir", "hub"], "--hub_model_id ORG/NAME"),
    "hub name without a push": (["--hub_model_id", "my-lab/mae"], "--push_to_hub", "add it"),
    "hub tag without a push": (["--hub_revision", "v1"], "--push_to_hub", "add it"),
    "hub name without organisation": (["--hub_model_id", "mae"], "found 'mae'", "expected ORG/NAME"),
    "hub name that climbs": (["--hub_model_id", "../mae"], "found '../mae'", "expected ORG/NAME"),
    "absent data": (["--data_dir", "/no/such/folder"], "/no/such/folder: found no such folder", "expected"),
    "resume of no run": (
        ["--resume_from_checkpoint", "latest"],
        "--resume_from_checkpoint needs the --output_dir",
    ),
    "negative seed": (["--seed", "-1"], "found -1", "expected a whole number from 0"),
}


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@pytest.mark.parametrize("flags", WRONG.values(), ids=WRONG)
def test_wrong_flag_is_one_line_with_what_was_found_and_expected(parse, flags, capsys):
    argv, *said = flags
    message = error_of(parse, argv, capsys)
    assert not [words for words in said if words not in message], message


@pytest.mark.parametrize("said", ["'strong'", "none", "classic", "mae"])
def test_unknown_augmentation_lists_the_known_ones(said, capsys):
    assert said in error_of(run_classification.parse_args, ["--augmentation", "strong"], capsys)


def test_random_erasing_above_one_is_refused(capsys):
    message = error_of(run_classification.parse_args, ["--random_erasing_prob", "1.5"], capsys)
    assert "found 1.5, expected a number in [0, 1]" in message


def test_randaugment_of_no_operation_is_refused(capsys):
    message = error_of(run_classification.parse_args, ["--randaugment", "rand-m9-n0-inc1"], capsys)
    assert "found 'rand-m9-n0-inc1', expected a name such as" in message


def test_resnet_cannot_be_pretrained_with_masks(capsys):
    assert "resnet-18" in error_of(run_mae_pretrain.parse_args, ["--config_name", "resnet-18"], capsys)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (command_line.positive_int, ["1", "12"], ["0", "-1", "1.5", "", "one"]),
        (command_line.non_negative_int, ["0", "3"], ["-1", "0.1"]),
        (command_line.positive_float, ["1e-6", "2"], ["0", "-1", "inf", "nan"]),
        (command_line.non_negative_float, ["0", "0.05"], ["-0.1", "inf", "nan"]),
        (command_line.probability, ["0", "1", "0.25"], ["1.01", "-0.01", "nan"]),
        (command_line.share_below_one, ["0", "0.999"], ["1", "-0.1", "nan"]),
        (command_line.share_above_zero, ["0.001", "1"], ["0", "1.1", "nan"]),
    ],
)
def test_numbers_are_taken_within_their_bounds_only(kind, good, bad):
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(command_line.argparse.ArgumentTypeError, match="expected"):
            kind(text)


@pytest.mark.parametrize(
    "argv, hint",
    [
        (["--lerning_rate=1"], "did you mean --learning_rate?"),
        (["--config_name=resnet-81"], "did you mean resnet-18?"),
        (["--zzzzzzz"], None),
    ],
)
def test_near_miss_of_a_flag_or_a_choice_is_named(argv, hint, capsys):
    with pytest.raises(SystemExit):
        run_classification.parse_args(argv)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and (hint in said if hint else "did you mean" not in said)


def test_folder_of_a_run_stands_for_the_model_in_it(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert command_line.model_name(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
    for name in (str(tmp_path / "run" / "model"), str(tmp_path), "my-lab/cxr"):
        assert command_line.model_name(name) == name
