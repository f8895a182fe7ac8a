"""Classifiers as a user loads them: by folder or name, with what the run stored, or refused in one line."""

import json
import shutil
from pathlib import Path

import export_onnx
import predict
import pytest
import run_classification
import serve
import torch
from cxr.data.images import default_cache_image_size
from cxr.errors import UserError
from cxr.inference.classifier import load_classifier
from cxr.inference.radiographs import Radiograph
from cxr.models import configs
from cxr.models.heads import MULTI_LABEL_HEAD
from cxr.models.pretrained import find_file
from cxr.models.scratch import new_classifier
from cxr.sharing import local_hub
from huggingface_hub.constants import HF_HUB_CACHE
from tiny_runs import QUICK
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import run_main


@pytest.fixture(scope="module")
def vit_model(sample_root, tmp_path_factory):
    """The model/ of a run whose cached images are not of the default size."""
    folder = tmp_path_factory.mktemp("inference") / "run"
    flags = [*QUICK, "--max_train_steps=2", "--cache_image_size=45", "--view=all"]
    run_main(run_classification, folder, *TINY_VIT, *flags, f"--data_dir={sample_root}")
    return folder / "model"


def edited(model, folder, **changes):
    """A copy of a model with other fields in its config.json; None takes one out."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {name: value for name, value in (config | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_classifier_knows_how_its_run_saw_images(vit_model):
    classifier = load_classifier(str(vit_model), device="cpu")
    config = json.loads((vit_model / "config.json").read_text(encoding="utf-8"))
    assert (classifier.image_size, classifier.shortest_side, classifier.trained_view) == (32, 45, "all")
    assert classifier.labels == ("No Finding", "Finding")
    assert classifier.has_threshold and classifier.thresholds == (config["decision_threshold"],)
    assert not classifier.is_multi_label and classifier.findings == ("Finding",)
    assert not classifier.model.training and classifier.model.dtype == torch.float32


def test_what_a_model_of_other_origin_lacks_has_the_documented_default(vit_model, tmp_path):
    absent = dict.fromkeys(("decision_threshold", "cache_image_size", "trained_view"))
    classifier = load_classifier(edited(vit_model, tmp_path / "model", **absent), device="cpu")
    assert not classifier.has_threshold and classifier.thresholds == (0.5,)
    assert classifier.shortest_side == default_cache_image_size(32) == 37
    assert classifier.trained_view is None
    read = Radiograph(torch.zeros(1, 40, 40, dtype=torch.uint8), "LL", is_equalized=False, warnings=())
    assert not [doubt for doubt in classifier.find_doubts(read) if "view" in doubt]


def test_thresholds_for_studies_are_said_to_be_so(vit_model, tmp_path, capsys):
    labels = {"uncertain": "negative", "blank": "negative", "evaluation_level": "study"}
    model = edited(vit_model, tmp_path / "model", trained_labels=labels)
    classifier = load_classifier(model, device="cpu")
    assert classifier.threshold_level == "study"
    assert "chosen on validation studies" in serve.read_card(None, classifier)
    assert export_onnx.about(classifier)["threshold_level"] == "study"
    for name, said in ((model, 1), (str(vit_model), 0)):
        predict.load_model(predict.parse_args([name, "a.jpg", "--device=cpu"]))
        assert capsys.readouterr().err.count("chosen for whole studies") == said


def test_labels_have_the_order_of_their_numbers_in_any_order_of_the_file(vit_model, tmp_path):
    name = edited(vit_model, tmp_path / "model", id2label={"1": "Finding", "0": "No Finding"})
    assert load_classifier(name, device="cpu").labels == ("No Finding", "Finding")


def test_decision_begins_at_the_threshold(vit_model, tmp_path):
    classifier = load_classifier(edited(vit_model, tmp_path / "m", decision_threshold=0.3), device="cpu")
    assert [classifier.decide([one]) for one in (0.2999, 0.3, 1.0)] == ["No Finding", "Finding", "Finding"]


def test_resnets_input_size_is_that_of_its_image_processor(sample_root, tmp_path):
    flags = [*QUICK, "--max_train_steps=1", f"--data_dir={sample_root}"]
    run_main(run_classification, tmp_path / "run", *TINY_RESNET, *flags)
    args = run_classification.parse_args([f"--model_name_or_path={tmp_path / 'run' / 'model'}"])
    assert run_classification.load_config(args)[1] == 32  # also of a further training
    classifier = load_classifier(str(tmp_path / "run" / "model"), device="cpu")
    assert (classifier.image_size, classifier.shortest_side) == (32, 37)


def test_model_loads_by_name_and_revision_from_a_hub_directory(vit_model, tmp_path):
    commit = local_hub.push(vit_model, hub_dir=tmp_path, model_id="my-lab/cxr", message="first")
    images = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8)
    expected = load_classifier(str(vit_model), device="cpu").probabilities(images)
    for revision in ("main", commit):
        named = load_classifier("my-lab/cxr", hub_dir=tmp_path, revision=revision, device="cpu")
        assert named.name == "my-lab/cxr"
        assert named.probabilities(images).tolist() == expected.tolist()
    with pytest.raises(UserError, match=r"--hub_dir .*, which has my-lab/cxr, or on a reachable Hub"):
        load_classifier("my-lab/crx", hub_dir=tmp_path, device="cpu")


def as_download(folder, cache_dir):
    """Moves a model into the layout of the Hub's cache, as my-lab/model, sound or not; returns its name."""
    repository = local_hub.repository_dir(cache_dir, "my-lab/model")
    for name in ("refs", "snapshots"):
        (repository / name).mkdir(parents=True)
    commit = "0123456789" * 4
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.move(folder, repository / "snapshots" / commit)
    return "my-lab/model"


