"""The study's runner: what is launched, skipped, refused, resumed and reported; most cells do not train."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

import psutil
import pytest
import run_study
from cxr.choices import TASKS
from cxr.choices import TRAINING_MODES
from cxr.choices import VIEWS
from cxr.data.sources import REPOSITORY
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.run_folder import lock as lock_module
from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_json
from cxr.run_folder.heartbeat import Claim
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import CLAIMS_DIR
from cxr.run_folder.lock import lock_folder
from cxr.run_folder.record import check_unchanged
from cxr.study import runner
from cxr.study.grid import plan_cells
from cxr.study.grid import to_words
from cxr.study.machine import Device
from cxr.study.machine import plan_launch
from cxr.study.presets import GRIDS
from cxr.study.runner import StudyRunner
from cxr.study.runner import command
from cxr.study.runner import tail
from cxr.training.progress import Progress
from cxr.training.progress import has_checkpoint
from finished_runs import arguments
from finished_runs import classification_results
from finished_runs import finish
from finished_runs import measured
from finished_runs import pretraining_results
from rich.console import Console
from tiny_runs import read_epochs

CONFIGS = REPOSITORY / "accelerate_configs"
PRETRAINED, TUNED, RESNET = (
    "vit-mae-tiny-scratch_pretrain_s0",
    "vit-mae-tiny-scratch-pre_none_16_finding_s0",
    "resnet-18-scratch_none_16_finding_s0",
)
ALL = [PRETRAINED, TUNED, RESNET]
# Three cells: a pretraining, the classifier that needs it, and a ResNet.
SMALL = ["--preset=smoke", "--models", "vit-mae-tiny", "resnet-18", "--augmentations", "none"]
SMALL += ["--mask_ratios", "0", "--train_sizes", "16", "--tasks", "finding"]
SMALL += ["--set", "per_device_train_batch_size=8"]
SPEED = {"vit": 0.05, "resnet": 0.05}  # TFLOP/s

PROGRESS = Progress(images_per_step=8, step=2).as_json()  # in a checkpoint that is complete

# What stands in for a cell's process. It may finish, fail at once, break after a checkpoint, or hang there.
RECORDS = {
    "progress": PROGRESS,
    "args": arguments(weight_decay=0.01, cache_dir=None).as_json(),
    "pretraining": pretraining_results().as_json(),
    "classification": classification_results(test=measured()).as_json(),
}
CELL = (
    f"records = {json.dumps(json.dumps(RECORDS))}"
    + """
import json, pathlib, sys, time
records = json.loads(records)
run, flags, end = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
resumed = (run / "checkpoints").is_dir()
print("resumed" if resumed else "new", flush=True)
run.mkdir(parents=True, exist_ok=True)
(run / "args.json").write_text(json.dumps({**records["args"], **flags}))
if end == "fail":
    print("\\n".join(f"line {number}" for number in range(30)), flush=True)
    sys.exit("error: found no GPU")
checkpoint = run / "checkpoints" / "step_2"
checkpoint.mkdir(parents=True, exist_ok=True)
(checkpoint / "progress.json").write_text(json.dumps(records["progress"]))
with (run / "metrics.jsonl").open("a") as file:
    file.write('{"epoch": 2}\\n' if resumed else '{"epoch": 1}\\n')
if end == "hang":
    (run / "hanging").touch()
    time.sleep(60)
if end == "break":
    sys.exit("error: the loss is nan")
