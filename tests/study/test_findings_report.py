"""The report of models of several findings: means, finding by finding, by group, against the radiologist."""

import csv
import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import report_study
from cxr.choices import CHEXPERT5
from cxr.choices import LABELS
from cxr.choices import MASKED
from cxr.evaluation.subgroups import MACRO
from cxr.evaluation.subgroups import measure_groups_of_findings
from cxr.run_folder.files import write_json
from cxr.study import grid
from cxr.study.answer import answer
from cxr.study.answer import sentence
from cxr.study.by_finding import in_order
from cxr.study.by_group import group_lines
from cxr.study.by_group import group_notes
from cxr.study.how_trained import how_trained
from cxr.study.measuring import measure_tables
from cxr.study.names import TableName
from cxr.study.names import labels_of
from cxr.study.names import task_in_words
from cxr.study.predictions import finding_arrays
from cxr.study.predictions import group_names
from cxr.study.report import notes
from cxr.study.results import gather_rows
from cxr.study.results import point_of
from finished_findings import RARE
from finished_findings import write_findings_run
from finished_runs import classification_results
from finished_runs import write_run
from refused import refused
from sklearn.metrics import average_precision_score
from sklearn.metrics import roc_auc_score

COUNTED = [name for name in LABELS if name != RARE]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two models with all 14 labels, three seeds each, measured against a radiologist, and their report."""
    folder = tmp_path_factory.mktemp("findings") / "study"
    for model, quality in (("a", 0.7), ("b", 1.6)):
        for seed in (0, 1, 2):
            run = folder / f"{model}{seed}"
            row = {"model": model, "pretrained": True, "quality": quality, "seed": seed}
            write_findings_run(run, with_radiologist=True, **row)
    report_study.main([str(folder), "--num_resamples", "100"])
    return folder


@pytest.fixture(scope="module")
def table(study):
    (only,) = measure_tables(gather_rows([study]), 100)
    return only


def table_names(folder):
    return sorted(gather_rows([folder]))


def known(run, name):
    rows = run.predictions[run.predictions[f"{name} label"] != MASKED]
    return rows[f"{name} label"], rows[name]


# Numbers ----------------------------------------------------------------------------------------------------


def test_scikit_learn_agrees_with_the_means_over_findings_and_seeds(table):
    for row in table.rows:
        for metric, score, names in (
            ("auroc", roc_auc_score, COUNTED),
            ("average_precision", average_precision_score, COUNTED),
            ("chexpert5_auroc", roc_auc_score, CHEXPERT5),
        ):
            expected = np.mean([score(*known(run, name)) for run in row.runs for name in names])
            assert row.values[metric] == pytest.approx(expected, abs=1e-9)
            assert row.over_patients[metric].low < expected < row.over_patients[metric].high
            assert row.over_seeds[metric].low < expected < row.over_seeds[metric].high
        measured = [run.measured.auroc for run in row.runs]
        assert [aurocs[0] for aurocs in row.aurocs.values()] == pytest.approx(measured, abs=1e-12)


def test_scikit_learn_agrees_with_every_finding_and_the_rare_one_is_marked(table):
    for row in table.rows:
        assert list(row.by_finding) == list(LABELS)
        for name, found in row.by_finding.items():
            expected = np.mean([roc_auc_score(*known(run, name)) for run in row.runs])
            assert found.auroc == pytest.approx(expected, abs=1e-9)
            assert found.interval.low < found.auroc < found.interval.high
            labels = known(row.runs[0], name)[0]
            assert (found.n, found.num_positive) == (len(labels), labels.sum())
            assert found.is_counted == (name != RARE)
    order = in_order([row.by_finding for row in table.rows])
    means = [np.mean([row.by_finding[name].auroc for row in table.rows]) for name in order]
    assert order[-1] == RARE and means[:-1] == sorted(means[:-1], reverse=True)


def test_groups_of_one_run_are_those_that_the_run_measures(tmp_path):
    write_findings_run(tmp_path / "a")
    ((row,),) = (table.rows for table in measure_tables(gather_rows([tmp_path]), 2000))
    predictions = row.runs[0].predictions
    groups, gaps = measure_groups_of_findings(
        *finding_arrays(predictions, LABELS),
        predictions["subject_id"],
        dict(group_names(predictions)),
        names=LABELS,
        thresholds=[0.5] * len(LABELS),
    )
    expected = [one for one in groups if one["finding"] == MACRO]
    assert [one.as_json() for one in row.by_group.groups] == expected
    assert [one.as_json() for one in row.by_group.gaps] == [one for one in gaps if one["finding"] == MACRO]


def test_groups_are_averaged_over_seeds_and_those_of_few_patients_are_counted_only(table):
    row, number = table.rows[0], 0
    inside = [run.predictions[run.predictions["sex"] == "F"] for run in row.runs]
    runs = [dataclasses.replace(run, predictions=rows) for run, rows in zip(row.runs, inside)]
    found = next(one for one in row.by_group.groups if one.group == "F")
    expected = [roc_auc_score(*known(run, name)) for run in runs for name in COUNTED]
    assert found.num_findings == len(COUNTED) and found.auroc == pytest.approx(np.mean(expected), abs=1e-9)
    lines = {(line.attribute, line.group): line for line in group_lines(table)}
    assert lines["sex", "F"].of_rows[number] == found
    assert (lines["sex", "F"].n, lines["sex", "F"].num_patients) == ("100", "50")
    assert [group for attribute, group in lines if attribute == "age"] == ["18-39", "40-59", "60-79", "80+"]
    assert {group for attribute, group in lines if attribute == "race"} == {"Black", "White"}
    assert "Not shown: 1 group of fewer than 10 patients." in group_notes(table)


def test_the_radiologists_labels_have_columns_of_their_own(table):
    for row in table.rows:
        for level, file, n in (("image", "radiologist", 120), ("study", "radiologist_study", 80)):
            measured = [getattr(run.results.radiologist, level).auroc for run in row.runs]
            found = row.against_radiologist[level]
            assert found.auroc == pytest.approx(np.mean(measured), abs=1e-9) and found.n == n
            assert found.interval.low < found.auroc < found.interval.high
            assert (row.runs[0].folder / f"predictions_{file}.csv").is_file()
    assert table.radiologist.num_changed_by_devices == 7


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        (None, "14 labels at once"),
        (["chexpert5"], "5 labels of CheXpert"),
        (list(reversed(CHEXPERT5)), "5 labels of CheXpert"),
        (["Edema"], "1 label (Edema)"),
        (["Pneumonia", "Edema"], "2 labels (Edema, Pneumonia)"),
        (COUNTED, f"13 labels (all but {RARE})"),
    ],
)
def test_a_task_is_said_in_words(findings, said):
    assert task_in_words("findings", labels_of("findings", findings, None)) == said


def test_runs_of_different_label_rules_never_share_a_table(tmp_path):
    changes = [
        {},
        {"names": CHEXPERT5},
        {"uncertain": "mix"},
        {"blank": "exclude"},
        {"labeler": "chexpert"},
        {"level": "study"},
    ]
    for number, change in enumerate(changes):
        write_findings_run(tmp_path / str(number), **change)
    write_run(tmp_path / "binary")
    names = table_names(tmp_path)
    assert len(names) == len({name.slug for name in names}) == len({name.title for name in names}) == 7


def test_labels_of_other_alphabets_make_different_names_of_files():
    name = TableName("findings", "frontal", "full", "uncertain negative", "test", "all")
    slugs = {
        dataclasses.replace(name, findings=findings).slug
        for findings in (("דלקת", "בצקת"), ("נוזל", "גוש"), ("Edema", "Mass"))
    }
    assert len(slugs) == 3 and all(re.fullmatch(r"[a-z0-9-]+", slug) for slug in slugs)


def test_long_rules_make_short_names_of_files(tmp_path):
    for number, policy in enumerate(("positive", "exclude")):
        uncertain = ",".join(f"{name}={policy}" for name in COUNTED)
        write_findings_run(tmp_path / str(number), uncertain=uncertain)
    first, second = (name.slug for name in table_names(tmp_path))
    assert first != second and max(len(first), len(second)) < 130


def test_a_table_by_study_counts_studies(tmp_path):
    write_findings_run(tmp_path / "a", level="study")
    (table,) = measure_tables(gather_rows([tmp_path]), 20)
    assert table.n == "n = 200 studies of 100 patients" and ", by study, " in table.title
    common, _ = how_trained([table])
    assert common["test split"] == "200 studies of 100 patients"
    assert common["label rule"] == (
        "14 labels at once, by negbio, uncertain counts as negative, frontal views, measured by study"
    )


def test_a_planned_run_is_in_the_table_of_the_finished_ones(tmp_path):
    cells = {}
    for seed in (0, 1):
        row = {"task": "findings", "seed": seed, "findings": list(CHEXPERT5), "uncertain": "mix"}
        point = point_of(classification_results(**row))
        flags = {"findings": ["chexpert5"], "uncertain": "mix", "dataset_config_name": "findings"}
        flags["data_dir"] = str(tmp_path)
        name = grid.run_id(point)
        cells[name] = grid.ClassificationCell(
            run_id=name, script=grid.CLASSIFICATION, point=point, flags=flags
        )
    write_findings_run(tmp_path / next(iter(cells)), names=CHEXPERT5, uncertain="mix")
    write_json(tmp_path / "plan.json", grid.Plan(cells=cells).as_json())
    (rows,) = gather_rows([tmp_path]).values()
    assert [(len(runs), planned) for runs, planned in rows.values()] == [(1, 2)]


# The pages --------------------------------------------------------------------------------------------------


def test_pages_have_the_means_the_findings_the_groups_and_the_ceiling(study):
    page = (study / "report.html").read_text(encoding="utf-8")
    text = (study / "report.md").read_text(encoding="utf-8")
    assert "seeds | Macro AUROC | Macro AP | CheXpert-5 AUROC |" in text
    for said in (page, text):
        assert "14 labels at once: b is better than a by" in said
        assert "mean AUROC over findings, n = 200 images of 100 patients" in said
        assert "1 difference of AUROC (mean over findings), row by row" in said
        assert "Finding by finding (n = 200 images of 100 patients)" in said and f"{RARE}‡" in said
        assert f"or negative labels: {RARE} (5 positive)." in said
        assert "For whom does it work?" in said and "largest gap, 95 %" in said and "80+" in said
        assert "Asian" not in said and "Not shown: 1 group of fewer than 10 patients." in said
        assert "The view alone (AP or PA) reaches an AUROC (mean over findings) of 0.61." in said
        assert "Against a radiologist (80 studies)" in said and "In 7 studies, a device is all" in said
        assert "radiologist, 120 images" in said and "chexpert: kappa" in said
        assert "deadbeef" not in said and "Recall" not in said
    assert (study / "figures" / "findings-findings-1000.png").read_bytes().startswith(b"\x89PNG")
    assert not list((study / "figures").glob("roc-*"))


def test_csv_has_a_line_per_row_and_another_file_a_line_per_row_and_finding(study, table):
    with (study / "report.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [line for line in lines if "ensemble" not in line["model"]]
    assert len(lines) == 2 * len(rows)
    assert [row["model"] for row in rows] == [row.name.model for row in table.rows]
    assert [float(row["auroc"]) for row in rows] == [row.values["auroc"] for row in table.rows]
    assert all(row["accuracy"] == "" and row["chexpert5_auroc"] and row["findings"] for row in rows)
    study_level = table.rows[0].against_radiologist["study"]
    assert float(rows[0]["auroc_radiologist_study"]) == study_level.auroc
    lines = pd.read_csv(study / "report-findings.csv")
    assert len(lines) == 2 * len(LABELS) and set(lines["finding"]) == set(LABELS)
    assert list(lines[~lines["in_macro"]]["finding"]) == [RARE] * 2
    first = table.rows[0].by_finding[LABELS[0]]
    assert lines["auroc"][0] == pytest.approx(first.auroc, abs=1e-12)
    assert lines["auroc_patients_low"][0] == pytest.approx(first.interval.low, abs=1e-12)


def test_binary_and_several_labels_stand_in_one_report(study, tmp_path, capsys):
    for name, quality in (("a", 1.0), ("b", 2.0)):
        write_run(tmp_path / "binary" / name, model=name, pretrained=True, quality=quality)
    folders = [str(study), str(tmp_path / "binary")]
    report_study.main([*folders, "--output_dir", str(tmp_path / "both"), "--num_resamples", "50"])
    text = (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    assert "| Accuracy | Precision | F1 | Recall | AUC |" in text and "| Macro AUROC | Macro AP |" in text
    assert "Macro AUROC" in capsys.readouterr().out


def test_no_clear_difference_names_the_task(tmp_path):
    for model in ("a", "b"):
        write_findings_run(tmp_path / model, model=model, pretrained=True, names=CHEXPERT5)
    tables = measure_tables(gather_rows([tmp_path]), 50)
    assert sentence(answer(tables), tables).startswith(
        "5 labels of CheXpert: The only difference of mean AUROC is not distinguishable"
    )
    assert "of 0.61." in notes(tables[0])[0] and list(tables[0].metrics) == ["auroc", "average_precision"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows.assign(Edema=1.5),
        lambda rows: rows.assign(**{"Edema label": 0.5}),
        lambda rows: rows.drop(columns="Edema label"),
        lambda rows: rows.assign(Edema=""),
    ],
    ids=["probability above one", "unknown label", "no labels", "no probabilities"],
)
def test_spoilt_predictions_of_findings_are_an_error_of_one_line(tmp_path, capsys, spoil):
    folder = write_findings_run(tmp_path / "a")
    path = folder / "predictions_test.csv"
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    assert f"{path}: not what a run writes: " in refused(report_study.main, [folder], capsys)


def test_records_without_groups_or_projection_are_read(tmp_path):
    folder = write_findings_run(tmp_path / "a")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del results["test"]["projection_auroc"]
    write_json(folder / "results.json", results)
    path = folder / "predictions_test.csv"
    pd.read_csv(path).drop(columns=["scanner", "sex", "age", "race"]).to_csv(path, index=False)
    (table,) = measure_tables(gather_rows([tmp_path]), 20)
    assert notes(table) == [] and {line.attribute for line in group_lines(table)} == {"view"}
