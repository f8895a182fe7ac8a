"""The model card: metadata that the Hub's own classes accept, what was measured, and code that works."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import hub as run_hub
import pytest
import run_classification
import run_mae_pretrain
from cxr.choices import LABELERS
from cxr.data import sources
from cxr.data.sources import is_mimic
from cxr.run_folder.files import write_json
from cxr.run_folder.privacy import mask_ids
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import Sample
from cxr.run_folder.record import Training
from cxr.run_folder.record import read_results as results_of_run
from cxr.sharing import card
from cxr.sharing import local_hub
from cxr.sharing.push import push_folder
from cxr.version import VERSION
from finished_runs import arguments
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from manifest_roots import manifest_rows
from manifest_roots import write_manifest
from PIL import Image
from safetensors.torch import load_file
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
    assert sample["sha256"] in text and "| frontal |" in text
    for split in ("validation", "test"):
        found = results[split]
        (low, high), (low_f1, high_f1) = (found["intervals"][name] for name in ("auroc", "f1"))
        assert f"| {split} | {found['n']:,} | {found['auroc']:.3f} [{low:.3f}, {high:.3f}] |" in text
        assert f" {found['f1']:.3f} [{low_f1:.3f}, {high_f1:.3f}] |" in text
        chosen = found["at_chosen_threshold"]
        names = ("threshold", "accuracy", "precision", "recall", "f1")
        assert " | ".join(["", split, *(f"{chosen[name]:.3f}" for name in names), ""]).strip() in text
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


def run_codes(cards: dict[Path, str]) -> list[str]:
    """What the block of Python on each card prints, run as it stands in its folder, all in one process.

    The process has no variable of ours about the Hub.
    """
    codes = [re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for text in cards.values()]
    steps = [[str(folder), code] for folder, (code,) in zip(cards, codes)]
    runner = (
        "import json, os, sys\n"
        "for folder, code in json.loads(sys.argv[1]):\n"
        "    os.chdir(folder)\n"
        "    exec(code, {})\n"
        "    print('next card')\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB")}
    command = [sys.executable, "-c", runner, json.dumps(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("next card\n")[:-1]


PRINTED = {
    "mae": r"reconstruction loss: \d",
    "vit": r"probability of Finding: [01]\.\d{3}\ncalled positive: (True|False)\n",
}


@pytest.mark.slow
def test_code_on_a_card_works_as_printed_beside_nothing_but_the_hub_directory_or_the_model(runs, tmp_path):
    cards, expected = {}, []
    for name, printed in PRINTED.items():
        of_hub, of_run = tmp_path / f"hub of {name}", tmp_path / f"run of {name}"
        for folder, target in ((of_hub / "hub", runs / "hub"), (of_run / "model", runs / name / "model")):
            folder.parent.mkdir()
            folder.symlink_to(target)
        cards[of_hub] = read_card(runs / name).text
        args = Arguments.read(runs / name / "args.json").model_copy(update={"hub_model_id": None})
        sample = Sample.read(runs / name / "samples.json")
        cards[of_run] = card.make_card(runs / name / "model", args, results_of_run(runs / name), sample)
        assert "Run this code in the folder that contains the hub directory, or give" in cards[of_hub]
        assert "Run this code in the run folder, or give" in cards[of_run]
        expected += [printed] * 2
    for pattern, printed in zip(expected, run_codes(cards), strict=True):
        assert re.match(pattern, printed)


def test_run_that_was_not_pushed_gets_the_card_of_its_name_when_it_is(runs, sample_root, tmp_path):
    run_dir = tmp_path / "run"
    run_main(run_mae_pretrain, run_dir, *TINY_VIT, *QUICK, f"--data_dir={sample_root}")
    assert 'from_pretrained("model")' in read_card(run_dir).text
    options = {"hub_dir": tmp_path / "hub", "model_id": "my-lab/late", "message": "", "tag": "v1"}
    files = [path for path in run_dir.rglob("*.*") if path.suffix != ".log" and ".claims" not in path.parts]
    before = {path: path.read_bytes() for path in files}
    commit = push_folder(run_dir, **options)
    assert {path: path.read_bytes() for path in files} == before
    pushed = local_hub.repository_dir(tmp_path / "hub", "my-lab/late") / "snapshots" / commit
    assert read_card(pushed).text.startswith("\n# my-lab/late\n")
    code = 'from_pretrained("my-lab/late", cache_dir="hub", local_files_only=True)'
    assert code in read_card(pushed).text
    assert push_folder(run_dir / "model", **options) == commit
    missing = {"samples.json": "samples.json: found no", "results.json": "expected a finished run"}
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
    command = shlex.split(str(error.value).partition("repeat it with ")[2])
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


def make_card(*, task: str = "pleural_effusion", config: dict | None = None, **changes) -> str:
    args = {
        "dataset_config_name": "pleural_effusion",
        "hub_dir": None,
        "data_dir": Path("/mnt/patients of 2020/MIMIC-CXR JPG"),
        "other_data_dirs": [],
        "model_name_or_path": "facebook/vit-mae-base",
        "model_revision": "main",
        "labeler": "chexpert",
        "uncertain": "exclude",
        "mask_ratio": 0.5,
        "seed": 10000032,
    } | changes
    with mock.patch.object(card, "is_mimic", lambda folder: "MIMIC" in folder.name or is_mimic(folder)):
        origin = card.describe_origin(argparse.Namespace(**args))
    args["hub_dir"] = args["hub_dir"] and str(args["hub_dir"])  # as args.json has it
    training = Training(task=task, steps=7, images_per_step=32, versions={"torch": "2.14"})
    sample = Sample(num_images=1000, seed=0, sha256="0" * 64, dicom_ids=[])
    with tempfile.TemporaryDirectory() as model_dir:
        write_json(Path(model_dir) / "config.json", config or {})
        return card.make_card(Path(model_dir), arguments(**args, origin=origin), training, sample)


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
    text = make_card(model_revision="v2")
    assert "the model `facebook/vit-mae-base`, revision `v2`, shared by `facebook`: a masked auto" in text
    assert "Start: a model in a folder named `model`; it is not known" in make_card(
        model_name_or_path="/runs/mae/model"
    )
    commit = read_results(runs / "mae")["hub_commit"]
    result = f"Result: the model `my-lab/mae`, revision `{commit}`, shared by `my-lab`."
    assert result in read_card(runs / "vit").text


def test_card_of_a_pretraining_says_which_labels_chose_its_images():
    text = make_card(task="mae_pretraining")
    assert "| images of the task | `pleural_effusion`: 1 if Pleural Effusion is positive" in text
    assert "not trained on" in text and "| labeler | chexpert |" in text


def test_card_of_credentialed_data_alone_has_its_license_and_terms_and_none_has_a_path_of_the_machine():
    text = make_card()
    data = ModelCard(text).data
    assert (data.license, data.datasets) == ("other", ["mimic-cxr-jpg"])
    assert data.license_name.startswith("physionet")
    assert data.license_link.startswith("https://physionet.org/")
    assert data.base_model == "facebook/vit-mae-base"
    other = make_card(data_dir=Path("/mnt/nih-cxr"), model_name_or_path="/home/someone/runs/mae/model")
    assert ModelCard(other).data.license == "other" and "physionet-credentialed" not in other
    assert "The terms of `nih-cxr` also apply" in other
    assert ModelCard(other).data.base_model is None and "/home" not in other
    assert "data-use agreement" in text and "/mnt" not in text
    assert "1 if Pleural Effusion is positive" in text and "| labeler | chexpert |" in text
    assert "| uncertain labels | their studies are left out |" in text


def test_license_and_terms_are_those_of_all_trainings():
    stage = {"task": "mae_pretraining", "is_synthetic": False, "num_images": 9, "sha256": "0" * 64}
    stage |= {"num_epochs": 1.0, "base_model": None, "base_model_revision": None}
    terms = {"chexpert": "The terms of `chexpert` also apply", "mimic-cxr-jpg": "data-use agreement"}
    for dataset, said in terms.items():
        text = make_card(
            data_dir=Path("/mnt/nih-cxr"), config={"training_history": [{**stage, "dataset": dataset}]}
        )
        data = ModelCard(text).data
        assert data.datasets == [dataset, "nih-cxr"] and data.license == "other"
        assert (data.license_name is None) == (dataset == "chexpert")
        assert "The terms of `nih-cxr` also apply" in text and "All data come from a few sources" in text
        assert said in text


@pytest.mark.parametrize(
    ("source", "said"),
    [("MIMIC-CXR-JPG", "data-use agreement"), ("NIH ChestX-ray14", "The terms of `nih-chestx-ray14` also")],
)
def test_terms_are_also_those_of_the_collection_that_the_images_come_from(source, said, tmp_path):
    rows = manifest_rows(4)
    own = make_card(data_dir=write_manifest(tmp_path, rows, name="mine", license="own", derived_from=source))
    stage = {"task": "mae_pretraining", "is_synthetic": False, "num_images": 9, "sha256": "0" * 64}
    stage |= {"num_epochs": 1.0, "base_model": None, "base_model_revision": None, "dataset": "mine"}
    history = [stage | {"derived_from": [card.dataset_id(source)]}]
    before = make_card(data_dir=Path("/mnt/nih-cxr"), config={"training_history": history})
    for text in (own, before):
        name = ModelCard(text).data.license_name
        assert name.startswith("physionet") if source == "MIMIC-CXR-JPG" else name is None
        assert said in text and "The terms of `mine` also apply" in text
    assert "All data come from one source" in own


def test_mimic_has_its_name_and_terms_in_any_folder(tmp_path):
    for number, labeler in enumerate(LABELERS):
        (tmp_path / f"mimic-cxr-2.0.0-{labeler}.csv").write_text(f"{number}", encoding="utf-8")
    text = make_card(data_dir=tmp_path)
    assert ModelCard(text).data.datasets == ["mimic-cxr-jpg"] and "data-use agreement" in text
    assert "| labeler | chexpert |" in text


def test_card_of_several_collections_names_the_terms_of_each_and_no_layout():
    folders = {"data_dir": Path("/mnt/mimic-cxr-jpg"), "other_data_dirs": [Path("/mnt/nih-cxr")]}
    text = make_card(task="mae_pretraining", **folders)
    assert "The images of several collections together: `mimic-cxr-jpg`, `nih-cxr`." in text
    assert "The terms of `nih-cxr` also apply" in text and "data-use agreement" in text
    assert "| labels | from each collection's own table |" in text
    assert "in the layout of" not in text and "one source" not in text


def test_labels_of_another_collection_are_not_said_to_be_of_a_labeler_of_mimic(runs, tmp_path):
    nih = make_card(data_dir=Path("/mnt/nih-cxr"))
    assert "from the collection's own table, in the layout of MIMIC-CXR-JPG" in nih
    brought = tmp_path / "nih-like-mimic-cxr"
    brought.mkdir()
    for labeler in LABELERS:
        (brought / f"mimic-cxr-2.0.0-{labeler}.csv").write_text("subject_id", encoding="utf-8")
    drawn = [read_card(runs / name).text for name in ("vit", "mae")]
    for text in (nih, make_card(data_dir=brought), *drawn):
        assert not re.search("negbio|chexpert|labeler", text, flags=re.IGNORECASE)
    assert all("| labels | drawn with the images |" in text for text in drawn)


def test_card_names_the_network_its_input_and_the_chosen_epoch(runs):
    vit, mae, results = read_card(runs / "vit").text, read_card(runs / "mae").text, read_results(runs / "vit")
    network = "ViT of depth 2 and width 32, 2 heads, patches of 8 by 8 pixels"
    assert f"| architecture | {network} |" in vit and f"{network}; decoder of depth 1 and width 32 |" in mae
    weights = load_file(runs / "vit" / "model" / "model.safetensors").values()
    assert f"| parameters | {sum(one.numel() for one in weights):,}, with the head |" in vit
    assert "| input | one image of 32 × 32 pixels;" in vit  # noqa: RUF001
    chosen = f"{results['best_epoch']} of 2, which had the highest AUROC on validation"
    assert f"| chosen epoch | {chosen} |" in vit
    assert "| chosen epoch | the last of 2 |" in mae
    threshold = results["validation"]["at_chosen_threshold"]["threshold"]
    assert f"| decision threshold | {threshold:.3f} (`decision_threshold` in `config.json`)" in vit
    for epoch_of, text in (("a checkpoint", make_card()), ("a pretraining", mae)):
        assert "decision threshold |" not in text, epoch_of


@pytest.mark.parametrize(
    ("equalized", "said"),
    [
        (True, "images were equalised |"),
        (False, "images were not equalised |"),
        (None, "it is not recorded whether"),
    ],
)
def test_card_says_whether_histograms_were_equalised(equalized, said):
    assert said in make_card(config={"equalized": equalized})


def test_card_says_which_pretraining_of_ours_came_before_and_that_its_images_are_the_same(runs):
    mae, vit = read_card(runs / "mae").text, read_card(runs / "vit").text
    number = read_results(runs / "mae")["num_train_images"]
    assert "1. Random weights: the model was not pretrained.\n2. The training that this card" in mae
    assert "1. Random weights.\n2. Pretraining as a masked autoencoder (`run_mae_pretrain.py`" in vit
    assert (
        f"in the code named below): {number:,} training images of `synthetic-radiographs`, 2 epochs." in vit
    )
    assert f"describes. Its {number:,} images are the same as those of step 2.\n" in vit


@pytest.mark.parametrize("place", ["beside its run", "elsewhere"])
def test_card_counts_the_images_of_a_pretraining_on_fewer_images(place, runs, sample_root, tmp_path):
    flags = [*QUICK, f"--data_dir={sample_root}"]
    run_main(run_mae_pretrain, tmp_path / "mae", *TINY_VIT, *flags, "--max_train_samples=16")
    model = tmp_path / "mae" / "model"
    if place == "elsewhere":
        model = model.rename(tmp_path / "elsewhere")
    run_main(run_classification, tmp_path / "vit", *flags, f"--model_name_or_path={model}")
    text, number = read_card(tmp_path / "vit").text, read_results(tmp_path / "vit")["num_train_images"]
    assert "16 training images of `synthetic-radiographs`, 2 epochs.\n" in text
    if place == "elsewhere":
        assert f"It is not known how many of its {number} images were also used in step 2." in text
    else:
        assert f"Of its {number} images, 16 were also used in step 2." in text
    assert str(tmp_path) not in text


def test_card_says_of_a_sample_that_the_pretraining_had_all_of_it(runs, sample_root, tmp_path):
    flags = [*QUICK, f"--data_dir={sample_root}", f"--hub_dir={runs / 'hub'}", "--max_train_samples=16"]
    run_main(run_classification, tmp_path / "vit", *flags, "--model_name_or_path=my-lab/mae")
    assert "All of its 16 images were also used in step 2." in read_card(tmp_path / "vit").text


def test_card_has_the_address_of_the_code_without_credentials(monkeypatch):
    said = {"remote": "https://me:secret@github.com/lab/code.git", "describe": "abc-dirty"}
    monkeypatch.setattr(sources, "_git", lambda *words: said[words[0]])
    text = make_card()
    code = f"Code: https://github.com/lab/code.git, version {VERSION}, git commit `abc-dirty`, with changes"
    assert f"{code} that were not" in text
    assert "secret" not in text
    said |= {"remote": "/home/me/code", "describe": "abc"}
    monkeypatch.setattr(card, "VERSION", None)  # as in the folders of version 0.1
    text = make_card()
    assert "Code: git commit `abc`.\n" in text and "/home" not in text


def test_card_of_a_model_that_was_pretrained_on_credentialed_data_has_its_terms_too():
    stage = {"task": "mae_pretraining", "dataset": "mimic-cxr-jpg", "is_synthetic": False, "num_images": 5}
    stage |= {"sha256": "1" * 64, "num_epochs": 1.0, "base_model": None, "base_model_revision": None}
    last = stage | {"dataset": "nih-cxr", "sha256": "0" * 64, "base_model": "model"}
    text = make_card(data_dir=Path("/mnt/nih-cxr"), config={"training_history": [stage, last]})
    assert ModelCard(text).data.license_name.startswith("physionet") and "data-use agreement" in text
    assert "The terms of `nih-cxr` also apply" in text
    assert "in the code named below): 5 training images of `mimic-cxr-jpg`, 1 epoch.\n" in text


@pytest.mark.parametrize(
    ("hub_dir", "name"), [("/mnt/someone/hub", "hub"), ("hub", "hub"), ("..", "models"), (".", "models")]
)
def test_card_has_the_name_of_the_directory_of_models_and_not_its_path(hub_dir, name):
    text = make_card(hub_model_id="my-lab/vit", hub_dir=Path(hub_dir), model_name_or_path="/home/me/x/model")
    assert text.count(f'from_pretrained("my-lab/vit", cache_dir="{name}", local_files_only=True)') == 2
    assert not re.search("/mnt|/home|someone", text)
