"""evaluate_model.py, end to end on synthetic samples; every number again by scikit-learn."""

import csv
import stat
import sys

import evaluate_model
import numpy as np
import pandas as pd
import pytest
import run_classification
from cxr.cli import evaluating
from cxr.errors import UserError
from cxr.evaluation import findings
from cxr.evaluation.intervals import NUM_RESAMPLES
from cxr.evaluation.intervals import holm
from cxr.evaluation.intervals import patient_weights
from cxr.evaluation.recalibration import LIMITS
from cxr.run_folder.evaluation_record import EvaluationResults
from cxr.run_folder.record import ClassificationResults
from external_runs import save_classifier
from make_sample_data import make_sample_data
from manifest_roots import draw_images
from manifest_roots import manifest_rows
from manifest_roots import write_manifest
from mimic_roots import patients
from mimic_roots import write_root
from PIL import Image
from refused import refused
from scipy.stats import ks_2samp
from sklearn import metrics
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

pytestmark = pytest.mark.slow
SEVERAL = ("Pleural Effusion", "Edema", "Cardiomegaly", "Hernia")


@pytest.fixture(scope="module")
def world(sample_root, tmp_path_factory):
    """A folder with a finished run, two models from elsewhere, other images, and the report on all."""
    folder = tmp_path_factory.mktemp("external")
    other = make_sample_data(folder / "other", num_images=160, image_size=64, seed=1, num_proc=1)
    cache = f"--cache_dir={folder / 'cache'}"
    flags = [*QUICK, "--max_train_steps=4", "--evaluate_test", f"--data_dir={sample_root}", cache]
    run_main(run_classification, folder / "run", *TINY_VIT, *flags)
    save_classifier(folder / "random", decision_threshold=0.4, trained_view="all")
    save_classifier(folder / "several", labels=SEVERAL, decision_thresholds=dict.fromkeys(SEVERAL, 0.6))
    models = [str(folder / name) for name in ("run", "random", "several")]
    data = ["--data_dir", str(other), str(sample_root), cache, "--device=cpu", "--view=frontal"]
    adapted = ["--recalibrate=validation", "--conformal=0.2", f"--output_dir={folder / 'report'}"]
    evaluate_model.main([*models, *data, *adapted])
    return folder


def read(world) -> EvaluationResults:
    return EvaluationResults.read(world / "report" / "evaluation.json")


def of(world, model, number=0):
    """The evaluation of a model on the first or second folder, and its table of predictions."""
    chosen = [one for one in read(world).evaluations if one.model.endswith(model)]
    table = (
        world
        / "report"
        / f"predictions_{evaluate_model.slug_of(chosen[number].model, chosen[number].data)}.csv"
    )
    return chosen[number], pd.read_csv(table)


def test_folder_has_the_report_in_all_forms_and_private_predictions(world):
    files = {one.name for one in (world / "report").iterdir()}
    assert {f"evaluation.{kind}" for kind in ("html", "md", "csv", "json")} <= files
    predictions = sorted((world / "report").glob("predictions_*.csv"))
    assert len(predictions) == 3 * 2
    if sys.platform != "win32":
        assert {stat.S_IMODE(path.stat().st_mode) for path in predictions} == {0o600}
    for name in ("auroc.png", "auroc.svg"):
        assert (world / "report" / "figures" / name).is_file()
    assert Image.open(world / "report" / "figures" / "auroc.png").size[0] > 500
    page = (world / "report" / "evaluation.html").read_text(encoding="utf-8")
    for said in ("Recalibrated on validation", "Conformal sets", "Shift of the probabilities", "WARNING"):
        assert said in page
    ids = pd.concat(pd.read_csv(path)["dicom_id"] for path in predictions)
    for kind in ("html", "md", "csv", "json"):
        text = (world / "report" / f"evaluation.{kind}").read_text(encoding="utf-8")
        assert not any(one in text for one in ids)


