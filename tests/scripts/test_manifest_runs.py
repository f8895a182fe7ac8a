"""Every script takes a data folder with a manifest."""

import json

import describe_dataset
import pytest
import run_classification
import run_mae_pretrain
from cxr.cli import pretraining
from cxr.cli import probing
from cxr.cli.classification import parse_args
from cxr.data.images import load_images
from cxr.errors import UserError
from cxr.study.names import labels_of
from cxr.study.names import task_in_words
from manifest_roots import draw_images
from manifest_roots import manifest_rows
from manifest_roots import write_manifest

from mimic_cxr_dataset.label_rule import LabelRule

MODEL = ["--config_name", "vit-mae-tiny", "--image_size", "32", "--max_train_steps", "1"]
MODEL += ["--config_overrides", "hidden_size=24,intermediate_size=48,num_hidden_layers=1,patch_size=8"]
MODEL += ["--per_device_train_batch_size", "4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("manifest") / "root", manifest_rows()
    said = {"name": "Our Hospital", "license": "CC BY 4.0", "citation": "Us et al. 2026", "equalized": False}
    write_manifest(folder, rows, **said)
    draw_images(folder, rows)
    return folder


def test_images_have_text_ids_and_the_labels_of_the_collection(root, tmp_path):
    options = {"shortest_side": 32, "cache_dir": tmp_path, "num_proc": 1, "shows_progress": True}
    splits = load_images(root, LabelRule(task="findings"), on_bad_image="error", **options)
    train = splits["train"]
    assert train.label_names == ("Edema", "No Finding", "Pleural Effusion", "Hernia")
    assert train["subject_id"][0] == "p000" and len(train.read([0, 1, 2])) == 3


def test_view_that_no_image_has_is_named(root, tmp_path):
    options = {"shortest_side": 32, "cache_dir": tmp_path, "num_proc": 1, "shows_progress": True}
    with pytest.raises(UserError, match="found no image of the view lateral"):
        load_images(root, LabelRule(view="lateral"), on_bad_image="error", **options)


def test_patients_of_mimic_iv_are_refused(root, tmp_path):
    with pytest.raises(UserError, match="--patients_dir: found a manifest"):
        load_images(root, LabelRule(), on_bad_image="error", patients_dir=tmp_path)


def test_dataset_is_described_without_mimics_counts(root, tmp_path, capsys):
    flags = ["--data_dir", str(root), "--output_dir", str(tmp_path), "--dataset_config_name", "findings"]
    describe_dataset.main(flags)
    text = (tmp_path / "dataset.md").read_text(encoding="utf-8")
    assert "| Hernia | 12 | 12 | 0 | 0 |" in text and "published" not in text
    assert (tmp_path / "examples.png").is_file()
    assert "agreement" not in capsys.readouterr().out


def test_labeler_has_no_effect_and_an_unknown_finding_is_refused(root, caplog, capsys):
    parse_args(["--data_dir", str(root), "--labeler", "chexpert"])
    assert "--labeler chexpert has no effect" in caplog.text
    with pytest.raises(SystemExit):
        parse_args(["--data_dir", str(root), "--dataset_config_name", "findings", "--findings", "Hernja"])
    assert "found 'Hernja', expected a finding (did you mean 'Hernia'?)" in capsys.readouterr().err


@pytest.mark.parametrize(("labels", "found"), [(["No Finding"], "only No Finding"), ([], "no label")])
def test_task_finding_is_refused_where_no_image_can_be_positive(labels, found, tmp_path, capsys):
    write_manifest(tmp_path, manifest_rows(4), labels=labels)
    data = ["--data_dir", str(tmp_path)]
    for parse, model in ((parse_args, []), (probing.parse_args, ["some/model"])):
        with pytest.raises(SystemExit):
            parse([*model, *data])
        error = capsys.readouterr().err
        assert f"--dataset_config_name finding: found {found} in" in error and error.count("\n") == 1
    pretraining.parse_args(data)  # which needs no labels
    if labels:
        parse_args([*data, "--dataset_config_name", "findings"])


def test_damaged_collection_json_is_refused_when_flags_are_parsed(root, tmp_path, capsys):
    write_manifest(tmp_path, manifest_rows(4), labels="Edema")
    with pytest.raises(SystemExit):
        parse_args(["--data_dir", str(tmp_path)])
    assert "collection.json, labels: input should be" in capsys.readouterr().err


def test_question_names_the_labels_of_the_collection():
    labels = labels_of("findings", None, ["Edema", "Hernia"])
    assert task_in_words("findings", labels) == "2 labels (Edema, Hernia)"


@pytest.mark.slow
def test_training_scripts_record_the_collection_and_the_card_cites_it(root, tmp_path):
    data = ["--data_dir", str(root), "--cache_dir", str(tmp_path / "cache")]
    pretrained, run = tmp_path / "mae", tmp_path / "run"
    run_mae_pretrain.main([*data, *MODEL, "--output_dir", str(pretrained)])
    task = ["--dataset_config_name", "findings", "--evaluate_test", "--evaluation_level", "study"]
    run_classification.main([*data, *MODEL, *task, "--output_dir", str(run)])
    origin = json.loads((run / "args.json").read_text(encoding="utf-8"))["origin"]
    assert origin["dataset"] == "our-hospital" and origin["labeler"] is None
    assert origin["labels"] == ["Edema", "No Finding", "Pleural Effusion", "Hernia"]
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "license_name: cc-by-4.0" in card and "Please cite Us et al. 2026" in card
    assert "each of 4 labels how probable it is: Edema, No Finding, Pleural Effusion, Hernia." in card
    config = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == origin["labels"]
    expected = {"uncertain": "negative", "blank": "negative", "evaluation_level": "study"}  # and no labeler
    assert config["trained_labels"] == expected
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["labeler"] is None
