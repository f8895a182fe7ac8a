"""How the rows of a report were trained: what is the same for all, and what the tables show."""

import pandas as pd
from cxr.run_folder.files import write_json
from cxr.study.how_trained import how_trained
from cxr.study.measuring import measure_tables
from cxr.study.results import gather_rows
from finished_runs import finish
from finished_runs import pretraining_results
from finished_runs import write_run

SETTINGS = {"num_train_epochs": 6, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.05}
MEASURED = {
    "image_size": 224,
    "num_parameters": 5_670_000,
    "mixed_precision": "no",
    "hardware": "2 x NVIDIA H100",
    "num_train_patients": 900,
}


def facts_of(folder) -> tuple:
    return how_trained(measure_tables(gather_rows([folder]), 20))


def test_what_is_the_same_for_all_is_said_once(tmp_path):
    for seed in (0, 1):
        flags = SETTINGS | {"ema_decay": 0.998, "label_smoothing": 0.1, "mixup": 0.0}
        write_run(tmp_path / str(seed), seed=seed, flags=flags, **MEASURED)
    common, differing = facts_of(tmp_path)
    assert differing == []
    expected = {
        "training images": "1,000",
        "training patients": "900",
        "positive training images": "500",
        "pretraining": "none",
        "parameters": "5.67 million",
        "image size": "224 x 224 pixels",
        "epochs": "6 epochs",
        "learning rate": "0.001",
        "schedule": "cosine, 10% of the steps warm-up",
        "images per step": "32",
        "other parts": "label smoothing 0.1, averaged weights (EMA) 0.998",
        "precision": "float32",
        "seeds": "0, 1",
        "test split": "200 images of 100 patients, 99 positive",
        "data": "synthetic (synthetic radiographs)",
        "label rule": "Finding vs No Finding, by negbio, uncertain counts as negative, frontal views",
        "commit": "0000000000",
        "hardware": "2 x NVIDIA H100",
        "training time": "2 s",
    }
    assert expected.items() <= common.items()


def test_flags_of_an_augmentation_are_said_only_where_it_is_used(tmp_path):
    flags = SETTINGS | {"randaugment": "rand-m6-mstd0.5-inc1", "crop_scale": [0.5, 1.0]}
    write_run(tmp_path / "a", flags=flags, **MEASURED, augmentation="mae")
    write_run(tmp_path / "b", flags=flags, **MEASURED, augmentation="classic")
    _, (table,) = facts_of(tmp_path)
    found = {row["augmentation"] for row in table}
    assert found == {"mae, rand-m6-mstd0.5-inc1, crop 0.5 to 1", "classic"} and "randaugment" not in table[0]


def test_what_differs_between_models_and_between_rows_stands_in_tables(tmp_path):
    large = {"model": "resnet-50", "num_parameters": 23_500_000}
    write_run(tmp_path / "a", flags=SETTINGS | {"max_grad_norm": 1.0}, **MEASURED)
    write_run(tmp_path / "b", flags=SETTINGS | {"num_train_epochs": 1}, **MEASURED, augmentation="classic")
    write_run(tmp_path / "c", flags=SETTINGS, **MEASURED | large)
    common, (of_models, of_rows) = facts_of(tmp_path)
    assert of_models == [
        {"model": "resnet-18, from scratch", "parameters": "5.67 million"},
        {"model": "resnet-50, from scratch", "parameters": "23.5 million"},
    ]
    assert list(of_rows[0]) == ["model", "augmentation", "epochs", "max_grad_norm"]
    shown = [(row["augmentation"], row["epochs"], row["max_grad_norm"]) for row in of_rows]
    assert shown == [
        ("none", "6 epochs", "1"),
        ("classic", "1 epoch", "none"),
        ("none", "6 epochs", "none"),
    ]
    assert not common.keys() & {*of_models[0], *of_rows[0]}


def test_a_pretraining_of_ours_is_described_without_a_path(tmp_path):
    before = pretraining_results(model="vit-mae-tiny", num_train_images=2000)
    finish(tmp_path / "mae", before, num_train_epochs=10, config_overrides="hidden_size=64,patch_size=4")
    write_run(tmp_path / "runs" / "vit", model=str(tmp_path / "mae" / "model"), pretrained=True)
    common, _ = facts_of(tmp_path / "runs")
    said = common["pretraining"]
    assert said == "here, as a masked autoencoder, on 2,000 images of synthetic, 10 epochs"
    assert common["configuration"] == "hidden_size=64, patch_size=4" and str(tmp_path) not in str(common)


def test_the_validation_split_is_counted_in_its_predictions(tmp_path):
    folder = write_run(tmp_path / "a")
    predictions = pd.read_csv(folder / "predictions_test.csv")
    predictions.to_csv(folder / "predictions_validation.csv", index=False)
    common, _ = facts_of(tmp_path)
    assert common["validation split"] == "200 images of 100 patients, 99 positive"


def test_runs_of_older_records_say_what_is_not_recorded(tmp_path):
    folder = write_run(tmp_path / "a")
    write_json(
        folder / "args.json",
        {
            "origin": {"git_commit": "a-dirty", "is_synthetic": False, "dataset": "nih"}
            | {"base_model": None, "base_model_revision": None}
        },
    )
    common, _ = facts_of(tmp_path)
    for name in (
        "image size",
        "parameters",
        "precision",
        "hardware",
        "training patients",
        "schedule",
        "epochs",
    ):
        assert common[name] == "not recorded"
    assert (common["commit"], common["data"]) == ("a with changes", "nih")
