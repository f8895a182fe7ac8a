"""probe.py, end to end on the synthetic sample: tiny models, every number again by plain scikit-learn."""

import csv
import json

import numpy as np
import probe
import pytest
from cxr.data.subsets import draw_sample
from cxr.evaluation import findings
from cxr.evaluation import probes
from cxr.evaluation.intervals import NUM_RESAMPLES
from cxr.evaluation.intervals import patient_weights
from cxr.models import features
from cxr.run_folder.probe_record import ProbeResults
from PIL import Image
from refused import refused
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

OVERRIDES = "--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,patch_size=8"
TINY = ["vit-mae-tiny", "--image_size=32", OVERRIDES]
SIZES = ["--train_sizes", "20", "100000", "all"]


@pytest.fixture(scope="module")
def probed(sample_root, tmp_path_factory):
    """The folder of a finished probe, and the arrays on which it was measured."""
    folder = tmp_path_factory.mktemp("probe")
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        original = probe.cached_features

        def remembered(encoder, images, **options):
            found = original(encoder, images, **options)
            seen[options["what"]] = found, images
            return found

        patch.setattr(probe, "cached_features", remembered)
        flags = [f"--data_dir={sample_root}", f"--cache_dir={folder / 'cache'}", "--device=cpu"]
        probe.main(["vit-mae-tiny", "resnet-18", *TINY[1:], *SIZES, *flags, f"--output_dir={folder / 'out'}"])
    return folder, seen


def read(folder) -> ProbeResults:
    return ProbeResults.read(folder / "out" / "probe.json")


def test_folder_has_the_record_the_table_and_the_figures(probed):
    folder, _ = probed
    assert {one.name for one in (folder / "out").iterdir()} == {
        "probe.json",
        "probe.csv",
        "probe.png",
        "probe.svg",
    }
    assert Image.open(folder / "out" / "probe.png").size[0] > 500
    with (folder / "out" / "probe.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    results = read(folder)
    of_json = [one for model in results.models for point in model.points for one in point.seeds]
    assert [float(row["test_auroc"]) for row in rows] == [one.test_auroc for one in of_json]
    assert len(rows) == 2 * 2 * (3 + 1)  # models, methods, three samples of 20 and one of all
    assert results.is_synthetic and results.task == "finding"


def test_sizes_above_the_number_of_images_are_left_out(probed):
    folder, _ = probed
    results = read(folder)
    for model in results.models:
        sizes = [point.num_train_images for point in model.points if point.method == "knn"]
        assert sizes == [20, results.num_images["train"]]


def test_each_number_is_that_of_a_scikit_learn_pipeline_on_the_sample_of_a_study(probed):
    folder, seen = probed
    model = read(folder).models[0]
    (x, train), (_, validation), (x_test, test) = (
        seen[f"vit-mae-tiny, {split}"] for split in ("train", "validation", "test")
    )
    point = next(one for one in model.points if one.method == "linear" and one.num_train_images == 20)
    aurocs, resampled = [], []
    weights = patient_weights(test["subject_id"], num_resamples=NUM_RESAMPLES, seed=0)
    for one in point.seeds:
        chosen = draw_sample(train["subject_id"], train["label"], num_samples=20, seed=one.seed)
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=one.settings[0], max_iter=1000))
        pipeline.fit(x[chosen].astype("float64"), train.labels[chosen])
        scores = pipeline.decision_function(x_test)
        aurocs.append(roc_auc_score(test.labels, scores))
        assert one.test_auroc == pytest.approx(aurocs[-1], abs=1e-9)
        resampled.append(probes.resampled_areas(test.labels, scores, ("a", "b"), weights))
    assert [one.seed for one in point.seeds] == [0, 1, 2]
    assert point.test_auroc == pytest.approx(np.mean(aurocs), abs=1e-9)
    expected = np.nanquantile(np.mean(resampled, axis=0), [0.025, 0.975])
    assert point.interval == pytest.approx(expected.tolist(), abs=1e-9)
    assert model.rankme == pytest.approx(probes.rankme(x)) and model.width == x.shape[1] == 16
    assert len(validation) == read(folder).num_images["validation"]


def test_second_call_computes_no_features_and_gives_the_same_numbers(probed, sample_root, monkeypatch):
    folder, _ = probed
    monkeypatch.setattr(features, "compute_features", lambda *args, **options: pytest.fail("computed"))
    flags = [f"--data_dir={sample_root}", f"--cache_dir={folder / 'cache'}", "--device=cpu"]
    probe.main([*TINY, "--train_sizes=20", *flags, f"--output_dir={folder / 'again'}"])
    again = ProbeResults.read(folder / "again" / "probe.json").models[0]
    before = read(folder).models[0]
    assert again.sha256 == before.sha256
    assert again.points == [one for one in before.points if one.num_train_images == 20]


@pytest.mark.parametrize("min_labels", [1, 10])
def test_findings_have_a_probe_each_and_a_mean_over_those_that_count(
    min_labels, probed, sample_root, monkeypatch
):
    monkeypatch.setattr(findings, "MIN_LABELS", min_labels)
    folder, _ = probed
    output_dir = folder / f"findings {min_labels}"
    flags = [f"--data_dir={sample_root}", f"--cache_dir={folder / 'cache'}", "--device=cpu"]
    flags += ["--dataset_config_name=findings", "--uncertain=exclude", "--train_sizes=all"]
    probe.main([*TINY, *flags, f"--output_dir={output_dir}"])
    content = json.loads((output_dir / "probe.json").read_text(encoding="utf-8"))
    assert len(content["label_names"]) == 14
    for point in content["models"][0]["points"]:
        (one,) = point["seeds"]
        assert len(one["settings"]) == 14
        if min_labels == 1:
            low, high = point["interval"]
            assert len(content["left_out"]) < 14 and low < point["test_auroc"] < high
        else:  # the sample is small: no finding counts
            assert len(content["left_out"]) == 14 and point["test_auroc"] is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train_sizes=100000"], "name a smaller number, or all"),
        (["--config_overrides=depth=3"], "found no such key"),
        (["--device=cuda:99"], "found no such device"),
    ],
)
def test_mistakes_are_refused_in_one_line(flags, said, probed, sample_root, capsys):
    folder, _ = probed
    data = [f"--data_dir={sample_root}", f"--cache_dir={folder / 'cache'}", "--device=cpu"]
    message = refused(probe.main, [*TINY, *data, *flags, f"--output_dir={folder / 'no'}"], capsys)
    assert said in message and not (folder / "no").exists()


def test_overrides_without_a_vit_with_random_weights_are_warned_about(monkeypatch, caplog):
    monkeypatch.setattr(probe, "load_encoder", lambda name, **options: name)
    for models, warns in ((["vit-mae-tiny", "resnet-18"], False), (["resnet-18", "timm/test_vit"], True)):
        caplog.clear()
        probe.load_encoders(probe.parse_args([*models, OVERRIDES]))
        assert ("--config_overrides has no effect" in caplog.text) == warns


def test_folder_that_cannot_be_made_is_refused_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(probe, "load_encoders", pytest.fail)
    message = refused(probe.main, [*TINY, f"--output_dir={tmp_path / 'file' / 'probe'}"], capsys)
    assert "cannot be created (" in message and "name another folder" in message