results = records["pretraining" if "_pretrain_" in run.name else "classification"]
(run / "results.json").write_text(json.dumps(results))
"""
)


@dataclass
class Cells:
    """The cells that a test has launched, and how those that it names end."""

    ends: dict[str, str] = field(default_factory=dict)
    launched: list[str] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=dict)  # what the study would have started
    reports: list[Path] = field(default_factory=list)
    reportable: bool = True
    device: Device = field(default_factory=lambda: Device(kind="cpu", tflops=SPEED))


@pytest.fixture
def cells(monkeypatch):
    cells = Cells()
    real = runner.command

    def command(cell, run, launch, **slot):
        cells.launched.append(cell.run_id)
        cells.commands[cell.run_id] = real(cell, run, launch, **slot)
        end = cells.ends.get(cell.run_id, "finish")
        return [sys.executable, "-I", "-S", "-c", CELL, str(run), json.dumps(cell.flags), end]

    monkeypatch.setattr(runner, "command", command)
    monkeypatch.setattr(run_study, "report", lambda folder: cells.reports.append(folder) or cells.reportable)
    monkeypatch.setattr(run_study, "measure_device", lambda launch: cells.device)
    room = shutil.disk_usage(Path.cwd())._replace(free=10**13)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    sleep = time.sleep
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: sleep(seconds / 10))
    before = signal.getsignal(signal.SIGTERM)
    yield cells
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def study(cells, sample_root, tmp_path):
    """Calls the script on the small grid; returns its exit status."""

    def study(*flags: object) -> int:
        try:
            folders = [f"--data_dir={sample_root}", f"--output_dir={tmp_path / 'study'}"]
            run_script(lambda: run_study.main([*SMALL, *folders, *map(str, flags)]))
        except SystemExit as ended:
            return ended.code
        return 0

    return study


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "study"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and CLAIMS_DIR not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def error_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "error: " in captured.err and "Traceback" not in captured.err
    return captured.err


# The command line -------------------------------------------------------------------------------------------


def parse(*argv: str):
    return run_study.make_parser().parse_args(["--output_dir=x", *argv])


SETTINGS = {"3": 3, "-1": -1, "1e-4": 1e-4, "0.5 1.0": [0.5, 1.0], "true": True, "false": False}
TEXTS = ("cosine", "hidden_size=64,patch_size=4", "/data/my cache")


@pytest.mark.parametrize(("text", "value"), [*SETTINGS.items(), *zip(TEXTS, TEXTS)])
def test_setting_has_the_value_that_args_json_has(text, value):
    ((scope, flags),) = parse("--set", f"vit.some_flag={text}").set
    assert scope == "vit" and flags == {"some_flag": value} and type(flags["some_flag"]) is type(value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--set", "learning_rate"], "found 'learning_rate', expected FLAG=VALUE or SCOPE.FLAG=VALUE"),
        (
            ["--set", "vits.learning_rate=1"],
            "found the scope 'vits' (did you mean vit?), expected one of pretraining",
        ),
        (["--train_sizes", "most"], "found 'most', expected a whole number from 1"),
        (["--mask_ratios", "1"], "found 1, expected a number in [0, 1)"),
        (["--tasks", "edema"], "'edema'"),
        (["--preset", "papers"], "'papers'"),
        (["--parallel", "0"], "found 0"),
    ],
)
def test_wrong_flag_is_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code == 2 and said in error_line(capsys)


def test_every_axis_is_a_list_flag():
    words = ["--models=a", "--augmentations", "mae", "none", "--mask_ratios", "0", "0.5", "--seeds", "1", "2"]
    chosen = run_study.chosen_grid(parse(*words, "--train_sizes", "5", "all"), GRIDS["paper"])
    assert chosen.models == ("a",) and chosen.seeds == (1, 2) and chosen.train_sizes == (5, None)
    assert chosen.arms["vit"] == (("mae", 0.0), ("mae", 0.5), ("none", 0.0), ("none", 0.5))
    assert chosen.settings == GRIDS["paper"].settings
    for axis, values in (("tasks", TASKS), ("training_modes", TRAINING_MODES), ("views", VIEWS)):
        chosen = run_study.chosen_grid(parse(f"--{axis}", *values), GRIDS["paper"])
        assert getattr(chosen, axis) == tuple(values)


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ([], "smoke"),
        (["--models", "resnet-18"], "smoke"),
        (["--data_dir=a"], "paper"),
        (["--data_dir=a", "--models", "resnet-18"], "compare"),
    ],
)
def test_preset_follows_from_what_is_named(flags, preset):
    assert run_study.default_preset(parse(*flags)) == preset


def test_folder_of_a_finished_run_stands_for_its_model(tmp_path, monkeypatch):
    model = tmp_path / "resnet-18" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    run = str(model.parent)
    assert parse("--models", run, str(model), "org/name").models == [str(model), str(model), "org/name"]
    monkeypatch.chdir(tmp_path)  # where a run has the name of a model from scratch
    assert parse("--models", "resnet-18").models == ["resnet-18"]


def test_preset_is_smoke_without_data_and_paper_with_it(cells, sample_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_study, "make_sample_data_once", lambda: sample_root)
    batch = ["--set", "per_device_train_batch_size=8"]
    run_study.main([f"--output_dir={tmp_path / 'a'}", "--train_sizes", "32", "all", "--dry_run", *batch])
    assert "13 cells" in capsys.readouterr().out
    sizes = ["--train_sizes", "8", "16", "all", *batch]
    cells.device = Device(kind="cuda", tflops=SPEED)
    run_study.main([f"--data_dir={sample_root}", f"--output_dir={tmp_path / 'b'}", *sizes, "--dry_run"])
    assert "216 cells" in capsys.readouterr().out


def test_folder_of_a_setting_is_absolute_and_a_revision_stays_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((_, folder), (_, revision)) = parse("--set", "cache_dir=a/b/", "model_revision=1e10").set
    assert folder == {"cache_dir": str(tmp_path / "a" / "b")} and revision == {"model_revision": "1e10"}


# What is launched -------------------------------------------------------------------------------------------


def cell_named(name: str, study_dir: Path, **changes):
    grid = run_study.chosen_grid(parse(*SMALL), GRIDS["smoke"])
    planned = {cell.run_id: cell for cell in plan_cells(grid, data_dir=Path("/data"), output_dir=study_dir)}
    return planned[name].model_copy(update=changes)


def test_cell_is_launched_by_accelerate_with_its_config_script_and_flags(tmp_path):
    cell = cell_named(RESNET, tmp_path)
    launch = plan_launch(CONFIGS / "cpu.yaml", parallel=1)
    words = command(cell, tmp_path / RESNET, launch, gpu="3")
    assert words[words.index("--gpu_ids") + 1] == "3"  # the slot's
    words = command(cell, tmp_path / RESNET, launch)
    script = words.index(str(REPOSITORY / "scripts" / "run_classification.py"))
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert words[3:script] == ["--config_file", str(CONFIGS / "cpu.yaml"), "--quiet"]
    assert f"--output_dir={tmp_path / RESNET}" in words and "--config_name=resnet-18" in words
    assert "--evaluate_test" in words and not re.search("last_layer|resume", " ".join(words))


def test_resume_flag_is_given_when_there_is_a_whole_and_sound_checkpoint(tmp_path):
    cell, run = cell_named(RESNET, tmp_path), tmp_path / RESNET
    (run / "checkpoints" / "step_1").mkdir(parents=True)
    for progress, resumes in ((None, False), ({}, False), (PROGRESS, True)):
        if progress is not None:
            write_json(run / "checkpoints" / "step_1" / "progress.json", progress)
        words = command(cell, run, plan_launch(CONFIGS / "cpu.yaml", parallel=1))
        assert ("--resume_from_checkpoint=latest" in words) == resumes


def test_flags_become_words_as_argparse_takes_them():
    flags = {"seed": 0, "a": None, "b": True, "c": False, "crop_scale": [0.5, 1.0], "norm_pix_loss": False}
    words = list(to_words(flags))
    assert words == ["--seed=0", "--b", "--crop_scale", "0.5", "1.0", "--no-norm_pix_loss"]


@pytest.mark.parametrize("preset", GRIDS)
def test_scripts_take_every_planned_command_line_and_note_what_was_planned(preset, sample_root, tmp_path):
    import run_classification
    import run_mae_pretrain

    scripts = (run_classification, run_mae_pretrain)
    parse_args = {f"{script.__name__}.py": script.parse_args for script in scripts}
    settings = ["pretraining.norm_pix_loss=false", "crop_scale=0.5 1", "per_device_train_batch_size=auto"]
    settings += ["vit.base_learning_rate=1e-3", "classification.torch_compile=true"]
    settings += ["cache_dir=some/cache/", "model_revision=1234567"]
    args = parse("--pretrain", "--seeds", "0", "--set", *settings)
    grid = run_study.chosen_grid(args, GRIDS[preset])
    for cell in plan_cells(grid, data_dir=sample_root, output_dir=tmp_path):
        noted = json.loads(json.dumps(vars(parse_args[cell.script](list(to_words(cell.flags)))), default=str))
        check_unchanged(noted, cell.flags, where=Path(cell.run_id))


@pytest.mark.parametrize(
    ("config", "parallel", "visible", "expected"),
    [
        ("single_gpu_fp16.yaml", 1, None, (False, "fp16", [None], None)),
        ("single_gpu_fp16.yaml", 2, None, (False, "fp16", ["0", "1"], None)),
        ("single_gpu_fp16.yaml", 2, "4,7,5", (False, "fp16", ["4", "7"], None)),
        ("single_gpu_fp16.yaml", 1, "4,7,5", (False, "fp16", ["4"], None)),
        ("multi_gpu_fp16.yaml", 1, "4,7,5", (False, "fp16", [None], None)),
        ("cpu.yaml", 1, None, (True, "no", [None], None)),
        ("cpu.yaml", 1000, None, (True, "no", [None] * 1000, 1)),
    ],
)
def test_slots_are_the_visible_gpus_in_their_order(config, parallel, visible, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    launch = plan_launch(CONFIGS / config, parallel)
    assert (launch.on_cpu, launch.mixed_precision, launch.gpus, launch.num_threads) == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            "single_gpu_fp16.yaml",
            "--parallel 2: found only the GPUs 0, expected one per cell; use --parallel 1",
        ),
        ("multi_gpu_fp16.yaml", r"--parallel 2 needs cells of one process.*use single_gpu_fp16\.yaml"),
    ],
)
def test_more_slots_than_visible_gpus_and_cells_of_several_processes_are_refused(config, said, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=said):
        plan_launch(CONFIGS / config, 2)


NO_CONFIGS = (None, "", "- a", "use_cpu: true", "a: [", "use_cpu: true\nnum_processes: x")


@pytest.mark.parametrize("text", NO_CONFIGS)
def test_no_accelerate_config_is_refused_before_anything_is_written(text, study, cells, folder, capsys):
    config = folder.with_name("mine.yaml")
    if text is not None:
        config.write_text(text, encoding="utf-8")
    assert study(f"--config_file={config}") == 2
    assert f"--config_file {config}: found no Accelerate configuration" in error_line(capsys)
    assert not folder.exists() and not cells.launched


def test_cells_on_several_machines_need_slurm(study, cells, folder, capsys):
    assert study(f"--config_file={CONFIGS / 'multi_node_fp16.yaml'}") == 2
    assert "found num_machines 2, expected 1 without --slurm" in error_line(capsys)
    assert not folder.exists() and not cells.launched


def test_parallel_spreads_cells_over_gpus_and_waits_for_what_they_need(study, cells, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cells.device = Device(kind="cuda", tflops=SPEED)
    assert study("--parallel=2", f"--config_file={CONFIGS / 'single_gpu_fp16.yaml'}") == 0
    gpus = {name: words[words.index("--gpu_ids") + 1] for name, words in cells.commands.items()}
    assert cells.launched == [PRETRAINED, RESNET, TUNED]  # the classifier has to wait
    assert gpus[PRETRAINED] == "0" and gpus[RESNET] == "1"
    assert str(CONFIGS / "single_gpu_fp16.yaml") in cells.commands[RESNET]


# A study ----------------------------------------------------------------------------------------------------


def test_dry_run_prints_every_cell_with_images_and_cost_and_writes_nothing(study, cells, folder, capsys):
    assert study("--dry_run") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ALL) and "3 cells, 3 left to run, estimated" in printed
    assert "To start this study, use the same command without --dry_run." in printed.splitlines()[-1]
    row = next(line for line in printed.splitlines() if RESNET in line)
    assert " 16 " in row and " 6 " in row and " s " in row and "to run" in row
    assert not cells.launched and not folder.exists()


def test_study_runs_each_cell_once_in_order_reports_and_changes_nothing_of_what_is_finished(
    study, cells, folder, capsys
):
    assert study() == 0
    assert cells.launched == ALL and cells.reports == [folder]
    assert str(CONFIGS / "cpu.yaml") in cells.commands[RESNET]  # the preset's
    printed = capsys.readouterr().out
    assert f"[1/3] {PRETRAINED}: validation loss 0.250" in printed
    assert f"[3/3] {RESNET}: test AUROC 0.750" in printed and "the last one" in printed
    assert re.search(r"^Estimated .+, took .+ \(\d+% (less|more)\)\.$", printed, re.MULTILINE)
    plan = read_json(folder / "plan.json")["cells"]
    assert list(plan) == ALL and plan[TUNED]["needs"] == PRETRAINED
    assert {path.name for path in (folder / "logs").iterdir()} == {f"{name}.log" for name in ALL}
    assert not list(folder.glob("*/checkpoints"))  # the models are kept, not what is three times their size
    before = contents(folder)
    cells.launched.clear()
    assert study() == 0
    assert not cells.launched and contents(folder) == before
    assert study("--set", "weight_decay=0.01") == 0 and not cells.launched  # the default, named


def test_study_grows_by_the_new_cells_and_its_plan_says_what_is_finished(study, cells, folder, capsys):
    study("--models", "resnet-18")
    assert cells.launched == [RESNET]
    capsys.readouterr()
    study("--dry_run")
    printed = capsys.readouterr().out
    states = {name: next(line for line in printed.splitlines() if f" {name} " in line) for name in ALL}
    assert "finished" in states[RESNET] and "to run" in states[TUNED]
    assert "from the speed of the finished cells" in printed
    assert study() == 0
    assert cells.launched == [RESNET, PRETRAINED, TUNED]
    study("--models", "resnet-18", "--seeds", "5")
    assert len(read_json(folder / "plan.json")["cells"]) == 4  # those of the calls before stay planned


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (["weight_decay=0.1"], ["weight_decay=0.2"], "--weight_decay: found 0.2, but"),
        ([], ["weight_decay=0.2"], "--weight_decay: found 0.2, but"),
        (["weight_decay=0.1"], ["warmup_ratio=0.1"], "--weight_decay: found None, but"),
    ],
    ids=["changed", "added", "dropped"],
)
@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_other_flags_than_before_are_refused(before, after, said, dry, study, cells, folder, capsys):
    study("--set", *(before or ["warmup_ratio=0.1"]))
    kept = contents(folder)
    cells.launched.clear()
    capsys.readouterr()
    assert study("--set", *after, *dry) == 2
    message = error_line(capsys)
    assert said in message and "use the same flags, or start again in another --output_dir" in message
    assert not cells.launched and contents(folder) == kept


def test_failed_cell_is_reported_with_the_end_of_its_log_and_the_rest_goes_on(study, cells, folder, capsys):
    cells.ends[TUNED] = "fail"
    assert study() == 1
    assert cells.launched == ALL and cells.reports == [folder]
    printed = capsys.readouterr().out
    assert f"{TUNED} FAILED" in printed and str(folder / "logs" / f"{TUNED}.log") in printed
    assert "    line 29\n    error: found no GPU\n" in printed and "line 10" not in printed
    assert f"1 of 3 cells failed or were skipped: {TUNED}. The same command tries them again." in printed
    assert (folder / RESNET / "results.json").is_file()


def test_cells_that_need_a_failed_pretraining_are_left_out_until_it_succeeds(study, cells, folder, capsys):
    cells.ends[PRETRAINED] = "fail"
    assert study() == 1
    assert cells.launched == [PRETRAINED, RESNET] and not (folder / TUNED).exists()
    printed = capsys.readouterr().out
    assert f"{TUNED} skipped: it starts from the model of {PRETRAINED}, which failed" in printed
    assert f"2 of 3 cells failed or were skipped: {PRETRAINED}, {TUNED}." in printed
    cells.ends.clear()
    cells.launched.clear()
    assert study() == 0 and cells.launched == [PRETRAINED, TUNED]


def test_study_that_cannot_be_reported_does_not_end_well(study, cells):
    cells.reportable = False
    cells.ends |= {TUNED: "fail", RESNET: "fail"}
    assert study() == 1 and cells.reports == []  # a pretraining alone is not reported
    cells.ends.clear()
    assert study() == 1 and len(cells.reports) == 1
    cells.launched.clear()
    assert study() == 1 and not cells.launched and len(cells.reports) == 2  # it is all there
    cells.reportable = True
    assert study() == 0


def test_tail_of_a_log_is_its_last_lines_and_the_last_state_of_a_bar(tmp_path):
    log = tmp_path / "a.log"
    bar = "".join(f"\r{share}%" for share in range(100))
    log.write_bytes(f"first\n{bar}\r\n\n\xff\n{'x' * 10}\n\n".encode("latin-1"))
    assert tail(log).split("\n") == ["    first", "    99%", "    \ufffd", f"    {'x' * 10}"]


def test_failed_cell_without_a_checkpoint_starts_anew_and_may_have_other_flags(study, cells, folder):
    cells.ends[RESNET] = "fail"
    study("--models", "resnet-18")
    (folder / RESNET / "left over").touch()
    cells.ends.clear()
    assert study("--models", "resnet-18", "--set", "resnet.learning_rate=1e-4") == 0
    assert not (folder / RESNET / "left over").exists()
    assert (folder / "logs" / f"{RESNET}.log").read_text(encoding="utf-8") == "new\n"
    assert read_json(folder / RESNET / "args.json")["learning_rate"] == 1e-4


def test_cell_with_a_checkpoint_goes_on_from_it_with_the_same_flags_only(study, cells, folder, capsys):
    cells.ends[RESNET] = "break"
    assert study("--models", "resnet-18") == 1
    cells.ends.clear()
    capsys.readouterr()
    assert study("--models", "resnet-18", "--set", "learning_rate=1e-4") == 2
    assert "--learning_rate: found 0.0001, but" in error_line(capsys)
    study("--models", "resnet-18", "--dry_run")
    assert "to resume" in capsys.readouterr().out
    elsewhere = folder.parent / "disk"  # where the images are read changes no result
    assert study("--models", "resnet-18", "--set", f"stage_dir={elsewhere}") == 0
    assert f"--stage_dir={elsewhere}" in cells.commands[RESNET]
    assert "--resume_from_checkpoint=latest" in cells.commands[RESNET]
    assert (folder / "logs" / f"{RESNET}.log").read_text(encoding="utf-8") == "resumed\n"
    assert (folder / RESNET / "metrics.jsonl").read_text(encoding="utf-8") == '{"epoch": 1}\n{"epoch": 2}\n'


def test_study_whose_plan_another_call_writes_for_long_is_refused(study, cells, folder, capsys, monkeypatch):
    monkeypatch.setattr(run_study, "PATIENCE_SECONDS", 0)
    folder.mkdir()
    lock = lock_folder(folder)
    assert study() == 2
    assert "another run is writing to it" in error_line(capsys) and not cells.launched
    lock.release()
    assert study() == 0


def test_folder_that_is_no_study_is_refused_and_kept(study, cells, folder, capsys):
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine", encoding="utf-8")
    assert study() == 2
    assert "is not empty and not a study (found no plan.json)" in error_line(capsys)
    assert contents(folder) == {"thesis.txt": b"mine"} and not cells.launched
    assert study(f"--output_dir={folder / 'thesis.txt'}") == 2 and "thesis.txt" in error_line(capsys)
    assert contents(folder) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train_sizes", "16", "1000"], "--train_sizes 1000: found "),
        (["--data_dir=/no/such/folder"], "/no/such/folder"),
        (["--set", "seed=3"], "--set seed: found a flag that the study sets itself"),
        (
            ["--set", "learning_rat=1"],
            "--set learning_rat: run_mae_pretrain.py has no such flag (did you mean learning_rate?)",
        ),
        (["--set", "norm_pix_loss=true"], "has no such flag; write pretraining.norm_pix_loss=..."),
        (["--set", "learning_rate=fast"], "--set: --learning_rate: found 'fast', expected a number above 0"),
        (["--set", "vit.config_overrides=patch_sizes=8"], "found no such key; expected one of hidden_size"),
        (["--set", "image_size=30"], "found image_size=30, expected a multiple of patch_size=4"),
        (["--set", "classification.image_size=30"], "expected a multiple of patch_size=4, such as 28 or 32"),
        (["--set", "per_device_train_batch_size=auto"], "found cpu, expected an NVIDIA or AMD GPU; leave it"),
        (["--set", "per_device_train_batch_size=17"], "found 16 training images, expected at least the 17"),
        (["--models", "vit-mae-tini"], "of this name (did you mean vit-mae-tiny?)"),
        (["--models", "resnet-18", "--pretrain", "no"], "invalid choice: 'no'"),
        (
            [f"--config_file={CONFIGS / 'single_gpu_fp16.yaml'}"],
            "use --config_file accelerate_configs/cpu.yaml",
        ),
        (["--mask_ratios", "0.33333", "0.33334"], "two different cells would have the name"),
    ],
)
def test_impossible_plan_is_refused_before_anything_runs(flags, said, study, cells, folder, capsys):
    assert study(*flags) == 2
    assert said in error_line(capsys) and not cells.launched and not folder.exists()


@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_models_that_do_not_fit_on_the_disk_are_refused(dry, study, cells, folder, monkeypatch, capsys):
    usage = shutil.disk_usage(folder.parent)._replace(free=10**6)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert study(*dry) == 2
    assert "0.0 GB free, expected 0.3 GB for the models of 3 cells" in error_line(capsys)
    assert not cells.launched and not folder.exists()


def test_plan_shows_the_disk_for_the_models_and_the_checkpoints_at_once(study, cells, capsys):
    def disk(*flags: str) -> list[float]:
        seeds = map(str, range(20))
        assert study("--dry_run", "--models=resnet-18", *flags, "--seeds", *seeds) == 0
        sizes = re.findall(r"([\d.,]+) GB", capsys.readouterr().out)
        return [float(size.replace(",", "")) for size in sizes]

    models, checkpoints = 20 * 0.0447, 6 * 0.0447  # 11.2 million parameters of 4 bytes
    assert disk() == pytest.approx([models + checkpoints, models, checkpoints, 10_000], abs=0.06)
    for flags, at_once in (((), 16), (("--max_jobs=3",), 3)):
        assert disk("--slurm", *flags)[2] == pytest.approx(at_once * checkpoints, abs=0.06)


def test_dry_run_shows_the_kinds_of_cells_and_the_flags_of_the_preset(study, cells, capsys):
    assert study("--dry_run", "--set", "resnet.learning_rate=0.5") == 0
    printed = capsys.readouterr().out
    assert "Preset smoke; flags of the cells: image_size=32" in printed
    assert "resnet.learning_rate=0.5" in printed
    rows = [line.strip("│ ") for line in printed.splitlines() if " px " in line]
    cells_of = {tuple(word.strip() for word in row.split("│")) for row in rows}
    assert cells_of == {
        ("vit-mae-tiny", "from scratch", "0.3 M", "1 MB", "32 px", "10", "0.001, cosine", "8", "1"),
        ("vit-mae-tiny", "pretrained here", "0.2 M", "1 MB", "32 px", "6", "0.001, cosine", "8", "1"),
        ("resnet-18", "from scratch", "11.2 M", "45 MB", "32 px", "6", "0.5, cosine", "8", "1"),
    }
    assert "estimated from a few steps of small layers on this cpu" in printed


@pytest.mark.parametrize("preset", GRIDS)
def test_presets_are_printed_with_their_axes_and_flags(preset, capsys):
    with pytest.raises(SystemExit) as ended:
        run_study.main(["--presets"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 0 and f"--preset {preset}" in printed
    assert GRIDS[preset].purpose in printed and GRIDS[preset].config_file in printed


def test_cell_that_a_killed_study_left_running_is_waited_for(study, cells, folder, monkeypatch, capsys):
    """The test plays the other process: it holds the run's lock and finishes while the study sleeps."""
    run = folder / RESNET
    run.mkdir(parents=True)
    write_json(folder / "plan.json", {"cells": {}})
    lock = lock_folder(run)
    turns = []

    def sleep(seconds):
        turns.append(seconds)
        if len(turns) == 3:
            finish(run, classification_results(test=measured(auroc=None)))
            lock.release()

    monkeypatch.setattr(runner.time, "sleep", sleep)
    assert study("--models", "resnet-18") == 0
    assert len(turns) >= 3 and not cells.launched
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{RESNET} is running in another process (pid {os.getpid()} on" in printed
    assert f"{RESNET}: test AUROC undefined, in another process; the last one" in printed


def test_table_shows_results_so_far_progress_and_time_left(sample_root, folder):
    args = parse(*SMALL, "--seeds", "0", "1", "--train_sizes", "16", "all")
    grid = run_study.chosen_grid(args, GRIDS["smoke"])
    cells = plan_cells(grid, data_dir=sample_root, output_dir=folder)
    for seed, auroc in ((0, 0.7), (1, 0.8)):
        results = classification_results(test=measured(auroc=auroc))
        finish(folder / f"resnet-18-scratch_none_16_finding_s{seed}", results)
    study = StudyRunner(cells, folder, seconds={cell.run_id: 600 for cell in cells}, parallel=1)
    study.states[PRETRAINED] = "running"
    (folder / PRETRAINED).mkdir()
    write_json(folder / PRETRAINED / "args.json", arguments(num_train_epochs=4).as_json())
    (folder / PRETRAINED / "metrics.jsonl").write_text("{}\n{}\n{}\n", encoding="utf-8")
    text = io.StringIO()
    Console(file=text, width=100).print(study.render())
    rows = [line.split() for line in text.getvalue().splitlines()]
    resnet = next(row for row in rows if "resnet-18-scratch_none_finding" in row)
    assert "0.750" in resnet and "0/2" in resnet  # of 16 images both seeds, of all none
    assert f"{PRETRAINED} 75%" in text.getvalue()
    assert "2 done, 1 running, 7 waiting; about" in text.getvalue()
    assert study.share_done(PRETRAINED) == 0.75


def four_cells(folder: Path, *, parallel: int = 1) -> StudyRunner:
    """Returns a study of four cells, each estimated at 100 seconds."""
    cells = [cell_named(RESNET, folder, run_id=name, needs=None) for name in "abcd"]
    return StudyRunner(cells, folder, seconds=dict.fromkeys("abcd", 100.0), parallel=parallel)


def start_and_finish(study: StudyRunner, monkeypatch, *, took: float) -> None:
    """Does the first cell in so many seconds."""
    cell = study.cells[0]
    assert study.take(cell)
    study.begin_cell(cell)
    later = time.monotonic() + took
    finish(study.output_dir / cell.run_id, classification_results(test=measured()))
    with monkeypatch.context() as patch:
        patch.setattr(runner.time, "monotonic", lambda: later)
        study.end_cell(cell)


def note_epochs(folder: Path, name: str, num_epochs: int) -> Path:
    """Writes what a cell of four epochs has written after so many; returns the metrics."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(folder / name / "args.json", arguments(num_train_epochs=4).as_json())
    metrics = folder / name / "metrics.jsonl"
    metrics.write_text("{}\n" * num_epochs, encoding="utf-8")
    return metrics


def test_time_left_follows_how_the_estimates_held(folder, monkeypatch):
    study = four_cells(folder)
    assert study.seconds_left() == 400
    start_and_finish(study, monkeypatch, took=50)  # twice as fast as estimated
    assert study.seconds_left() == pytest.approx(150, rel=0.01)


def test_time_left_does_not_count_what_was_done_before_or_by_others(folder, monkeypatch):
    study = four_cells(folder)
    note_epochs(folder, "a", 3)
    start_and_finish(study, monkeypatch, took=50)  # the last quarter, in twice the time
    finish(folder / "b", classification_results(test=measured()))
    assert study.note_others_results(study.cells[1])
    assert study.seconds_left() == pytest.approx(400, rel=0.01)


@pytest.mark.parametrize(("parallel", "running", "elsewhere"), [(2, 0, 0), (1, 2, 0), (1, 0, 1)])
def test_time_left_is_that_of_the_cells_at_once_here_in_slurm_or_on_other_machines(
    parallel, running, elsewhere, folder
):
    study = four_cells(folder, parallel=parallel)
    study.states |= dict.fromkeys("ab"[:running], "running")
    study.elsewhere |= {*"cd"[:elsewhere]}
    assert study.seconds_left() == 200


def test_metrics_of_a_running_cell_are_read_when_they_have_changed(folder, monkeypatch):
    study = four_cells(folder)
    study.states["a"] = "running"
    metrics = note_epochs(folder, "a", 1)
    read, reads = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read(path))
    study.render(), study.render()
    assert reads.count(metrics) == 1
    note_epochs(folder, "a", 2)
    assert study.share_done("a") == 0.5


# Cells that other machines take over ------------------------------------------------------------------------


@pytest.fixture
def quick_claims(monkeypatch):
    quick = functools.cache(lambda folder: Claims(folder, beat=0.1, stale=1.5))
    monkeypatch.setattr(lock_module, "_claims_in", quick)


def test_cell_of_a_dead_machine_and_its_run_are_free_after_one_silence(folder, quick_claims):
    study, claims_of_run = four_cells(folder), folder / "a" / CLAIMS_DIR
    Claims(folder / CLAIMS_DIR, beat=600).take("a")
    Claims(claims_of_run, beat=600).take("folder")
    until = time.monotonic() + 2.5  # less than two silences
    while not study.take(study.cells[0]):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not Claims(claims_of_run).is_taken("folder")  # the cell's process need not wait for another one


def take_over(study: StudyRunner, name: str) -> Claim | None:
    """Claims a running cell as another machine does that has found this process silent."""
    return Claims(study.output_dir / CLAIMS_DIR, beat=0.1, stale=-1).take(name)


def test_cell_that_was_taken_over_has_not_failed_while_its_new_owner_still_starts(folder, capsys):
    study = four_cells(folder)
    cell = study.cells[0]
    assert study.take(cell)
    study.begin_cell(cell)
    assert take_over(study, "a")
    study.end_cell(cell)
    assert study.states["a"] == "waiting"
    assert "a is running in another process" in capsys.readouterr().out


# Notes that it has begun, and that it saves after SIGTERM.
SAVING = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True, exist_ok=True)
def save(*_):
    (run / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(run / "begun").touch()
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without a signal")
def test_cell_that_was_taken_over_ends_without_saving(folder, monkeypatch, quick_claims):
    """The test plays the other machine while the study sleeps."""
    study = StudyRunner(four_cells(folder).cells[:1], folder, seconds={"a": 100.0}, parallel=1)
    words = [sys.executable, "-I", "-S", "-c", SAVING, str(folder / "a")]
    monkeypatch.setattr(runner, "command", lambda *_, **__: words)
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.1)
    sleep, taken = time.sleep, []

    def play(seconds):
        sleep(seconds)
        if (folder / "a" / "begun").is_file() and not taken:
            taken.append(take_over(study, "a"))
        if taken and study.states["a"] == "waiting":  # the study has ended its cell
            finish(folder / "a", classification_results(test=measured()))

    monkeypatch.setattr(runner.time, "sleep", play)
    study.run_in_slots({}, plan_launch(CONFIGS / "cpu.yaml", parallel=1))
    assert taken and study.by_others == {"a"} and not (folder / "a" / "saved").is_file()
    taken[0].release()


# Signals, in a process of its own ---------------------------------------------------------------------------

# A study whose cells hang, each with a child as a launcher has one.
HANGING = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "scripts")!r})
import run_study
code = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', *sys.argv[1:]])"
def command(cell, run, *_, **__):
    import json
    return [sys.executable, "-I", "-S", "-c", code, {CELL!r}, str(run), json.dumps(cell.flags), "hang"]
from cxr.study import runner
from cxr.study.costs import ImageCounts
runner.command = command
counts = ImageCounts(train=16, validation=7)  # a quick start
from cxr.study.machine import Device
run_study.measure_device = lambda launch: Device(kind="cpu", tflops={{"vit": 1.0, "resnet": 1.0}})
run_study.count_images = lambda cells, _: {{cell.run_id: counts for cell in cells}}
from cxr.errors import run_script
run_script(run_study.main)
"""


def wait_until(condition, *, seconds: float, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")
@pytest.mark.parametrize(
    "name", ["SIGUSR2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGTERM", "SIGINT"))]
)
def test_signal_ends_the_cells_and_all_that_they_started(name, sample_root, folder):
    number = getattr(signal, name)
    flags = [*SMALL, f"--data_dir={sample_root}", f"--output_dir={folder}", "--parallel=2"]
    with (
        subprocess.Popen(
            [sys.executable, "-c", HANGING, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        kill_afterwards(process),
    ):
        wait_until(lambda: len(list(folder.glob("*/hanging"))) == 2, seconds=60, process=process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 4
        if name == "SIGUSR2":  # Slurm sends it to all; the study ends the cells when they have saved
            for child in children:
                child.send_signal(number)
            assert not psutil.wait_procs(children, timeout=0.5)[0]
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if name == "SIGINT" else 143) and "Traceback" not in said
    assert not [child for child in children if child.is_running()]
    assert not list(folder.glob("*/results.json"))


@contextlib.contextmanager
def kill_afterwards(process: subprocess.Popen):
    """Kills a study and all its processes at once, as when a machine goes down, whatever a test finds."""
    try:
        yield
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in (process, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(children, timeout=30)


# Real cells -------------------------------------------------------------------------------------------------


def start_study(folder: Path, log: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / "scripts" / "run_study.py"), f"--output_dir={folder}", *flags]
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ)


@pytest.mark.slow
def test_study_killed_inside_a_cell_goes_on_there_skips_what_is_finished_and_reports(sample_root, folder):
    settings = ["vit.num_train_epochs=40", "pretraining.num_train_epochs=2", "resnet.num_train_epochs=2"]
    settings += ["resnet.config_overrides=embedding_size=8", "per_device_train_batch_size=8"]
    flags = [*SMALL, f"--data_dir={sample_root}", "--set", *settings]
    run, log = folder / TUNED, folder.with_name("study.log")

    process = start_study(folder, log, *flags)
    with kill_afterwards(process):
        wait_until(lambda: has_checkpoint(run), seconds=300, process=process)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "results.json").exists() and not (folder / RESNET).exists()
    pretrained = contents(folder / PRETRAINED)
    assert "results.json" in pretrained

    process = start_study(folder, log, *flags)
    with kill_afterwards(process):
        assert process.wait(timeout=500) == 0, log.read_text(encoding="utf-8")
    assert "Resuming from" in (run / "train.log").read_text(encoding="utf-8")
    assert [epoch["epoch"] for epoch in read_epochs(run)] == list(range(1, 41))
    assert contents(folder / PRETRAINED) == pretrained
    said = log.read_text(encoding="utf-8")
    assert f"[2/3] {TUNED}: test AUROC" in said and f"[3/3] {RESNET}: test AUROC" in said
    assert f"] {PRETRAINED}" not in said
    samples = {read_json(folder / name / "samples.json")["sha256"] for name in (TUNED, RESNET)}
    assert len(samples) == 1  # the same images for both models
    assert all((folder / name).stat().st_size > 0 for name in ("report.html", "report.md", "report.csv"))
    assert not list(folder.glob("*/checkpoints"))


