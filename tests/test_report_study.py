"""The table of finished runs, from handmade results."""

import json
from pathlib import Path

import pytest
import report_study


def measured(**changes) -> dict:
    numbers = {"accuracy": 0.5, "precision": 0.25, "recall": 0.125, "f1": 0.16666, "auroc": 0.87654}
    return {"loss": 0.7, **numbers, "average_precision": 1.0, "threshold": 0.5, "n": 1234, **changes}


def write_run(folder: Path, **results) -> Path:
    folder.mkdir(parents=True)
    content = {"model": "resnet-18", "num_train_images": 10_000, "validation": measured(), **results}
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_pretraining(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"train_loss": 0.5, "eval_loss": 0.4}), encoding="utf-8")
    return folder


def test_row_is_of_the_test_split_where_there_is_one(tmp_path):
    with_test = write_run(tmp_path / "a", test=measured(auroc=0.91, n=99))
    without = write_run(tmp_path / "b")
    rows = report_study.table_rows([with_test, without])
    numbers = ["0.500", "0.250", "0.125", "0.167"]
    assert rows[0] == ["a", "resnet-18", "10,000", "test", "99", *numbers, "0.910", "1.000"]
    assert rows[1] == ["b", "resnet-18", "10,000", "validation", "1,234", *numbers, "0.877", "1.000"]
    assert all(len(row) == len(report_study.COLUMNS) for row in rows)


def test_metrics_that_are_null_are_undefined_in_the_table(tmp_path):
    run = write_run(tmp_path / "a", validation=measured(auroc=None, average_precision=None))
    assert report_study.table_rows([run])[0][-2:] == ["undefined", "undefined"]


def test_folder_of_runs_stands_for_the_finished_classifications_in_it(tmp_path):
    runs = [write_run(tmp_path / "study" / name) for name in ("b", "a")]
    write_pretraining(tmp_path / "study" / "mae")
    (tmp_path / "study" / "unfinished").mkdir()
    assert report_study.find_runs([tmp_path / "study"]) == sorted(runs)
    assert report_study.find_runs(runs) == runs


def test_markdown_has_a_header_a_ruler_and_a_line_per_run(tmp_path):
    run = write_run(tmp_path / "a")
    report_study.main([str(run), "--output", str(tmp_path / "table.md")])
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("| run | model | trained on | split | n | accuracy |")
    assert lines[1].startswith("| --- |") and lines[1].count("|") == lines[0].count("|")
    assert lines[2:] == [
        "| a | resnet-18 | 10,000 | validation | 1,234 | 0.500 | 0.250 | 0.125 | 0.167 | 0.877 | 1.000 |"
    ]


def test_terminal_shows_the_table_and_where_the_figures_are(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    (run / "loss.png").write_bytes(b"")
    report_study.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "0.877" in printed and "resnet-18" in printed
    assert f"Figures of a: {run / '*.png'}" in printed


def refused(argv: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        report_study.main(argv)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.count("\n") == 1 and message.endswith("\n") and "Traceback" not in message
    return message


def test_folder_without_results_is_an_error_of_one_line(tmp_path, capsys):
    write_pretraining(tmp_path / "study" / "mae")
    message = refused([str(tmp_path / "study")], capsys)
    assert "found no results.json of a classification run" in message and "expected" in message


def test_absent_folder_is_an_error_of_one_line(tmp_path, capsys):
    assert "absent" in refused([str(tmp_path / "absent")], capsys)


def test_broken_results_are_an_error_of_one_line_that_names_the_file(tmp_path, capsys):
    write_run(tmp_path / "a")
    (tmp_path / "a" / "results.json").write_text('{"model": ', encoding="utf-8")
    assert str(tmp_path / "a") in refused([str(tmp_path / "a")], capsys)


def test_output_in_an_absent_folder_is_an_error_of_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    assert "absent" in refused([str(run), "--output", str(tmp_path / "absent" / "table.md")], capsys)
