"""MAE pretraining, end to end on a small synthetic sample."""

import json
import shutil
from types import SimpleNamespace

import pytest
import run_mae_pretrain
import torch
from cxr.data import transforms
from cxr.models.architectures import VIT_MAE_CONFIGS
from cxr.models.architectures import describe_architecture
from cxr.models.configs import make_config
from cxr.models.scratch import new_mae
from PIL import Image
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import run_main
from transformers import AutoImageProcessor
from transformers import ViTMAEForPreTraining


@pytest.fixture(scope="module")
def finished_run(sample_root, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("mae") / "run"
    push = ["--push_to_hub", "--hub_model_id=my-lab/mae", f"--hub_dir={output_dir.parent / 'hub'}"]
    results = run_main(run_mae_pretrain, output_dir, *TINY_VIT, *QUICK, *push, f"--data_dir={sample_root}")
    return output_dir, results


def test_results_have_the_losses_the_speed_and_what_was_trained_on(finished_run):
    output_dir, results = finished_run
    last = read_epochs(output_dir)[-1]
    assert results["train_loss"] == last["train_loss"]
    assert results["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-5)  # of the saved model
    assert results["images_per_second"] > 0
    assert results["steps"] == 2 * (results["num_train_images"] // 8)
    assert results["seed"] == 0
    assert {"torch", "transformers", "datasets", "accelerate"} <= set(results["versions"])
    sample = json.loads((output_dir / "samples.json").read_text(encoding="utf-8"))
    assert len(sample["dicom_ids"]) == results["num_train_images"]


def test_run_folder_has_every_record_and_picture(finished_run):
    output_dir, _ = finished_run
    names = {path.name for path in output_dir.iterdir()} - {".lock", ".claims"}
    expected = {
        "README.md",
        "args.json",
        "metrics.jsonl",
        "results.json",
        "samples.json",
        "train.log",
        "model",
        "checkpoints",
    }
    assert expected | {"loss.png", "reconstructions.png"} == names
    for picture in ("loss.png", "reconstructions.png"):
        assert Image.open(output_dir / picture).size[0] > 300


def test_model_folder_loads_in_plain_transformers_and_repeats_the_validation_loss(finished_run, sample_root):
    output_dir, results = finished_run
    model, info = ViTMAEForPreTraining.from_pretrained(output_dir / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoImageProcessor.from_pretrained(output_dir / "model")
    again = run_main(
        run_mae_pretrain,
        output_dir.parent / "again",
        f"--model_name_or_path={output_dir / 'model'}",
        f"--data_dir={sample_root}",
        "--learning_rate=1e-30",
        "--max_train_steps=1",
        "--per_device_train_batch_size=8",
    )
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    assert processor.size["height"] == model.config.image_size == 32


def test_pushed_autoencoder_loads_by_name_and_by_commit_without_a_network(finished_run):
    output_dir, results = finished_run
    expected = ViTMAEForPreTraining.from_pretrained(output_dir / "model").state_dict()
    for revision in ("main", results["hub_commit"]):
        model = ViTMAEForPreTraining.from_pretrained(
            "my-lab/mae", cache_dir=output_dir.parent / "hub", local_files_only=True, revision=revision
        )
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_reconstruction_loss_is_the_models_own_and_the_mean_of_those_of_the_images(finished_run):
    output_dir, _ = finished_run
    model = ViTMAEForPreTraining.from_pretrained(output_dir / "model")
    pixel_values = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for norm_pix_loss in (True, False):
        model.config.norm_pix_loss = norm_pix_loss
        outputs = model(pixel_values=pixel_values)
        by_image = run_mae_pretrain.reconstruction_loss(model, pixel_values, outputs, by_image=True)
        assert by_image.shape == (5,)
        assert torch.equal(run_mae_pretrain.reconstruction_loss(model, pixel_values, outputs), outputs.loss)
        assert by_image.mean().item() == pytest.approx(outputs.loss.item(), rel=1e-5)


def test_training_learns_to_reconstruct(sample_root, tmp_path):
    flags = [
        "--num_train_epochs=15",
        "--per_device_train_batch_size=8",
        "--learning_rate=3e-3",
        "--no-norm_pix_loss",
    ]
    run_main(run_mae_pretrain, tmp_path / "run", *TINY_VIT, *flags, f"--data_dir={sample_root}")
    losses = [epoch["eval_loss"] for epoch in read_epochs(tmp_path / "run")]
    assert losses[-1] < 0.85 * losses[0]


def test_mask_that_hides_nothing_is_refused(sample_root, tmp_path):
    with pytest.raises(ValueError, match=r"hides 0 of 16 patches; expected some hidden and some visible"):
        run_main(run_mae_pretrain, tmp_path / "run", *TINY_VIT, "--mask_ratio=0", f"--data_dir={sample_root}")


def test_full_output_folder_is_refused_and_left_as_it_was(finished_run, sample_root):
    output_dir, _ = finished_run
    kept = [path for path in output_dir.iterdir() if path.name not in (".lock", ".claims")]
    files = [*kept, *(path for folder in kept for path in folder.rglob("*"))]
    before = [path.stat().st_mtime_ns for path in files]
    with pytest.raises(ValueError, match="has a finished run, expected a new or empty folder"):
        run_main(run_mae_pretrain, output_dir, *TINY_VIT, *QUICK, f"--data_dir={sample_root}")
    assert [path.stat().st_mtime_ns for path in files] == before
    assert {*kept, output_dir / ".lock", output_dir / ".claims"} == set(output_dir.iterdir())


def test_tensorboard_gets_the_losses(sample_root, tmp_path):
    flags = ["--with_tracking", "--report_to=tensorboard", "--max_train_steps=2", "--logging_steps=1"]
    run_main(run_mae_pretrain, tmp_path / "run", *TINY_VIT, *QUICK, *flags, f"--data_dir={sample_root}")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstructions_are_what_the_model_predicts_and_say_where_they_use_the_true_mean(
    finished_run, norm_pix_loss
):
    model = ViTMAEForPreTraining.from_pretrained(finished_run[0] / "model").eval()
    model.config.norm_pix_loss = norm_pix_loss
    generator = torch.Generator().manual_seed(0)
    num_patches = (model.config.image_size // model.config.patch_size) ** 2
    side = model.config.image_size
    batch = {
        "image": torch.randint(0, 256, (3, 1, side, side), dtype=torch.uint8, generator=generator),
        "noise": torch.rand(3, num_patches, generator=generator),
    }
    normalize = transforms.Normalizer([0.5] * 3, [0.25] * 3, torch.device("cpu"))
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    run = SimpleNamespace(eval_loader=[batch], normalize=normalize, accelerator=accelerator)
    original, seen, (name, drawn) = run_mae_pretrain.reconstruct(run, model).items()
    assert ("true mean" in name) == norm_pix_loss
    outputs = model(pixel_values=normalize(batch["image"]), noise=batch["noise"])
    hidden = model.unpatchify(outputs.mask[..., None].repeat(1, 1, outputs.logits.shape[-1]))[:, 0].bool()
    assert torch.equal(drawn[~hidden], original[1][~hidden]) and torch.equal(seen[1][~hidden], drawn[~hidden])
    predicted = normalize.invert(model.unpatchify(outputs.logits))
    assert torch.allclose(drawn[hidden], predicted[hidden], atol=1e-6) == (not norm_pix_loss)


@pytest.mark.slow
def test_several_collections_are_named_in_every_record_and_a_resumed_run_is_the_same(sample_root, tmp_path):
    roots = [shutil.copytree(sample_root, tmp_path / name) for name in ("nih-cxr", "padchest")]
    flags = [*TINY_VIT, *QUICK, "--mask_ratio=0.9", "--data_dir", *map(str, roots)]
    results = run_main(run_mae_pretrain, tmp_path / "whole", *flags)
    assert list(results["collections"]) == ["nih-cxr", "padchest"]
    assert sum(results["collections"].values()) == results["num_train_images"]
    sample = json.loads((tmp_path / "whole" / "samples.json").read_text(encoding="utf-8"))
    assert sample["collections"] == results["collections"]
    assert {name.partition("/")[0] for name in sample["dicom_ids"]} == {"nih-cxr", "padchest"}
    config = json.loads((tmp_path / "whole" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["training_history"][0]["dataset"] == "nih-cxr, padchest" and config["mask_ratio"] == 0.9
    card = (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    assert "datasets:\n- nih-cxr\n- padchest\n" in card

    run_main(run_mae_pretrain, tmp_path / "whole", *flags, "--resume_from_checkpoint=latest")
    again = json.loads((tmp_path / "whole" / "results.json").read_text(encoding="utf-8"))
    assert again["eval_loss"] == results["eval_loss"] and again["collections"] == results["collections"]


def test_decoder_of_medical_mae_has_two_layers_of_512():
    model = new_mae(make_config("vit-mae-small-medical", overrides=None, image_size=32))
    assert (model.config.hidden_size, model.config.num_attention_heads) == (384, 6)
    layers = model.decoder.decoder_layers
    assert (len(layers), model.config.decoder_hidden_size, model.config.decoder_num_attention_heads) == (
        2,
        512,
        16,
    )
    said = describe_architecture(VIT_MAE_CONFIGS["vit-mae-small-medical"])
    assert said.startswith("ViT-Small of depth 12") and said.endswith("decoder of depth 2 and width 512")
