"""The model card: metadata that the Hub's own classes accept, what was measured, and code that works."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import hub as run_hub
import pytest
import run_classification
import run_mae_pretrain
from cxr.run_folder.privacy import mask_ids
from cxr.run_folder.record import Sample
from cxr.run_folder.record import Training
from cxr.sharing import card
from cxr.sharing import local_hub
from cxr.sharing.push import push_folder
from finished_runs import arguments
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from PIL import Image
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import read_results
from tiny_runs import run_main

FACTS = ("Not a medical device, and not for diagnosis", "noisy", "git commit", "transformers ")


@pytest.fixture(scope="module")
def runs(sample_root, tmp_path_factory) -> Path:
    """A pretraining that is pushed with each checkpoint, and a classifier from its name, pushed too."""
    folder = tmp_path_factory.mktemp("runs")
    shared = [*QUICK, f"--data_dir={sample_root}", "--push_to_hub", f"--hub_dir={folder / 'hub'}"]
    every = ["--hub_model_id=my-lab/mae", "--hub_strategy=every_save", "--hub_revision=v1"]
    run_main(run_mae_pretrain, folder / "mae", *TINY_VIT, *shared, *every)
    model = ["--model_name_or_path=my-lab/mae", "--evaluate_test", "--hub_model_id=my-lab/vit"]
    run_main(run_classification, folder / "vit", *shared, *model)
    return folder


def read_card(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("name", ["mae", "vit"])
def test_run_model_and_pushed_revision_have_the_same_card(name, runs):
    commit = read_results(runs / name)["hub_commit"]
    pushed = local_hub.repository_dir(runs / "hub", f"my-lab/{name}") / "snapshots" / commit
    folders = (runs / name, runs / name / "model", pushed)
    texts = {(folder / "README.md").read_text(encoding="utf-8") for folder in folders}
    assert len(texts) == 1
    linked = re.findall(r"!\[.*?\]\((.*?)\)", texts.pop())
    assert "loss.png" in linked
    for folder in (runs / name, pushed):
        assert all(Image.open(folder / path).size for path in linked)
    assert not list(pushed.glob("reconstructions*"))  # it shows radiographs


def test_metadata_is_what_the_hubs_own_classes_expect(runs):
    data = read_card(runs / "vit").data
    results = read_results(runs / "vit")
    assert (data.license, data["library_name"]) == ("mit", "transformers")
    assert data.pipeline_tag == "image-classification"
    assert (data.base_model, data.datasets) == ("my-lab/mae", ["synthetic-radiographs"])
    assert "chest-x-ray" in data.tags and "roc_auc" in data.metrics
    measured = {one.metric_type: one for one in data.eval_results}
    assert measured["roc_auc"].metric_value == pytest.approx(results["test"]["auroc"], abs=5e-5)
    assert {one.dataset_split for one in data.eval_results} == {"test"}
    assert metadata_load(runs / "vit" / "README.md")["model-index"][0]["name"] == "vit"
    assert read_card(runs / "mae").data.pipeline_tag == "image-feature-extraction"


def test_card_says_what_was_trained_on_and_measured(runs):
    text = read_card(runs / "vit").text
    results = read_results(runs / "vit")
    sample = json.loads((runs / "vit" / "samples.json").read_text(encoding="utf-8"))
    assert f"| {results['num_train_images']:,}, of which {results['num_train_positive']:,} positive |" in text
    assert sample["sha256"] in text and "| frontal |" in text and "negbio" in text
    for split in ("validation", "test"):
        found = results[split]
        low, high = found["intervals"]["auroc"]
        assert f"| {split} | {found['n']:,} | {found['auroc']:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert "| `learning_rate` | 0.001 |" in text
    assert all(fact in text for fact in FACTS)
    mae = read_card(runs / "mae").text
    assert f"{read_results(runs / 'mae')['eval_loss']:.4f}" in mae and "not finished" not in mae
    assert all(fact in mae for fact in FACTS)


def test_card_of_a_checkpoint_says_that_the_training_is_not_finished(runs):
    log = local_hub.read_log(runs / "hub", "my-lab/mae")
    steps = read_results(runs / "mae")["steps"]
    expected = [f"mae_pretraining, {number} steps" for number in (steps // 2, steps, steps)]
    assert [commit.message for commit in log[::-1]] == expected
    first = local_hub.repository_dir(runs / "hub", "my-lab/mae") / "snapshots" / log[-1].commit
    assert f"not finished: this is the model after {steps // 2} steps." in read_card(first).text
    assert local_hub.read_refs(runs / "hub", "my-lab/mae") == {"main": log[0].commit, "v1": log[0].commit}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae", "vit"])
def test_code_on_the_card_loads_the_model_from_the_directory(name, runs, sample_root, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", read_card(runs / name).text, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    Image.open(next(sample_root.rglob("*.jpg"))).save(tmp_path / "radiograph.jpg")
    environment = os.environ | {"HF_HUB_CACHE": str(runs / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("tensor(" if name == "mae" else "'No Finding'") in done.stdout


def test_run_that_was_not_pushed_gets_the_card_of_its_name_when_it_is(runs, sample_root, tmp_path):
    run_dir = tmp_path / "run"
    run_main(run_mae_pretrain, run_dir, *TINY_VIT, *QUICK, f"--data_dir={sample_root}")
    assert "In the folder of the run" in read_card(run_dir).text
    options = {"hub_dir": tmp_path / "hub", "model_id": "my-lab/late", "message": "", "tag": "v1"}
    before = {path: path.read_bytes() for path in run_dir.rglob("*.*") if path.suffix != ".log"}
    commit = push_folder(run_dir, **options)
    assert {path: path.read_bytes() for path in run_dir.rglob("*.*") if path.suffix != ".log"} == before
    pushed = local_hub.repository_dir(tmp_path / "hub", "my-lab/late") / "snapshots" / commit
    assert read_card(pushed).text.startswith("\n# my-lab/late\n")
    assert "From a local directory of models" in read_card(pushed).text
    missing = {"samples.json": "samples.json: found no", "results.json": "the run is not finished"}
    for name, said in missing.items():
        (run_dir / name).unlink()
        with pytest.raises(ValueError, match=said):
            push_folder(run_dir, **options)


def test_card_does_not_change_when_the_run_is_pushed_elsewhere_and_later(sample_root, tmp_path, monkeypatch):
    data_dir = shutil.copytree(sample_root, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    hub_flags = ["--push_to_hub", "--hub_model_id=my-lab/mae", f"--hub_dir={tmp_path / 'hub'}"]
    run_main(run_mae_pretrain, tmp_path / "run", *TINY_VIT, *QUICK, *hub_flags, "--data_dir=data")
    shutil.rmtree(data_dir)
    monkeypatch.chdir("/")
    monkeypatch.setattr(card, "source_revision", lambda: "another")
    options = {"hub_dir": tmp_path / "hub", "model_id": "my-lab/mae", "message": "", "tag": None}
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert push_folder(moved, **options) == read_results(moved)["hub_commit"]


@pytest.mark.parametrize("script", [run_mae_pretrain, run_classification])
def test_run_whose_last_push_fails_is_finished_and_says_how_to_repeat_it(
    script, sample_root, tmp_path, monkeypatch
):
    flags = ["--push_to_hub", "--hub_model_id=my-lab/x", f"--hub_dir={tmp_path / 'the hub'}"]
    flags.append("--hub_revision=v1")

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="No space left") as error:
        patch.setattr(local_hub, "push", fail)
        run_main(script, tmp_path / "run", *TINY_VIT, *QUICK, *flags, f"--data_dir={sample_root}")
    assert read_results(tmp_path / "run")["hub_commit"] is None
    command = shlex.split(str(error.value).partition("repeat it by ")[2])
    assert command[:2] == ["python", "scripts/hub.py"]
    run_hub.main(command[2:])
    (log,) = local_hub.read_log(tmp_path / "the hub", "my-lab/x")
    assert local_hub.read_refs(tmp_path / "the hub", "my-lab/x") == dict.fromkeys(["main", "v1"], log.commit)


def test_run_whose_last_push_is_interrupted_is_not_finished(sample_root, tmp_path, monkeypatch):
    flags = ["--push_to_hub", "--hub_model_id=my-lab/x", f"--hub_dir={tmp_path / 'hub'}"]

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(local_hub, "push", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_main(run_mae_pretrain, tmp_path / "run", *TINY_VIT, *QUICK, *flags, f"--data_dir={sample_root}")
    assert not (tmp_path / "run" / "results.json").exists()


def make_card(*, task: str = "pleural_effusion", **changes) -> str:
    args = {
        "dataset_config_name": "pleural_effusion",
        "hub_dir": None,
        "data_dir": Path("/mnt/patients of 2020/MIMIC-CXR JPG"),
        "model_name_or_path": "facebook/vit-mae-base",
        "model_revision": "main",
        "labeler": "chexpert",
        "uncertain": "exclude",
        "mask_ratio": 0.5,
        "seed": 10000032,
    } | changes
    origin = card.describe_origin(argparse.Namespace(**args))
    training = Training(task=task, steps=7, images_per_step=32, versions={"torch": "2.14"})
    sample = Sample(num_images=1000, seed=0, sha256="0" * 64, dicom_ids=[])
    return card.make_card(Path("no-figures"), arguments(**args, origin=origin), training, sample)


def test_numbers_of_a_card_are_not_taken_for_ids():
    text = make_card(max_train_steps=50414267)
    assert "| `seed` | 10,000,032 |" in text and "| `max_train_steps` | 50,414,267 |" in text
    assert mask_ids(text) == text


def test_data_in_the_working_directory_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "mimic-cxr-jpg" / "2.1.0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mimic-cxr-jpg" / "2.1.0")
    physionet = Path("/data/physionet.org/files/mimic-cxr-jpg/2.1.0")  # its version is below the name
    for data_dir in (Path(), Path("../2.1.0"), Path(".."), physionet):
        assert ModelCard(make_card(data_dir=data_dir)).data.datasets == ["mimic-cxr-jpg"]


def test_card_has_the_revision_of_a_base_model_by_name(runs):
    assert "| starts from | `facebook/vit-mae-base`, revision `v2` |" in make_card(model_revision="v2")
    assert "| starts from | `model` |" in make_card(model_name_or_path="/runs/mae/model")
    commit = read_results(runs / "mae")["hub_commit"]
    assert f"| starts from | `my-lab/mae`, revision `{commit}` |" in read_card(runs / "vit").text


def test_card_of_a_pretraining_says_which_labels_chose_its_images():
    text = make_card(task="mae_pretraining")
    assert "| images of the task | `pleural_effusion`: 1 if Pleural Effusion is positive" in text
    assert "not trained on" in text and "chexpert; uncertain labels: exclude" in text


def test_card_of_credentialed_data_alone_has_its_license_and_terms_and_none_has_a_path_of_the_machine():
    text = make_card()
    data = ModelCard(text).data
    assert (data.license, data.datasets) == ("other", ["mimic-cxr-jpg"])
    assert data.license_name.startswith("physionet")
    assert data.license_link.startswith("https://physionet.org/")
    assert data.base_model == "facebook/vit-mae-base"
    other = make_card(data_dir=Path("/mnt/nih-cxr"), model_name_or_path="/home/someone/runs/mae/model")
    assert ModelCard(other).data.license == "other" and "physionet-credentialed" not in other
    assert "Those of `nih-cxr` apply" in other
    assert ModelCard(other).data.base_model is None and "/home" not in other
    assert "data-use agreement" in text and "/mnt" not in text
    assert "1 if Pleural Effusion is positive" in text and "chexpert; uncertain labels: exclude" in text