@pytest.mark.slow
def test_error_of_a_real_cell_is_what_the_study_prints(sample_root, folder):
    log = folder.with_name("study.log")
    flags = [*SMALL, "--models", "resnet-18", f"--data_dir={sample_root}"]
    flags += ["--set", "resnet.config_overrides=hidden_act=no_such_function"]  # known to transformers only
    process = start_study(folder, log, *flags)
    with kill_afterwards(process):
        assert process.wait(timeout=300) == 1
    said = log.read_text(encoding="utf-8")
    assert "    run_classification.py: error: --config_overrides" in said and "no_such_function" in said
    assert "Traceback" not in said and f"1 of 1 cells failed or were skipped: {RESNET}" in said


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("12:00:00", 720), ("1-00:00:30", 1441), ("10:30", 11)]
)
def test_time_limit_is_read_as_slurm_writes_it(text, minutes):
    assert run_study.slurm_minutes(text) == minutes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--wait"], "--wait needs --slurm"),
        (["--slurm_time=60"], "--slurm_time needs --slurm"),
        (["--slurm", "--parallel=2"], "use --max_jobs"),
        (["--slurm", "--slurm_args=mem"], "expected KEY=VALUE"),
        (["--slurm", "--slurm_args=signal=USR1@60"], "which this script sets itself"),
        (["--slurm", "--slurm_args=ntasks_per_node=2"], "which this script sets itself"),
        (["--slurm", "--slurm_time=1h"], "expected minutes"),
        (["--slurm", "--slurm_time=05:00"], "which is 5 minutes, expected at least 10"),
        (["--slurm", "--slurm_time=0"], "which is 0 minutes"),
        (["--slurm", "--wait", "--cancel"], "not allowed with"),
    ],
)
def test_slurm_flag_that_cannot_work_is_one_line(flags, said, study, cells, folder, capsys):
    assert study(*flags) == 2
    assert said in capsys.readouterr().err and not folder.exists()


def test_slurm_submits_all_cells_and_runs_none_here(study, cells, folder, monkeypatch, capsys):
    submitted = []
    monkeypatch.setattr(run_study.slurm.shutil, "which", lambda program: program)
    monkeypatch.setattr(run_study.slurm, "run_program", lambda *words: "")
    monkeypatch.setattr(
        run_study.slurm.SlurmStudy,
        "_submit_array",
        lambda self, cells, needs: submitted.append((cells, needs)) or True,
    )
    assert study("--slurm") == 0
    names = [([cell.run_id for cell in array], needs) for array, needs in submitted]
    assert names == [([PRETRAINED], None), ([TUNED], PRETRAINED), ([RESNET], None)]
    assert cells.launched == [] and cells.reports == []