def test_each_number_is_scikit_learns_at_the_threshold_of_the_model(world):
    found, table = of(world, "random")
    (finding,) = found.findings.values()
    labels, scores = table["label"], table["probability"]
    called = scores >= 0.4
    expected = {
        "auroc": metrics.roc_auc_score(labels, scores),
        "average_precision": metrics.average_precision_score(labels, scores),
        "brier": metrics.brier_score_loss(labels, scores),
        "sensitivity": metrics.recall_score(labels, called),
        "specificity": metrics.recall_score(labels, called, pos_label=0),
    }
    measured = finding.external
    assert {name: measured.metrics[name].value for name in expected} == pytest.approx(expected, abs=1e-9)
    bins = np.minimum((scores * 10).astype(int), 9)
    gaps = [abs((scores - labels)[bins == one].sum()) for one in range(10)]
    assert measured.metrics["ece"].value == pytest.approx(sum(gaps) / len(labels), abs=1e-9)
    assert (measured.threshold, measured.n, measured.num_positive) == (0.4, len(table), labels.sum())
    weights = patient_weights(table["subject_id"], num_resamples=NUM_RESAMPLES, seed=0)
    resampled = [
        metrics.roc_auc_score(labels, scores, sample_weight=one)
        for one in weights
        if one[labels == 1].any() and one[labels == 0].any()
    ]
    expected = np.quantile(resampled, [0.025, 0.975]).tolist()
    assert measured.metrics["auroc"].interval == pytest.approx(expected, abs=1e-9)


def test_internal_figures_are_those_of_the_run(world):
    found, _ = of(world, "run")
    results = ClassificationResults.read(world / "run" / "results.json")
    (finding,) = found.findings.values()
    internal = finding.internal
    assert found.internal_split == "test of its training"
    assert internal.metrics["auroc"].value == pytest.approx(results.test.auroc)
    assert internal.metrics["auroc"].interval == pytest.approx(results.test.intervals["auroc"])
    assert internal.threshold == results.test.at_chosen_threshold.threshold == finding.external.threshold
    assert internal.metrics["sensitivity"].value == pytest.approx(results.test.at_chosen_threshold.recall)


def test_a_run_says_the_same_of_its_own_test_split_as_it_did_in_training(world):
    found, table = of(world, "run", 1)
    (finding,) = found.findings.values()
    before = pd.read_csv(world / "run" / "predictions_test.csv")
    assert table["dicom_id"].tolist() == before["dicom_id"].tolist()
    assert table["probability"].tolist() == pytest.approx(before["probability"].tolist(), abs=1e-5)
    assert finding.external.metrics["auroc"].value == pytest.approx(finding.internal.metrics["auroc"].value)
    assert found.overlap.same_name and found.overlap.num_same_ids == 0 == found.overlap.num_same_pixels
    assert any(note.startswith("WARNING") and "same name" in note for note in found.notes)


def test_several_findings_are_matched_by_name_and_the_others_named(world):
    found, table = of(world, "several")
    assert list(found.findings) == ["Cardiomegaly", "Edema", "Pleural Effusion"]  # the folder's order
    assert any("no labels for Hernia" in note for note in found.notes)
    counted = [name for name in found.findings if name not in found.left_out]
    for name, finding in found.findings.items():
        known = table[f"{name} label"].notna()
        labels, scores = table.loc[known, f"{name} label"], table.loc[known, name]
        assert finding.external.metrics["auroc"].value == pytest.approx(metrics.roc_auc_score(labels, scores))
        assert finding.external.threshold == 0.6
    aurocs = [found.findings[name].external.metrics["auroc"].value for name in counted]
    assert found.macro["auroc"].value == (pytest.approx(np.mean(aurocs)) if counted else None)


def test_what_is_not_known_of_a_model_is_said(world):
    found, _ = of(world, "random")
    said = " ".join(found.notes)
    assert "does not say by which label rule it was trained: measured with labeler negbio, uncertain" in said
    assert "--view frontal: the model was trained with all" in said
    assert "does not say whether its training images were equalised" in said
    assert "training images are not known" in said and found.overlap.num_same_ids is None
    known, _ = of(world, "run")
    assert not any("label rule" in note or "--view" in note for note in known.notes)


def test_recalibration_is_fitted_on_validation_and_measured_on_test(world):
    found, table = of(world, "run")
    (finding,) = found.findings.values()
    after = finding.recalibrated
    low, high = LIMITS
    assert low < after.temperature < high * 1.001 and after.num_validation > 5
    logits = np.log(table["probability"] / (1 - table["probability"])) / after.temperature
    adapted = 1 / (1 + np.exp(-logits))
    assert after.after.metrics["brier"].value == pytest.approx(
        metrics.brier_score_loss(table["label"], adapted), abs=1e-9
    )
    called = adapted >= after.after.threshold
    assert after.after.metrics["sensitivity"].value == pytest.approx(
        metrics.recall_score(table["label"], called)
    )
    assert after.after.metrics["auroc"].value == finding.external.metrics["auroc"].value
    assert after.after.metrics["ece"].interval is not None


