"""The card of a classifier of several findings, of groups of patients, and against a radiologist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cxr.choices import CHEXPERT5
from cxr.models import configs
from cxr.models.pretrained import load_image_processor
from cxr.models.scratch import new_classifier
from cxr.run_folder.privacy import files_to_share
from cxr.run_folder.record import Origin
from cxr.run_folder.record import Sample
from cxr.sharing import card
from finished_runs import ORIGIN
from finished_runs import arguments
from finished_runs import classification_results
from finished_runs import measured
from huggingface_hub import ModelCard
from PIL import Image
from tiny_runs import TINY_VIT

FINDINGS = [*CHEXPERT5, "No Finding"]
FLAGS = {"dataset_config_name": "findings", "findings": ["chexpert5", "No Finding"], "uncertain": "mix"}
SAMPLE = Sample(num_images=1000, seed=0, sha256="0" * 64, dicom_ids=[])
MIMIC = Origin(**{**ORIGIN.as_json(), "is_synthetic": False, "dataset": "mimic-cxr-jpg", "labeler": "negbio"})


def of_finding(number: int) -> dict:
    """Returns measurements that tell the findings apart."""
    interval = [0.1, 0.9]
    values = {"auroc": 0.71, "average_precision": 0.31, "f1": 0.41, "sensitivity": 0.51, "specificity": 0.61}
    values = {name: value + number / 1000 for name, value in values.items()}
    counts = {"n": 100 + number, "num_positive": 20 + number, "threshold": 0.2 + number / 1000}
    return {**values, **counts, "projection_auroc": 0.55, "intervals": dict.fromkeys(values, interval)}


def of_group(attribute: str, group: str, *, num_patients: int, finding: str = "macro") -> dict:
    values = {"auroc": 0.8, "sensitivity": 0.7, "specificity": 0.6, "intervals": {"auroc": [0.75, 0.85]}}
    counts = {"n": 2 * num_patients, "num_patients": num_patients, "num_positive": 9}
    return {"finding": finding, "attribute": attribute, "group": group, **counts, **values}


def groups(finding: str = "macro") -> dict:
    named = [("sex", "female", 40), ("sex", "male", 50), ("race", "Asian", 9), ("race", "White", 10)]
    found = [of_group(what, name, num_patients=number, finding=finding) for what, name, number in named]
    gap = {"finding": finding, "attribute": "sex", "higher": "female", "lower": "male"}
    gap |= {"difference": 0.05, "interval": [0.01, 0.09], "p": 0.02}
    if finding == "macro":
        found.append(of_group("sex", "other finding", num_patients=99, finding="Edema"))
    return {"groups": found, "gaps": [gap], "num_patients_unknown": 3}


def of_split(**changes) -> dict:
    found = {name: of_finding(number) for number, name in enumerate(FINDINGS)}
    means = {"auroc": 0.712, "average_precision": 0.312, "chexpert5_auroc": 0.722}
    means |= {"chexpert5_average_precision": 0.322, "projection_auroc": 0.543}
    intervals = {"auroc": [0.65, 0.75], "chexpert5_auroc": [0.66, 0.76]}
    rest = {"n": 200, "loss": 0.5, "findings": found, "left_out": ["No Finding"], "intervals": intervals}
    return {**means, **rest, **changes}


def make_model(folder: Path) -> Path:
    overrides = TINY_VIT[1].removeprefix("--config_overrides=")
    config = configs.make_config("vit-mae-tiny", overrides=overrides, image_size=32)
    model = new_classifier(config, FINDINGS, multi_label=True)
    model.config.decision_thresholds = dict.fromkeys(FINDINGS, 0.5)
    model.save_pretrained(folder)
    load_image_processor(None, hub_dir=None, revision="main", image_size=32).save_pretrained(folder)
    return folder


def make_card(folder: Path, *, flags: dict = FLAGS, origin: Origin = ORIGIN, **results) -> str:
    (folder / "config.json").exists() or (folder / "config.json").write_text("{}", encoding="utf-8")
    splits = {} if "validation" in results else {"validation": of_split(), "test": of_split()}
    found = classification_results(**{"task": "findings", **splits, **results})
    return card.make_card(folder, arguments(**flags, origin=origin), found, SAMPLE)


def test_card_says_which_findings_and_how_their_labels_were_made(tmp_path):
    text = make_card(tmp_path)
    assert f"for each of 6 labels how probable it is: {', '.join(FINDINGS)}." not in text  # in LABELS' order
    assert "6 labels how probable it is: Atelectasis, Cardiomegaly, Consolidation, Edema, No Finding" in text
    assert "0 if it is negative; one that is blank counts as negative |" in text
    assert "Atelectasis, Edema: count as positive; the others: count as negative |" in text
    assert "one for each label, in the tables below (`decision_thresholds` in" in text
    smooth = make_card(tmp_path, flags=FLAGS | {"uncertain": "smooth", "blank": "exclude"})
    assert "| uncertain labels | count as a number from 0.55 to 0.85 in training, and as positive" in smooth
    assert "one that is blank is not used unless No Finding decides it" in smooth


def test_card_has_the_means_and_each_finding_with_intervals(tmp_path):
    text = make_card(tmp_path)
    assert "| test | 200 | 5 of 6 labels | 0.712 [0.650, 0.750] | 0.312 |" in text
    assert "| test | 200 | the five of CheXpert | 0.722 [0.660, 0.760] | 0.322 |" in text
    cells = ["Edema", "103", "23", "0.713 [0.100, 0.900]", "0.313 [0.100, 0.900]", "0.550", "0.203"]
    cells += [f"{value} [0.100, 0.900]" for value in ("0.413", "0.513", "0.613")]
    assert text.count(f"| {' | '.join(cells)} |\n") == 2
    assert "Not in the means on test, because they have fewer than 10 positive or negative labels" in text
    assert "alone has an AUROC of 0.543 on validation and 0.543 on test: a model that" in text
    measured = {one.metric_type: one for one in ModelCard(text).data.eval_results}
    assert measured["roc_auc"].metric_value == 0.712 and measured["average_precision"].metric_value == 0.312
    assert len(measured) == 2


def test_card_of_an_evaluation_by_study_counts_studies(tmp_path):
    text = make_card(tmp_path, flags=FLAGS | {"evaluation_level": "study", "class_weights": "balanced"})
    assert "| split | studies | mean over |" in text and "mean of the logits of its images" in text
    assert "| `class_weights` | balanced |" in text


@pytest.mark.slow
def test_code_on_the_card_prints_the_probability_of_each_finding(tmp_path):
    make_model(tmp_path / "model")
    text = make_card(tmp_path / "model")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    for name, probability, called in zip(FINDINGS, lines[::2], lines[1::2], strict=True):
        assert re.fullmatch(rf"probability of {name}: 0\.\d{{3}}", probability)
        assert called in ("called positive: True", "called positive: False")


def test_figures_of_several_findings_are_shared_and_those_of_groups_are_not(tmp_path):
    model = make_model(tmp_path / "model")
    for name in ("roc_test", "auroc_test", "roc_validation", "auroc_validation"):
        Image.new("L", (8, 8)).save(model / f"{name}.png")
    text = make_card(model)
    (model / "README.md").write_text(text, encoding="utf-8")
    assert len(re.findall(r"!\[.*?\]\((roc|auroc)_(test|validation)\.png\)", text)) == 4
    assert len([path for path in files_to_share(model) if path.suffix == ".png"]) == 4
    for name in ("groups_test.png", "predictions_test.csv"):  # it may show a group of few patients
        (model / name).touch()
        with pytest.raises(ValueError, match="found in a folder to share"):
            files_to_share(model)
        (model / name).unlink()


@pytest.mark.parametrize("is_multi_label", [True, False])
def test_card_says_for_whom_it_works_without_groups_of_few_patients(is_multi_label, tmp_path):
    if is_multi_label:
        text = make_card(tmp_path, test=of_split(subgroups=groups()))
    else:
        test = measured() | {"subgroups": groups("Finding"), "projection_auroc": 0.6}
        text = make_card(tmp_path, flags={}, task="finding", validation=measured(), test=test)
        assert "The view (AP or PA) alone has an AUROC of 0.600 on test: a model that" in text
    assert "| sex | female | 40 | 80 | 0.800 [0.750, 0.850] | 0.700 | 0.600 |" in text
    assert "| race | White | 10 |" in text and "Asian" not in text and "other finding" not in text
    assert "by sex: female against male, 0.050 [0.010, 0.090], p = 0.020 (corrected" in text
    assert "3 patients have no row in MIMIC-IV" in text and "Fairness" not in text


def test_card_says_that_fairness_was_not_measured_only_where_it_was_not(tmp_path):
    views = {"groups": [of_group("view", "AP", num_patients=90)], "gaps": []}
    for subgroups in (None, views):
        text = make_card(tmp_path, test=of_split(subgroups=subgroups))
        assert "Fairness between groups of patients was not measured." in text
        assert ("### For whom it works" in text) == (subgroups is not None)


def test_card_has_the_radiologist_of_real_data_alone(tmp_path):
    agreement = {"n": 600, "num_positive": 90, "kappa": 0.8, "f1": 0.85, "intervals": {"kappa": [0.7, 0.9]}}
    radiologist = {"num_studies": 687, "num_changed_by_devices": 5, "image": of_split(n=900)}
    radiologist |= {"study": of_split(n=687), "agreement": {"negbio": {"Edema": agreement}}}
    text = make_card(tmp_path, origin=MIMIC, radiologist=radiologist)
    assert "who read the reports of 687 test studies, not the images" in text
    assert "| study | 687 | 0.712 [0.650, 0.750] | 0.312 |" in text
    assert "| Edema | negbio | 600 | 0.800 [0.700, 0.900] | 0.850 |" in text
    assert "radiologist" not in make_card(tmp_path, radiologist=radiologist)


def test_label_rule_that_this_version_does_not_know_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^args.json: .*found 'doubtful', expected one of"):
        make_card(tmp_path, flags=FLAGS | {"uncertain": "doubtful"})
