"""The report of a study, from handmade runs: tables, intervals, sentences, figures and the page."""

import csv
import dataclasses
import functools
import http.server
import itertools
import json
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_study
import rich.console
from cxr.run_folder.files import write_json
from cxr.run_folder.record import ClassificationResults
from cxr.study import grid
from cxr.study.answer import no_answer
from cxr.study.measuring import arrays
from cxr.study.measuring import measure_tables
from cxr.study.measuring import published_row
from cxr.study.names import DEFAULT_LABELS
from cxr.study.names import RowName
from cxr.study.names import TableName
from cxr.study.paper import study_results
from cxr.study.report import general_notes
from cxr.study.report import notes
from cxr.study.results import ResultTable
from cxr.study.results import gather_rows
from cxr.study.results import point_of
from finished_findings import write_findings_run
from finished_runs import ORIGIN
from finished_runs import classification_results
from finished_runs import finish
from finished_runs import pretraining_results
from finished_runs import write_run
from refused import refused
from sklearn.metrics import roc_auc_score

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


PAPER_ROWS = {
    "p25": {"model": "facebook/vit-mae-base", "augmentation": "mae", "mask_ratio": 0.25},
    "vit": {"model": "facebook/vit-mae-base", "augmentation": "none", "mask_ratio": 0.0},
    "resnet": {"model": "microsoft/resnet-18", "augmentation": "classic", "mask_ratio": 0.0},
}


def write_study(folder: Path) -> Path:
    """Two sizes of three of the paper's rows, three seeds each; one row has not run."""
    cells = {}
    for size in (1000, 10_000):
        for (name, row), quality in zip(PAPER_ROWS.items(), (0.8, 1.5, 2.5)):
            for seed in (0, 1, 2):
                results = {"num_train_images": size, "pretrained": True, "seed": seed, **row}
                point = point_of(classification_results(**results))
                run_id = grid.run_id(point)
                cells[run_id] = grid.ClassificationCell(
                    run_id=run_id, script=grid.CLASSIFICATION, point=point, flags={"data_dir": str(folder)}
                )
                if (name, size) != ("p25", 10_000):
                    write_run(folder / run_id, quality=quality + (size > 1000), **results)
    point = grid.Point(model="vit-mae-tiny", view="frontal", seed=0)
    run_id = grid.pretraining_id(point)
    cells[run_id] = grid.Cell(run_id=run_id, script=grid.PRETRAINING, point=point, flags={})
    write_json(folder / "plan.json", grid.Plan(cells=cells).as_json())
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study's folder with its report."""
    folder = write_study(tmp_path_factory.mktemp("study") / "study")
    report_study.main([str(folder), "--num_resamples", "300"])
    return folder


@pytest.fixture(scope="module")
def tables(study) -> list[ResultTable]:
    return measure_tables(gather_rows([study]), 300)


