"""The demo: its commands are ones that the scripts take, and it stops where one of them fails."""

import sys
import webbrowser

import demo
import pytest
from cxr.cli import classification
from cxr.cli import pretraining

TRAININGS = [demo.PRETRAIN, demo.VIT, demo.RESNET]
PARSERS = {"run_mae_pretrain": pretraining.parse_args, "run_classification": classification.parse_args}
TRAINING = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
(folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\\n")
print("what it says")
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def steps_run(tmp_path, monkeypatch) -> list[str]:
    """Has the demo write below `tmp_path` and run nothing; what it would have run is noted."""
    done = []
    monkeypatch.setattr(demo, "REPOSITORY", tmp_path)
    monkeypatch.setattr(demo, "run", lambda step: done.append(step.command) or 0)
    monkeypatch.setattr(webbrowser, "open", lambda address: done.append(address))
    return done


@pytest.mark.parametrize("step", TRAININGS, ids=lambda step: step.folder)
def test_commands_of_the_demo_are_taken_by_the_scripts(step, monkeypatch, sample_root, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample_data").symlink_to(sample_root) if sys.platform != "win32" else pytest.skip("no links")
    words = demo.arguments_of(step.command)
    script = next(number for number, word in enumerate(words) if word.startswith("scripts/"))
    (tmp_path / "runs" / "demo" / "mae" / "model").mkdir(parents=True)
    args = PARSERS[words[script].removeprefix("scripts/").removesuffix(".py")](words[script + 1 :])
    assert args.num_train_epochs == step.epochs
    assert str(args.output_dir).replace("\\", "/") == f"runs/demo/{step.folder}"


def test_the_demo_draws_once_shows_each_command_and_prints_where_the_page_is(steps_run, tmp_path, capsys):
    demo.main([])
    said = capsys.readouterr().out
    assert steps_run == [step.command for step in (demo.DRAW, *TRAININGS, demo.REPORT)]  # no page was opened
    assert all(command in said for command in [*steps_run, *demo.NEXT.values()])
    assert f"The report: {tmp_path / 'runs' / 'demo' / 'report.html'}" in said
    steps_run.clear()
    (tmp_path / "sample_data").mkdir()
    demo.main([])
    assert steps_run == [step.command for step in (*TRAININGS, demo.REPORT)]


def test_on_a_terminal_the_page_is_opened(steps_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    demo.main([])
    assert steps_run[-1] == (tmp_path / "runs" / "demo" / "report.html").as_uri()


def test_the_demo_stops_at_the_first_step_that_fails_with_its_status(steps_run, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run", lambda step: steps_run.append(step) or (7 if step == demo.VIT else 0))
    with pytest.raises(SystemExit) as ended:
        demo.main([])
    assert ended.value.code == 7 and steps_run[-1] == demo.VIT
    assert "step 3 failed with exit status 7" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 3])
def test_a_training_that_fails_shows_what_it_said(status, tmp_path, monkeypatch, capsys):
    folder = tmp_path / demo.DEMO / "mae"
    command = [sys.executable, "-c", TRAINING, str(folder), str(status)]
    monkeypatch.setattr(demo, "REPOSITORY", tmp_path)
    monkeypatch.setattr(demo, "arguments_of", lambda command_line: command)
    assert demo.run(demo.PRETRAIN) == status
    assert ("what it says" in capsys.readouterr().err) == bool(status)
    assert folder.with_suffix(".txt").read_text(encoding="utf-8").strip() == "what it says"


def test_commands_run_in_the_python_that_runs_the_demo():
    assert demo.arguments_of(demo.PRETRAIN.command)[:2] == [sys.executable, "scripts/run_mae_pretrain.py"]