def test_model_that_was_downloaded_from_the_hub_loads_by_its_name(vit_model, tmp_path):
    images = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8)
    expected = load_classifier(str(vit_model), device="cpu").probabilities(images)
    name = as_download(edited(vit_model, tmp_path / "model"), Path(HF_HUB_CACHE))
    assert load_classifier(name, device="cpu").probabilities(images).tolist() == expected.tolist()
    assert find_file(name, "config.json", hub_dir=None, revision="main").is_file()
    shutil.rmtree(local_hub.repository_dir(Path(HF_HUB_CACHE), name))


# What is wrong with a model -> other fields in its config.json, and what is said.
WRONG_FIELDS = {
    "masked autoencoder": (
        {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]},
        "found a masked autoencoder, expected a classifier",
    ),
    "encoder": (
        {"architectures": ["ViTModel"]},
        "found vit with architectures ['ViTModel'], expected vit with ['ViTForImage",
    ),
    "three labels": ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "a head for 3 labels, expected 2"),
    "no label": (
        {"problem_type": MULTI_LABEL_HEAD, "id2label": {}},
        "expected 2 (negative and positive), or 1",
    ),
    "a number is missing": ({"id2label": {"1": "a", "2": "b"}}, "found the numbers 1, 2, expected 0 to 1"),
    "same label twice": ({"id2label": {"0": "a", "1": "a"}}, "found the label 'a' twice in id2label"),
    "language model": ({"model_type": "bert", "architectures": ["BertModel"]}, "BertModel"),
    "wild threshold": ({"decision_threshold": 40}, "found decision_threshold=40, expected less than"),
    "wild size": ({"cache_image_size": "large"}, "found cache_image_size='large', expected a valid integer"),
    "wild view": ({"trained_view": ["PA"]}, "found trained_view=['PA'], expected 'frontal', 'lateral' or"),
    "other width": ({"hidden_size": 64}, "expected"),
}
# What is wrong with a folder -> what makes it so, and what is said.
WRONG_FOLDERS = {
    "no folder": (shutil.rmtree, "found no such folder"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "found no model.safetensors"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "could not be loaded"),
    "empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], "could not be loaded"),
}


@pytest.mark.parametrize("wrong", [*WRONG_FIELDS, *WRONG_FOLDERS])
def test_what_is_no_classifier_is_refused_in_words_of_the_command_line(wrong, vit_model, tmp_path):
    changes, said = WRONG_FIELDS.get(wrong, ({}, ""))
    name = edited(vit_model, tmp_path / "wrong", **changes)
    if wrong in WRONG_FOLDERS:
        damage, said = WRONG_FOLDERS[wrong]
        damage(tmp_path / "wrong")
    with pytest.raises(UserError) as error:
        load_classifier(name, device="cpu")
    text = str(error.value)
    assert text.startswith(f"model {name}: ") and said in text and "\n" not in text
    assert "--model_name_or_path" not in text and "--config_name" not in text


@pytest.mark.parametrize("wrong", ["masked autoencoder", "encoder", "wild threshold", "other width"])
def test_model_in_a_hub_directory_is_refused_by_the_name_that_was_given(wrong, vit_model, tmp_path):
    changes, said = WRONG_FIELDS[wrong]
    name = as_download(edited(vit_model, tmp_path / "wrong", **changes), tmp_path / "hub")
    with pytest.raises(UserError, match=r"^model my-lab/model: ") as error:
        load_classifier(name, hub_dir=tmp_path / "hub", device="cpu")
    assert said in str(error.value) and "snapshots" not in str(error.value)


def test_damaged_image_processor_of_a_resnet_is_refused_by_the_name_that_was_given(tmp_path):
    config = configs.make_config("resnet-18", overrides="embedding_size=8", image_size=None)
    new_classifier(config, ["No Finding", "Finding"]).save_pretrained(tmp_path / "resnet")
    (tmp_path / "resnet" / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=rf"^model {tmp_path / 'resnet'}: could not be loaded .*damaged JSON"):
        load_classifier(str(tmp_path / "resnet"), device="cpu")


def test_name_that_no_hub_directory_has_is_refused(vit_model, tmp_path):
    with pytest.raises(UserError, match=r"^model my-lab/nothing, revision main: could not be loaded"):
        load_classifier("my-lab/nothing", hub_dir=tmp_path, device="cpu")
    with pytest.raises(UserError, match="--model_revision v1: found the local folder"):
        load_classifier(str(vit_model), revision="v1", device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_device_that_is_not_here_is_refused(device, vit_model):
    with pytest.raises(UserError, match=f"--device {device}: found no such device; expected auto or cpu"):
        load_classifier(str(vit_model), device=device)
