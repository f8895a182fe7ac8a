"""Whether training images were equalised: said by collection.json or seen, logged, kept with the model."""

import json
import logging
import shutil

import numpy as np
import pytest
import run_classification
import run_mae_pretrain
from cxr.data.images import LabelledImages
from cxr.data.images import are_equalized
from cxr.data.images import images_in_memory
from cxr.errors import UserError
from picture_files import encode
from PIL import Image
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

from mimic_cxr_dataset.gray_levels import equalize


def draw(number: int, *, border: bool) -> np.ndarray:
    """A soft picture like no other: dark or bright, of more or less contrast, perhaps with a black border."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:320, :256] / 256
    waves = sum(
        np.sin(rows * across + columns * down + phase) for across, down, phase in rng.uniform(-9, 9, (5, 3))
    )
    levels = (waves - waves.min()) / np.ptp(waves)
    gray = 20 + rng.uniform(100, 235) * levels ** rng.choice([0.4, 2.5])
    if border:
        gray[:40] = gray[:, -50:] = 0
    return gray.astype(np.uint8)


def make_images(*, equalized: bool, side: int, border: bool = False, count: int = 12) -> LabelledImages:
    """Images as the cache has them."""
    pictures = (draw(number, border=border) for number in range(count))
    drawn = [Image.fromarray(equalize(gray) if equalized else gray) for gray in pictures]
    shrunk = [image.resize((side, side * 5 // 4), Image.Resampling.LANCZOS) for image in drawn]
    return images_in_memory([encode(image) for image in shrunk])


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("side", [32, 64, 256])
@pytest.mark.parametrize("equalized", [False, True])
def test_images_tell_whether_they_were_equalised(equalized, side, border, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = make_images(equalized=equalized, side=side, border=border)
    for data_dir in (tmp_path, None):  # None is the sample, which has no such file
        assert are_equalized(images, data_dir) is equalized
    words = "Images: equalised" if equalized else "Images: not equalised"
    assert "two kinds" not in caplog.text
    assert caplog.text.count(f"{words}: the mean distance of 12 histograms from uniform is 0.") == 2


def test_at_most_200_images_are_looked_at_and_a_single_one_is_enough(caplog):
    caplog.set_level(logging.INFO)
    for count, looked_at in ((1, 1), (300, 200)):
        one = make_images(equalized=True, side=32, count=1)
        assert are_equalized(one.select([0] * count), None)
        assert f"the mean distance of {looked_at} histograms" in caplog.text


def test_a_mixture_of_both_kinds_is_a_warning(tmp_path, caplog):
    drawn = [draw(number, border=False) for number in range(12)]
    both = [equalize(gray) if number % 3 == 0 else gray for number, gray in enumerate(drawn)]
    are_equalized(images_in_memory([encode(Image.fromarray(gray)) for gray in both]), tmp_path)
    assert "Images of two kinds: 33% of 12 seem to be equalised, the others not" in caplog.text


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_what_collection_json_says_goes_before_what_is_seen(said, seen, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "collection.json").write_text(json.dumps({"equalised": said}), encoding="utf-8")
    assert are_equalized(make_images(equalized=seen, side=64), tmp_path) is said
    words = "equalised" if said else "not equalised"
    assert f"Images: {words}, according to collection.json" in caplog.text


def test_garbage_in_collection_json_is_the_users_to_mend(tmp_path):
    (tmp_path / "collection.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"collection\.json: invalid JSON.* correct it") as error:
        are_equalized(make_images(equalized=False, side=64), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("script", [run_classification, run_mae_pretrain])
def test_model_of_a_run_keeps_it_in_config_json_and_the_log_says_why(script, sample_root, tmp_path):
    root = shutil.copytree(sample_root, tmp_path / "root")
    reasons = {
        None: (False, "not equalised: the mean distance of"),
        True: (True, "equalised, according to collection.json"),
    }
    for said, (expected, logged) in reasons.items():
        if said is not None:
            (root / "collection.json").write_text(json.dumps({"equalized": said}), encoding="utf-8")
        output_dir = tmp_path / str(said)
        run_main(script, output_dir, *TINY_VIT, *QUICK, "--max_train_steps=1", f"--data_dir={root}")
        config = json.loads((output_dir / "model" / "config.json").read_text(encoding="utf-8"))
        assert config["equalized"] is expected
        assert f"Images: {logged}" in (output_dir / "train.log").read_text(encoding="utf-8")