def test_conformal_sets_say_that_50_calibration_images_are_needed(world):
    found, _ = of(world, "run")
    (finding,) = found.findings.values()
    sets = finding.conformal
    assert sets.alpha == 0.2 and sets.is_small
    assert sets.num_negative + sets.num_positive == finding.recalibrated.num_validation
    assert 0 <= sets.metrics["coverage"].value <= 1 and 0 <= sets.metrics["set_size"].value <= 2
    page = (world / "report" / "evaluation.md").read_text(encoding="utf-8")
    assert "Fewer than 50 calibration images of a class" in page


def test_shift_is_measured_against_validation_of_the_training_or_else_the_first_folder(world):
    found, table = of(world, "run")
    (finding,) = found.findings.values()
    reference = pd.read_csv(world / "run" / "predictions_validation.csv")
    expected = ks_2samp(table["probability"], reference["probability"]).statistic
    assert finding.shift.reference == "its validation images"
    assert finding.shift.distance == pytest.approx(expected)
    assert of(world, "random")[0].findings["Finding"].shift is None  # the first folder
    second, of_second = of(world, "random", 1)
    first, of_first = of(world, "random")
    found = second.findings["Finding"].shift
    assert found.reference == first.data
    assert found.distance == pytest.approx(
        ks_2samp(of_second["probability"], of_first["probability"]).statistic
    )


def test_models_are_compared_on_the_same_images_and_corrected_together(world):
    results = read(world)
    assert len(results.differences) == 2  # the binary models, on two folders
    assert len(results.not_compared) == 4 and "different questions" in results.not_compared[0]
    assert [one.p_corrected for one in results.differences] == sorted(
        holm([one.p for one in results.differences])
    )
    first = results.differences[0]
    aurocs = [
        one.headline("auroc").value
        for name in (first.first, first.second)
        for one in results.evaluations
        if (one.model, one.data) == (name, first.data)
    ]
    assert first.difference == pytest.approx(aurocs[0] - aurocs[1]) and first.difference >= 0
    assert first.interval[0] <= first.difference <= first.interval[1]


def test_models_of_several_findings_are_compared_finding_by_finding_too(world, monkeypatch):
    monkeypatch.setattr(findings, "MIN_LABELS", 1)  # the sample is small
    save_classifier(world / "others", labels=SEVERAL, seed=1)
    models = [str(world / name) for name in ("several", "others")]
    flags = ["--data_dir", str(world / "other"), f"--cache_dir={world / 'cache'}", "--device=cpu"]
    evaluate_model.main([*models, *flags, f"--output_dir={world / 'pair'}"])
    results = EvaluationResults.read(world / "pair" / "evaluation.json")
    of_model = {one.model.rpartition("/")[2]: one for one in results.evaluations}
    counted = set(of_model["several"].findings) - set(of_model["several"].left_out)
    found = results.differences_by_finding
    (of_mean,) = results.differences
    assert sorted(of_mean.findings) == sorted(name for one in found for name in one.findings)
    assert sorted(one.findings[0] for one in found) == sorted(counted) and counted
    for one in found:
        first, second = (
            of_model[name.rpartition("/")[2]].findings[one.findings[0]].external.metrics["auroc"].value
            for name in (one.first, one.second)
        )
        assert one.difference == pytest.approx(first - second) and one.difference >= 0
    assert [one.p_corrected for one in found] == sorted(holm([one.p for one in found]))
    for kind in ("html", "md"):
        assert "Finding by finding" in (world / "pair" / f"evaluation.{kind}").read_text(encoding="utf-8")


def test_csv_has_a_line_per_folder_model_and_finding(world):
    with (world / "report" / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + 1 + (1 + 3))  # of several findings also the mean
    line = next(row for row in rows if row["model"] == "run")
    found, _ = of(world, "run")
    assert float(line["auroc"]) == found.headline("auroc").value
    assert float(line["internal_auroc"]) == found.headline("auroc", internal=True).value
    assert (
        float(line["recalibrated_ece"]) == found.findings["Finding"].recalibrated.after.metrics["ece"].value
    )


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        ("run", ["--uncertain=perhaps"], "found 'perhaps', expected one of"),
        ("run", ["--device=cuda:99"], "found no such device"),
        ("hernia", [], "found no label that both have"),
        ("run/nothing", [], "found no such folder"),
        ("run", ["--data_dir=nowhere"], "nowhere is missing: expected"),
    ],
)
def test_mistakes_are_refused_in_one_line(model, flags, said, world, capsys):
    if model == "hernia" and not (world / model).exists():
        save_classifier(world / model, labels=("Hernia",))
    data = [f"--data_dir={world / 'other'}", "--device=cpu", f"--cache_dir={world / 'cache'}"]
    argv = [world / model, *data, *flags, f"--output_dir={world / 'no'}"]
    assert said in refused(evaluate_model.main, argv, capsys)
    assert not (world / "no").exists()


