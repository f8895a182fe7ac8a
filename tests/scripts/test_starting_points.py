"""From a published file through both trainings to a prediction, each at its own image size."""

import json

import convert_checkpoint
import published_files as files
import pytest
import run_classification
import run_mae_pretrain
import torch
from cxr.errors import UserError
from cxr.inference.classifier import load_classifier
from tiny_runs import QUICK
from tiny_runs import run_main
from transformers import AutoImageProcessor
from transformers import AutoModelForImageClassification

MEAN, STD = 0.5056, 0.252  # those of medical_mae


def convert(folder):
    tensors = files.encoder_tensors() | files.decoder_tensors()
    file = files.save_checkpoint(folder / "x.pth", tensors, datasets_names=["chexpert"])
    convert_checkpoint.main([str(file), str(folder / "mae"), *files.HEADS_FLAGS])
    return folder / "mae"


@pytest.fixture(scope="module")
def folders(sample_root, tmp_path_factory):
    """A converted file for 32 pixels, its further pretraining at 48, and its fine-tuning at 64."""
    folder = tmp_path_factory.mktemp("starting-points")
    flags = [f"--data_dir={sample_root}", *QUICK, "--max_train_steps=2"]
    start = convert(folder)
    for script, name, size in ((run_mae_pretrain, "pretrained", 48), (run_classification, "tuned", 64)):
        run_main(script, folder / name, *flags, f"--model_name_or_path={start}", f"--image_size={size}")
        start = folder / name / "model"
    return [folder / "mae", folder / "pretrained" / "model", folder / "tuned" / "model"]


@pytest.mark.slow
def test_mean_and_standard_deviation_of_the_file_are_kept_up_to_the_prediction(folders):
    for folder in folders:
        processor = AutoImageProcessor.from_pretrained(folder)
        assert list(processor.image_mean) == [MEAN] * 3 and list(processor.image_std) == [STD] * 3
    classifier = load_classifier(str(folders[-1]))
    images = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    expected = ((images.float() / 255 - MEAN) / STD).expand(-1, 3, -1, -1)
    torch.testing.assert_close(classifier.normalize(images), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_each_training_has_its_image_size_in_its_model_its_cache_and_plain_transformers(folders):
    for folder, size, of_cache in zip(folders, (32, 48, 64), (None, None, 73)):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["image_size"] == size and config.get("cache_image_size") == of_cache
        assert AutoImageProcessor.from_pretrained(folder).size["height"] == size
    results = [json.loads((one.parent / "results.json").read_text(encoding="utf-8")) for one in folders[1:]]
    assert [one["image_size"] for one in results] == [48, 64]
    said = (folders[2].parent / "train.log").read_text(encoding="utf-8")
    assert "Position embeddings interpolated from 6 x 6 to 8 x 8 patches" in said
    classifier, plain = load_classifier(str(folders[2])), AutoModelForImageClassification
    images = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        pixels = classifier.normalize(images)
        expected = plain.from_pretrained(folders[2]).eval()(pixel_values=pixels).logits
        torch.testing.assert_close(classifier.model(pixel_values=pixels).logits, expected)
    assert (classifier.image_size, classifier.shortest_side) == (64, 73)


@pytest.mark.parametrize("script", [run_mae_pretrain, run_classification], ids=lambda one: one.__name__)
def test_an_image_size_that_does_not_divide_into_patches_is_refused_before_images_are_read(
    script, tmp_path, sample_root
):
    flags = [f"--model_name_or_path={convert(tmp_path)}", "--image_size=50", f"--data_dir={sample_root}"]
    with pytest.raises(UserError, match="expected a multiple of patch_size=8, such as 48 or 56: change it"):
        run_main(script, tmp_path / "run", *flags)
