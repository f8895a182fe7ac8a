"""Which labels a model and a folder have in common, by which rule, and how images are prepared."""

import numpy as np
import pytest
import torch
from cxr.cli.evaluating import parse_args
from cxr.errors import UserError
from cxr.external import matching
from cxr.external.matching import Equalize
from cxr.external.matching import choose_equalizing
from cxr.external.matching import match
from cxr.external.subject import load_subject
from cxr.external.subject import read_card
from external_runs import BINARY
from external_runs import save_classifier

from mimic_cxr_dataset.gray_levels import equalize

OWN = dict.fromkeys(("labeler", "view", "uncertain", "blank", "evaluation_level"))
LABELS = {"labeler": "chexpert", "uncertain": "exclude,Edema=positive", "blank": "exclude"}


def subject_of(folder, **options):
    save_classifier(folder, **{"trained_view": "frontal"} | options)
    return load_subject(str(folder), device="cpu", hub_dir=None, revision="main")


@pytest.fixture
def collection(monkeypatch):
    """Gives all folders label columns of their own, as a manifest does."""

    def choose(*columns):
        monkeypatch.setattr(matching, "labels_of_collection", lambda folder: columns)

    return choose


def test_own_label_rule_is_used_without_a_word(tmp_path, sample_root):
    subject = subject_of(tmp_path / "model", labels=("Edema", "Fracture", "Pneumonia"), trained_labels=LABELS)
    found = match(subject, sample_root, OWN)
    rule = found.rule
    assert (rule.labeler, rule.uncertain, rule.blank, rule.view) == (*LABELS.values(), "frontal")
    assert rule.label_names == ("Edema", "Fracture", "Pneumonia") and found.level == "image"
    assert not any("label rule" in note or note.startswith("--") for note in found.notes)


def test_model_whose_thresholds_are_of_studies_is_measured_by_study(tmp_path, sample_root):
    labels = LABELS | {"uncertain": "negative", "evaluation_level": "study"}
    subject = subject_of(tmp_path / "model", trained_labels=labels)
    assert match(subject, sample_root, OWN).level == "study"
    found = match(subject, sample_root, OWN | {"evaluation_level": "image"})
    assert found.level == "image"
    assert "--evaluation_level image: the model was trained with study." in found.notes


def test_each_flag_that_replaces_a_part_of_the_rule_is_named(tmp_path, sample_root):
    subject = subject_of(tmp_path / "model", trained_labels=LABELS | {"uncertain": "negative"})
    chosen = {"labeler": "negbio", "uncertain": "positive", "view": "all"}
    found = match(subject, sample_root, OWN | chosen)
    assert (found.rule.labeler, found.rule.uncertain, found.rule.view) == ("negbio", "positive", "all")
    for name, value in chosen.items():
        assert any(f"--{name} {value}: the model was trained with" in note for note in found.notes)


def test_flag_with_the_value_of_the_model_is_not_worth_a_word(tmp_path, sample_root):
    subject = subject_of(tmp_path / "model", trained_labels=LABELS | {"uncertain": "negative"})
    found = match(subject, sample_root, OWN | {"labeler": "chexpert", "view": "frontal"})
    assert not any(note.startswith("--") for note in found.notes)


def test_labels_of_a_manifest_have_no_labeler_and_other_findings_count(tmp_path, collection):
    collection("No Finding", "Tuberculosis")
    found = match(subject_of(tmp_path / "model"), tmp_path, OWN)
    assert found.labeler is None and found.rule.task == "finding"
    assert any("any of the labels that the folder has: Tuberculosis" in note for note in found.notes)
    assert not any("labeler" in note for note in found.notes)


def test_labels_of_a_manifest_are_said_not_to_be_those_of_the_labeler_of_the_training(tmp_path, collection):
    collection("Edema", "Fracture", "Pneumonia")
    subject = subject_of(tmp_path / "model", labels=("Edema", "Fracture", "Pneumonia"), trained_labels=LABELS)
    said = "The labels are those of the folder's manifest; the model was trained with those of chexpert."
    assert said in match(subject, tmp_path, OWN).notes