def read_table(study: Path) -> list[dict[str, str]]:
    with (study / "report.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Tables -----------------------------------------------------------------------------------------------------


def test_there_is_a_table_a_size_with_the_papers_rows_and_columns_and_what_has_not_run(study):
    text = (study / "report.md").read_text(encoding="utf-8")
    head = "| model | augmentation | % masking | seeds | Accuracy | Precision | F1 | Recall | AUC |"
    assert text.count(head) == 2
    measured = "n = 200 images of 100 patients, 99 positive"
    assert f"## Finding vs No Finding, 1,000 training images, frontal views, test split ({measured})" in text
    assert "| MAE ViT | mae | 0.25 | 3 of 3 |" in text
    assert "| MAE ViT | none |  | 3 of 3 |" in text
    assert "| ResNet | classic |  | 3 of 3 |" in text
    assert "| MAE ViT | mae | 0.25 | 0 of 3 | not run<br>paper 0.749 |" in text
    assert "the column augmentation is the paper's “transformer”." in text
    assert "3 planned runs have not finished" in text
    row = next(row for row in read_table(study) if row["seeds"] == "0")
    assert (row["train_size"], row["masking"], row["auroc"]) == ("10000", "0.25", "")


def test_our_figures_stand_beside_the_papers(study):
    rows = {(row["train_size"], row["model"], row["augmentation"]): row for row in read_table(study)}
    row = rows["1000", "MAE ViT", "none"]
    published = tuple(study_results(1000, "MAE ViT", "none", 0.0).values())
    names = ("accuracy", "precision", "f1", "recall", "auroc")
    assert [float(row[f"{name}_published"]) for name in names] == list(published)
    assert f"paper {published[4]:.3f}" in (study / "report.md").read_text(encoding="utf-8")
    assert rows["10000", "ResNet", "classic"]["auroc_published"] == "0.807"


def test_the_note_beside_the_papers_figures_names_the_split_of_ours(tmp_path):
    row = {"model": "facebook/vit-mae-base", "pretrained": True}
    for split in ("test", "validation"):
        write_run(tmp_path / split, split=split, **row)
        (table,) = measure_tables(gather_rows([tmp_path / split]), 20)
        assert table.rows[0].published
        assert any(f"ours are from the {split} split" in note for note in notes(table))


def test_labels_of_a_manifest_are_not_said_to_be_of_a_labeler_or_compared_with_the_papers(tmp_path):
    origin = ORIGIN.model_copy(update={"labels": ["No Finding", "Edema"]})
    write_run(tmp_path / "manifest", flags={"origin": origin})
    write_run(tmp_path / "mimic", seed=1)
    ((mimic, _), (manifest, _)) = sorted(gather_rows([tmp_path]).items())
    assert (mimic.labels, manifest.labels) == ("negbio, uncertain negative", "uncertain negative")
    row = RowName("MAE ViT", "none", 0.0, "patches")
    assert published_row(mimic, row) and not published_row(manifest, row)
    assert "negbio" not in manifest.title and manifest.slug != mimic.slug


def test_planned_runs_have_the_labels_of_finished_ones_where_the_data_are_not_mounted(tmp_path):
    point, cells = point_of(classification_results(task="findings")), {}
    for seed in (0, 1):
        point_of_seed = point.model_copy(update={"seed": seed})
        name, flags = grid.run_id(point_of_seed), {"data_dir": str(tmp_path / "not-mounted")}
        cells[name] = grid.ClassificationCell(
            run_id=name, script=grid.CLASSIFICATION, point=point_of_seed, flags=flags
        )
    write_json(tmp_path / "plan.json", grid.Plan(cells=cells).as_json())
    names = ("No Finding", "Edema")
    folder = write_findings_run(tmp_path / next(iter(cells)), names=names)
    origin = ORIGIN.model_copy(update={"labels": list(names)})
    finish(folder, ClassificationResults.read(folder / "results.json"), seed=0, origin=origin)
    (rows,) = gather_rows([tmp_path]).values()
    ((runs, num_planned),) = rows.values()
    assert (len(runs), num_planned) == (1, 2)


def test_the_papers_figures_are_for_its_task_its_view_and_full_training_only():
    row = RowName("MAE ViT", "none", 0.0, "patches")
    labels = DEFAULT_LABELS
    name = TableName("finding", "frontal", "full", labels, "test", "1000")
    assert published_row(name, row)["auroc"] == 0.752
    for change in ({"augmentation": "classic"}, {"masking": 0.25}, {"model": "resnet-18, from scratch"}):
        assert published_row(name, dataclasses.replace(row, **change)) == {}
    changes = {"task": "pleural_effusion", "view": "lateral", "training_mode": "last_layer", "size": "500"}
    changes["labels"] = "chexpert, uncertain negative"
    for field, value in (*changes.items(), ("size", "all")):
        assert published_row(dataclasses.replace(name, **{field: value}), row) == {}


def test_the_best_of_each_column_is_underlined(tables):
    first = tables[0]
    assert {row.name.model for row in first.rows if first.is_best(row, "auroc")} == {"ResNet"}
    lowest = min(row.values["brier"] for row in first.measured)
    assert [row.values["brier"] for row in first.rows if first.is_best(row, "brier")] == [lowest]


def test_values_are_means_over_seeds_with_intervals_over_seeds_and_patients_and_auroc_by_view(tables):
    row = tables[0].rows[2]
    aurocs = [roc_auc_score(*arrays(run.predictions)) for run in row.runs]
    assert len(aurocs) == 3
    assert row.values["auroc"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    half = 4.302653 * np.std(aurocs, ddof=1) / np.sqrt(3)
    assert row.over_seeds["auroc"].low == pytest.approx(np.mean(aurocs) - half, abs=1e-6)
    assert row.over_patients["auroc"].low < row.values["auroc"] < row.over_patients["auroc"].high
    found = {(one.attribute, one.group): one for one in row.by_group.groups}
    assert set(found) == {("view", "AP"), ("view", "PA")}
    value, interval, count = (getattr(found["view", "PA"], name) for name in ("auroc", "intervals", "n"))
    of_view = [run.predictions[run.predictions["view_position"] == "PA"] for run in row.runs]
    assert count == 100
    expected = np.mean([roc_auc_score(rows["label"], rows["probability"]) for rows in of_view])
    assert value == pytest.approx(expected, abs=1e-12)
    assert interval["auroc"][0] < value < interval["auroc"][1]


def test_runs_without_a_plan_make_up_rows_by_what_they_record(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", seed=seed)
        write_run(tmp_path / f"b{seed}", seed=seed, random_erasing_prob=0.5, pretrained=True, model="my/vit")
    (rows,) = gather_rows([tmp_path, tmp_path / "a0", tmp_path / "b0" / ".."]).values()  # a run counts once
    assert {name.label(rows): len(runs) for name, (runs, _) in rows.items()} == {
        "resnet-18, from scratch": 2,
        "my/vit, 50% erased": 2,
    }


def test_one_class_is_undefined_and_not_compared_of_the_validation_split_where_there_is_no_other(tmp_path):
    for name in ("a", "b"):
        folder = write_run(tmp_path / name, model=name, pretrained=True, split="validation")
        predictions = pd.read_csv(folder / "predictions_validation.csv")
        predictions.assign(label=1).to_csv(folder / "predictions_validation.csv", index=False)
    report_study.main([str(tmp_path), "--num_resamples", "50"])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| undefined |" in text and "not compared" in text and "validation split" in text
    assert not list((tmp_path / "figures").glob("roc-*.png"))


# Differences ------------------------------------------------------------------------------------------------


def test_every_pair_of_rows_is_compared_the_clearest_first(tables):
    first = tables[0]
    assert len(first.comparisons) == 3
    found = {(one.first, one.second): one for one in first.comparisons}
    best, worst = "ResNet, augmented (classic)", "MAE ViT, augmented (mae), 25% masked"
    assert found[best, worst].num_seeds == 3
    assert found[best, worst].p < 0.05 and found[best, worst].difference.low > 0.05
    assert [one.p for one in first.comparisons] == sorted(one.p for one in first.comparisons)
    assert any("its own validation images" in note for note in notes(first))  # the paper's figures


def test_few_seeds_are_said_to_leave_something_out(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, model=name, pretrained=True)
    tables = measure_tables(gather_rows([tmp_path]), 50)
    few, one = general_notes(tables)
    assert few.startswith("All rows have fewer than 3 seeds") and "tables with one seed per row" in one


def test_two_seeds_have_no_interval_over_seeds_anywhere(tmp_path, capsys):
    for size in (1000, 2000):
        for seed in (0, 1):
            write_run(tmp_path / f"{size} {seed}", seed=seed, num_train_images=size)
    report_study.main([str(tmp_path), "--num_resamples", "50"])
    printed = capsys.readouterr().out
    assert "95 % over patients" in printed and "95 % over seeds" not in printed
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<br>seeds [" not in text and "<br>patients [" in text and "fewer than 3 seeds" in text
    assert "The bars are 95 % intervals over patients" in text
    assert all(row["auroc_seeds_low"] == "" for row in read_table(tmp_path))


def test_rows_measured_on_other_images_are_not_compared(tmp_path):
    write_run(tmp_path / "a", model="a", pretrained=True)
    write_run(tmp_path / "b", model="b", pretrained=True, num_images=100)
    (table,) = measure_tables(gather_rows([tmp_path]), 50)
    assert table.comparisons == [] and "no two were measured on the same images with the" in notes(table)[0]


def test_rows_without_a_common_seed_are_not_said_to_have_other_images(tmp_path):
    for seed, model in enumerate("ab"):
        write_run(tmp_path / model, model=model, pretrained=True, seed=seed)
    tables = measure_tables(gather_rows([tmp_path]), 50)
    for said in (notes(tables[0])[0], no_answer(tables)):
        assert "measured on the same images with the same seed" in said


@pytest.mark.timing
def test_six_rows_of_3403_predictions_take_2000_resamples_in_under_10_seconds(tmp_path):
    for number in range(6):
        write_run(tmp_path / str(number), model=str(number), pretrained=True, num_images=3403)
    gathered = gather_rows([tmp_path])
    started = time.perf_counter()
    (table,) = measure_tables(gathered, 2000)
    assert time.perf_counter() - started < 10
    assert len(table.comparisons) == 15


# Figures and the page ---------------------------------------------------------------------------------------


def test_figures_are_drawn_for_each_table_and_over_the_sizes(study):
    names = {path.name for path in (study / "figures").iterdir()}
    of_tables = {
        f"{kind}-finding-{size}.png" for kind in ("loss", "roc", "calibration") for size in (1000, 10000)
    }
    pictures = {*of_tables, "auroc-by-size-finding.png"}
    assert names == pictures | {name.replace(".png", ".svg") for name in pictures}
    text = (study / "report.md").read_text(encoding="utf-8")
    for name in pictures:
        assert f"(figures/{name})" in text
        assert (study / "figures" / name).read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (study / "figures" / name).with_suffix(".svg").read_bytes()


def test_the_page_is_one_file_that_names_no_other(study):
    page = (study / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len([source for source in sources if source.startswith("data:image/png;base64,")]) == 7
    assert not [source for source in sources if not source.startswith(("data:image/png;base64,", "#"))]
    assert not re.search(r"url\(|@import|<link|https?:", page)


def test_nothing_written_holds_an_id(study):
    for path in (study / "report.html", study / "report.md", study / "report.csv"):
        text = path.read_text(encoding="utf-8")
        assert "deadbeef" not in text and not re.search(r"\b17000\d{3}\b", text)


def test_names_from_records_cannot_become_markup(tmp_path):
    write_run(tmp_path / "a", model="<script>alert(1)</script>|b", pretrained=True)
    report_study.main([str(tmp_path), "--num_resamples", "20"])
    assert "<script>alert" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    tables = [list(rows) for is_row, rows in itertools.groupby(lines, lambda line: line[:1] == "|") if is_row]
    assert sum("alert" in line for rows in tables for line in rows) > 3
    assert {len({line.count("|") for line in rows}) for rows in tables} == {1}


PROBE = """
<script>
const table = document.querySelector("table.results"), seen = {};
const auc = row => row.cells[8].querySelector("b")?.textContent ?? "not run";
const column = () => [...table.tBodies[0].rows].map(auc);
const headings = [...table.tHead.rows[0].cells].map(cell => cell.textContent.trim());
seen.headings = headings;
seen.before = column();
table.tHead.rows[0].cells[8].querySelector("button").click();
seen.down = column();
seen.sort = table.tHead.rows[0].cells[8].getAttribute("aria-sort");
table.tHead.rows[0].cells[8].querySelector("button").click();
seen.up = column();
const image = document.querySelector("figure img");
image.click();
seen.zoomed = document.querySelector("dialog").open && document.querySelector("dialog img").src === image.src;
fetch("/fetched").catch(() => { seen.refused = true; }).finally(() => {
  seen.fetched = performance.getEntriesByType("resource").map(entry => entry.name)
    .filter(name => !name.startsWith("data:") && !name.endsWith("/fetched"));
  document.body.innerHTML = "<pre>SEEN" + JSON.stringify(seen) + "NEES</pre>";
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not opened (Debian: chromium)")
def test_browser_shows_the_table_sorts_it_on_a_click_and_fetches_nothing(study, tmp_path):
    page = (study / "report.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        flags += ["--disable-background-networking", "--virtual-time-budget=5000", "--dump-dom"]
        address = f"http://127.0.0.1:{server.server_port}/page.html"
        done = subprocess.run([CHROMIUM, *flags, address], capture_output=True, text=True, timeout=120)
        server.shutdown()
    found = re.search(r"SEEN(.*)NEES", done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1])
    assert seen["headings"][:3] == ["model", "augmentation", "% masking"]
    assert seen["headings"][4:] == ["Accuracy", "Precision", "F1", "Recall", "AUC"]
    assert len(seen["before"]) == 3 and seen["sort"] == "descending"
    assert seen["down"] == sorted(seen["before"], reverse=True) != seen["before"]
    assert seen["up"] == sorted(seen["before"])
    assert seen["zoomed"] and seen["refused"] and seen["fetched"] == []
    assert set(asked) <= {"/page.html", "/favicon.ico"}


# The terminal and errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, pytest.param(140, marks=pytest.mark.slow)])
def test_terminal_shows_the_tables_and_where_the_report_is(width, study, capsys, monkeypatch):
    monkeypatch.setattr(report_study, "Console", lambda **_: rich.console.Console(width=width))
    report_study.main([str(study), "--num_resamples", "20"])
    printed = capsys.readouterr().out
    assert "10,000 training images" in printed and "not run" in printed and "AUROC, 95 %" in printed
    assert "ResNet, augmented" in printed and ("Precision" in printed) == (width == 140)
    assert f"Report: {study / 'report.html'}" in printed


def test_folder_without_results_is_an_error_of_one_line(tmp_path, capsys):
    finish(tmp_path / "study" / "mae", pretraining_results())
    for name in ("study", "absent"):
        message = refused(report_study.main, [tmp_path / name], capsys)
        assert f"{name}: found no finished classification run (results.json)" in message


def test_several_folders_need_a_place_for_the_report(tmp_path, capsys):
    runs = [str(write_run(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    assert "found several folders and no --output_dir" in refused(report_study.main, runs, capsys)
    report_study.main([*runs, "--output_dir", str(tmp_path / "new" / "report"), "--num_resamples", "20"])
    assert (tmp_path / "new" / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows.assign(probability=2.0),
        lambda rows: rows.assign(probability="high"),
        lambda rows: rows.assign(label=7),
        lambda rows: rows.drop(columns="subject_id"),
        lambda rows: rows.iloc[:-1],
    ],
    ids=["probability above one", "probability in words", "unknown label", "no patients", "cut off"],
)
def test_spoilt_predictions_are_an_error_of_one_line_that_names_the_file(tmp_path, capsys, spoil):
    folder = write_run(tmp_path / "a")
    path = folder / "predictions_test.csv"
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    assert f"{path}: not what a run writes: " in refused(report_study.main, [folder], capsys)


def test_missing_records_are_an_error_of_one_line(tmp_path, capsys):
    for name in ("args.json", "samples.json", "predictions_test.csv"):
        path = write_run(tmp_path / "a") / name
        path.unlink()
        assert str(path) in refused(report_study.main, [path.parent], capsys)


def test_edited_plan_is_an_error_of_one_line(tmp_path, capsys):
    folder = write_study(tmp_path / "study")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    name, cell = next(iter(plan["cells"].items()))
    points = [cell["point"] | change for change in ({"masking": "x"}, {"masking_kind": "pigs"}, {"seed": 7})]
    for broken in (None, {}, [], cell | {"flags": None}, *({**cell, "point": point} for point in points)):
        text = json.dumps({"cells": {**plan["cells"], name: broken}})
        (folder / "plan.json").write_text(text, encoding="utf-8")
        message = refused(report_study.main, [folder], capsys)
        assert f"{folder / 'plan.json'}: not what run_study.py writes" in message


def test_runs_that_differ_in_a_flag_are_rows_of_their_own(tmp_path):
    flags = {"weight_decay": 0.1, "per_device_train_batch_size": 32, "output_dir": "a"}
    changes = [{}, {"seed": 1, "output_dir": "b"}, {"weight_decay": 0.2}, {"weight_decay": 0.2, "seed": 1}]
    for number, change in enumerate(changes):
        write_run(tmp_path / str(number), seed=change.get("seed", 0), flags=flags | change)
    write_run(tmp_path / "larger", images_per_step=64)
    (rows,) = gather_rows([tmp_path]).values()
    assert {name.label(rows): len(runs) for name, (runs, _) in rows.items()} == {
        "resnet-18, from scratch, images_per_step 32, weight_decay 0.1": 2,
        "resnet-18, from scratch, images_per_step 32, weight_decay 0.2": 2,
        "resnet-18, from scratch, images_per_step 64, weight_decay None": 1,
    }


def test_flag_that_an_older_run_lacks_makes_no_row_of_its_own(tmp_path):
    for seed, flags in enumerate(({}, {"new_flag": 0.0}, {"new_flag": 0.0})):
        write_run(tmp_path / str(seed), seed=seed, flags=flags)
    (rows,) = gather_rows([tmp_path]).values()
    assert [(name.setup, len(runs)) for name, (runs, _) in rows.items()] == [("", 3)]
    write_run(tmp_path / "3", seed=3, flags={"new_flag": 0.65})
    (rows,) = gather_rows([tmp_path]).values()
    setups = {name.setup: len(runs) for name, (runs, _) in rows.items()}
    assert setups == {"new_flag None": 3, "new_flag 0.65": 1}


def test_planned_runs_of_a_folder_that_is_named_in_two_ways_count_once(study, monkeypatch):
    monkeypatch.chdir(study.parent)
    run = next(study.glob("*_s0")).relative_to(study)
    tables = gather_rows([study / run, Path(study.name), study])
    planned = [num_planned for rows in tables.values() for _, num_planned in rows.values()]
    assert planned == [3] * 6


@pytest.mark.parametrize(
    ("change", "said"),
    [({"num_images": 100}, "they were measured on different images"), ({"seed": 0}, "seed 0 is there twice")],
    ids=["images", "seed"],
)
def test_runs_of_one_row_that_differ_in_more_than_the_seed_are_refused(tmp_path, capsys, change, said):
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", **{"seed": 1, **change})
    assert said in refused(report_study.main, [tmp_path], capsys)


def test_runs_of_one_table_that_were_trained_on_other_images_are_refused(tmp_path, capsys):
    write_run(tmp_path / "a", model="a", pretrained=True)
    other = write_run(tmp_path / "b", model="b", pretrained=True)
    sample = json.loads((other / "samples.json").read_text(encoding="utf-8"))
    write_json(other / "samples.json", sample | {"sha256": "another"})
    assert "trained on different images" in refused(report_study.main, [tmp_path], capsys)


def test_an_ensemble_is_the_mean_probability_of_a_rows_seeds(study, tables):
    row = tables[0].rows[2]
    labels, _ = arrays(row.runs[0].predictions)
    mean = np.mean([arrays(run.predictions)[1] for run in row.runs], axis=0)
    assert row.ensemble.values["auroc"] == pytest.approx(roc_auc_score(labels, mean), abs=1e-12)
    assert row.ensemble.values["accuracy"] == pytest.approx(np.mean((mean >= 0.5) == labels), abs=1e-12)
    names = {line["model"]: line for line in read_table(study) if line["train_size"] == tables[0].name.size}
    line = names[f"{row.name.model}, ensemble of {len(row.runs)}"]
    assert float(line["auroc"]) == row.ensemble.values["auroc"]
    assert "Ensembles: the mean of the probabilities" in (study / "report.md").read_text(encoding="utf-8")