def test_folder_without_test_images_is_refused_with_what_to_do(world, tmp_path):
    root = write_root(tmp_path / "root", patients(4) + patients(2, split="validate", start=4))
    argv = [str(world / "run"), f"--data_dir={root}", "--device=cpu", f"--cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(UserError, match=r'found no test images.*write "test" in the split column'):
        evaluate_model.main(argv)


def test_folder_with_test_images_only_is_enough_unless_validation_is_needed(world, tmp_path):
    labels = {50000001 + number: {"Edema": 1.0} for number in range(6)}
    root = write_root(tmp_path / "root", patients(12, split="test"), labels=labels)
    argv = [str(world / "run"), f"--data_dir={root}", "--device=cpu", f"--cache_dir={tmp_path / 'cache'}"]
    evaluate_model.main([*argv, f"--output_dir={tmp_path / 'out'}"])
    found = EvaluationResults.read(tmp_path / "out" / "evaluation.json").evaluations[0]
    assert (found.num_images, found.data) == (12, "root") and not found.overlap.same_name
    assert found.findings["Finding"].recalibrated is None is found.findings["Finding"].conformal
    with pytest.raises(UserError, match=r"found no validation images.* for --recalibrate and --conformal"):
        evaluate_model.main([*argv, "--conformal=0.1"])


def test_output_folder_that_cannot_be_made_is_refused_before_anything_is_measured(world, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    argv = [world / "run", f"--data_dir={world / 'other'}", f"--output_dir={tmp_path / 'a.txt' / 'out'}"]
    assert "cannot be created (" in refused(evaluate_model.main, [*argv, "--device=cuda:99"], capsys)


def test_study_whose_images_have_different_labels_is_refused_at_the_level_of_studies(tmp_path):
    rows = manifest_rows(24)
    for first, second in zip(rows[::4], rows[2::4]):  # ill and normal
        second |= {name: first[name] for name in ("subject_id", "study_id", "split")}
    root = write_manifest(tmp_path / "root", rows)
    draw_images(root, rows)
    model = save_classifier(tmp_path / "model")
    argv = [str(model), f"--data_dir={root}", "--device=cpu", f"--cache_dir={tmp_path / 'cache'}"]
    argv += [f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"images have different labels.*use --evaluation_level image"):
        evaluate_model.main([*argv, "--evaluation_level=study"])
    evaluate_model.main(argv)
    assert EvaluationResults.read(tmp_path / "out" / "evaluation.json").evaluations[0].num_images > 0


def test_labels_of_another_task_are_refused(world, tmp_path, capsys):
    save_classifier(tmp_path / "animals", labels=("cat", "dog"))
    argv = [tmp_path / "animals", f"--data_dir={world / 'other'}", "--device=cpu"]
    assert "found the labels cat and dog" in refused(evaluate_model.main, argv, capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a", "b", "a", "--data_dir", "{0}"], "MODEL a: found the same as a"),
        (["a", "--data_dir", "{0}", "{0}/../{0.name}"], "found the same as"),
        (["a", "--data_dir", "{0}", "--conformal=1"], "expected a number above 0 and below 1"),
        (["a", "--data_dir", "{0}", "--output_dir", "{0}/a.txt"], "a.txt: found something there, expected"),
        (["a", "--data_dir", "{0}", "--output_dir", "{0}"], "found something there, expected a new folder"),
        (
            ["a", "--data_dir", "{0}", "--output_dir", "{0}/" + "x" * 300],
            "cannot be read (File name too",
        ),
        (["a"], "--data_dir"),
    ],
)
def test_wrong_flags_are_refused_before_torch_is_needed(argv, said, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(SystemExit):
        evaluating.parse_args([word.format(tmp_path) for word in argv])
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
