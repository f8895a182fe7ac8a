"""A pretraining with probes is the one without, also resumed; its warnings have their reasons."""

import json

import pytest
import run_mae_pretrain
import torch
from cxr.evaluation import probes
from cxr.models.scratch import new_mae
from cxr.training.pretraining_probe import doubts
from cxr.training.pretraining_probe import reconstruction_target
from cxr.training.pretraining_probe import seeing_all_patches
from equal_runs import assert_equal
from equal_runs import final_state
from manifest_roots import LABELS
from manifest_roots import draw_images
from manifest_roots import manifest_rows
from manifest_roots import write_manifest
from PIL import Image
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import run_main
from transformers import ViTMAEConfig

SHORT = ["--num_train_epochs=2", "--max_train_samples=40", "--learning_rate=1e-3"]
SHORT += ["--per_device_train_batch_size=8"]
PROBED = ("probe_auroc", "rankme")


@pytest.fixture(scope="module")
def runs(sample_root, tmp_path_factory):
    """The same run without probes, with them, and with them but stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("probed")
    flags = [*TINY_VIT, *SHORT, f"--data_dir={sample_root}"]
    run_main(run_mae_pretrain, folder / "plain", *flags)
    run_main(run_mae_pretrain, folder / "probed", *flags, "--probe_epochs=1")
    run_main(run_mae_pretrain, folder / "resumed", *flags, "--probe_epochs=1", "--checkpoints_total_limit=2")
    return folder


@pytest.mark.slow
def test_run_with_probes_equals_the_run_without_bit_for_bit(runs):
    plain, probed = read_epochs(runs / "plain"), read_epochs(runs / "probed")
    assert [{name: epoch[name] for name in epoch if name not in PROBED} for epoch in probed] == plain
    assert all(0 <= epoch["probe_auroc"] <= 1 and epoch["rankme"] >= 1 for epoch in probed)
    before, after = final_state(runs / "plain"), final_state(runs / "probed")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    widths = [Image.open(runs / name / "loss.png").size[0] for name in ("plain", "probed")]
    assert widths[1] > 2 * widths[0]


def test_a_pretraining_without_probes_prepares_none(sample_root, tmp_path, monkeypatch):
    monkeypatch.setattr(run_mae_pretrain, "PretrainingProbe", lambda *args: pytest.fail("prepared"))
    flags = [*TINY_VIT, *SHORT, "--max_train_steps=1", f"--data_dir={sample_root}"]
    assert run_main(run_mae_pretrain, tmp_path / "run", *flags)["steps"] == 1


def test_resumed_run_has_the_same_probes(runs, sample_root):
    folder = runs / "resumed"
    for name in ("results.json", "loss.png"):  # as if it had been killed in its second epoch
        (folder / name).unlink()
    last = folder / "checkpoints" / "step_10"
    last.rename(runs / "aside")
    flags = [*TINY_VIT, *SHORT, f"--data_dir={sample_root}", "--probe_epochs=1"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0], encoding="utf-8")
    run_main(
        run_mae_pretrain,
        folder,
        *flags,
        "--checkpoints_total_limit=2",
        "--resume_from_checkpoint=latest",
    )
    assert_equal(folder, runs / "probed")


def test_probe_is_due_after_every_n_epochs(sample_root, tmp_path):
    flags = [*TINY_VIT, *SHORT, f"--data_dir={sample_root}", "--probe_epochs=2", "--max_eval_samples=4"]
    run_main(run_mae_pretrain, tmp_path / "run", *flags)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert ["rankme" in json.loads(line) for line in lines] == [False, True]


def test_images_without_a_label_are_pretrained_on_and_not_probed(tmp_path, monkeypatch):
    rows, probed = manifest_rows(48), []
    for row in rows[::5]:
        row |= dict.fromkeys(LABELS, "")
    root, fit = write_manifest(tmp_path / "root", rows), probes.probe
    draw_images(root, [row | {"Edema": 0} for row in rows])

    def noting_labels(method, *, train, **others):
        probed.extend(train.labels)
        return fit(method, train=train, **others)

    monkeypatch.setattr(probes, "probe", noting_labels)
    flags = [*TINY_VIT, f"--data_dir={root}", "--probe_epochs=1", "--num_train_epochs=1"]
    run_main(run_mae_pretrain, tmp_path / "run", *flags, "--per_device_train_batch_size=8")
    sample = json.loads((tmp_path / "run" / "samples.json").read_text(encoding="utf-8"))
    assert sample["num_images"] == 24 and len(probed) == 19 and {*probed} == {0, 1}


def test_collection_without_labels_is_pretrained_on_and_has_no_auroc(tmp_path):
    rows = manifest_rows(48)
    root = write_manifest(tmp_path / "root", rows, labels=[])
    draw_images(root, rows)
    flags = [*TINY_VIT, f"--data_dir={root}", "--probe_epochs=1", "--num_train_epochs=1"]
    run_main(run_mae_pretrain, tmp_path / "run", *flags, "--per_device_train_batch_size=8")
    (epoch,) = read_epochs(tmp_path / "run")
    assert epoch["probe_auroc"] is None and epoch["rankme"] >= 1
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "the collection has no labels of findings" in card and "| uncertain labels | none |" in card


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return new_mae(config).eval()


def test_encoder_sees_all_patches_within_the_block_only(model):
    pixel_values, in_order = torch.randn(3, 3, 32, 32), torch.arange(16).expand(3, -1)
    with torch.no_grad(), seeing_all_patches(model) as encoded:
        model(pixel_values=pixel_values, noise=in_order)
    assert [tokens.shape for tokens in encoded] == [(3, 17, 16)]
    model(pixel_values=pixel_values, noise=in_order)
    assert model.config.mask_ratio == 0.75 and len(encoded) == 1


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_target_is_that_of_the_models_own_loss(norm_pix_loss, model):
    model.config.norm_pix_loss = norm_pix_loss
    pixel_values = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        outputs = model(pixel_values=pixel_values)
    target = reconstruction_target(model, pixel_values)
    by_patch = ((outputs.logits - target) ** 2).mean(-1)
    assert torch.equal((by_patch * outputs.mask).sum() / outputs.mask.sum(), outputs.loss)


@pytest.mark.parametrize(
    ("rankme", "eval_loss", "words"),
    [
        (7.0, 0.5, []),
        (2.3, 0.97, []),
        (1.1, 0.5, ["collapsed"]),
        (7.0, 0.995, ["not better"]),
        (1.1, 1.2, ["collapsed", "not better"]),
    ],
)
def test_warnings_name_collapsed_features_and_a_loss_of_a_constant(rankme, eval_loss, words):
    found = list(doubts(rankme, eval_loss=eval_loss, constant_loss=1.0))
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found))