def test_model_of_a_manifest_has_no_labeler_of_its_own_which_is_said(tmp_path, sample_root):
    own = {"uncertain": "exclude", "blank": "negative"}
    found = match(subject_of(tmp_path / "model", trained_labels=own), sample_root, OWN)
    said = "trained on labels of a manifest, which has no labeler: measured with labeler negbio."
    assert found.rule.uncertain == "exclude" and any(said in note for note in found.notes)
    assert any(note.startswith("A finding is any of the labels that the folder has") for note in found.notes)
    found = match(subject_of(tmp_path / "null", trained_labels=own | {"labeler": None}), sample_root, OWN)
    assert any(said in note for note in found.notes)


@pytest.mark.parametrize("policy", ["maybe", "smooth"])
def test_label_rule_that_a_model_cannot_have_is_refused_with_its_name(policy, tmp_path, sample_root):
    subject = subject_of(tmp_path / "model", trained_labels=LABELS | {"uncertain": policy})
    with pytest.raises(UserError, match=f"model: its label rule has uncertain='{policy}'"):
        match(subject, sample_root, OWN)


def test_flag_without_effect_is_said(tmp_path, collection):
    collection("No Finding", "Tuberculosis")
    found = match(subject_of(tmp_path / "model"), tmp_path, OWN | {"labeler": "chexpert", "blank": "exclude"})
    said = " ".join(found.notes)
    assert "--labeler is not used: the folder has a manifest" in said
    assert "--blank is not used: the model has one label only" in said and "trained with" not in said


def test_findings_that_a_folder_lacks_are_named_and_their_policies_left_out(tmp_path, collection):
    subject = subject_of(tmp_path / "model", labels=("Edema", "Fracture", "Pneumonia"), trained_labels=LABELS)
    collection("Fracture", "Pneumonia", "Scoliosis")
    found = match(subject, tmp_path, OWN)
    assert found.rule.label_names == ("Fracture", "Pneumonia") and found.rule.uncertain == "exclude"
    assert "The folder has no labels for Edema: they are not measured." in found.notes
    collection("Scoliosis")
    with pytest.raises(UserError, match="found no label that both have; the model has Edema, Fracture"):
        match(subject, tmp_path, OWN)


def test_equalising_follows_the_model_and_the_folder(tmp_path):
    trained, other, unknown = (
        subject_of(tmp_path / f"{value}", equalized=value) for value in (True, False, None)
    )
    assert choose_equalizing(trained, "auto", are_equalized=False)[0]
    assert choose_equalizing(trained, "auto", are_equalized=True) == (False, [])
    assert choose_equalizing(other, "auto", are_equalized=False) == (False, [])
    equalizes, notes = choose_equalizing(other, "auto", are_equalized=True)
    assert not equalizes and "those of the training were not equalised" in notes[0]
    equalizes, notes = choose_equalizing(unknown, "auto", are_equalized=False)
    assert not equalizes and "does not say" in notes[0] and "these are not equalised" in notes[0]
    assert choose_equalizing(unknown, "yes", are_equalized=False)[0]
    equalizes, notes = choose_equalizing(other, "yes", are_equalized=False)
    assert equalizes and "although those of its training were not" in notes[0]
    equalizes, notes = choose_equalizing(trained, "no", are_equalized=False)
    assert not equalizes and "those of the training were equalised" in notes[0]


def test_images_are_equalised_as_by_the_reader_of_files():
    pixels = np.random.default_rng(0).integers(60, 120, (20, 30)).astype("uint8")
    found = Equalize()(torch.from_numpy(pixels)[None])
    assert found.shape == (1, 20, 30) and np.array_equal(found[0].numpy(), equalize(pixels))


def test_figures_of_a_card_are_read_and_any_other_text_is_no_card(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(
        "---\nmodel-index:\n- name: cxr\n  results:\n  - task: {type: image-classification}\n"
        "    dataset: {type: mimic, name: mimic, split: test}\n"
        "    metrics: [{type: roc_auc, value: 0.8123}, {type: f1, value: 0.5}]\n---\n# cxr\n",
        encoding="utf-8",
    )
    assert read_card(card) == {("test", "auroc"): 0.8123}
    for text in ("", "# A model\n", "---\nmodel-index: 3\n---\n"):
        card.write_text(text, encoding="utf-8")
        assert read_card(card) == {}
    assert read_card(None) == {}


def test_run_folder_stands_for_its_model(tmp_path):
    save_classifier(tmp_path / "run" / "model", labels=BINARY)
    args = parse_args([str(tmp_path / "run"), "--data_dir", str(tmp_path)])
    assert args.models == [str(tmp_path / "run" / "model")]
