"""The version of the pixels, which names their cache, goes up with each change of the pixels."""

import hashlib

import numpy as np
from dicom_files import write_dicom

from mimic_cxr_dataset.dicom import read_dicom
from mimic_cxr_dataset.gray_levels import equalize
from mimic_cxr_dataset.radiographs import PIXELS_VERSION

# Of the pixels before they are compressed, which depend on no version of libjpeg.
EXPECTED = {1: "682e9abbf1a3de27"}


def test_changed_pixels_have_a_new_version(tmp_path):
    rows, columns = np.mgrid[:80, :60]
    words = (rows * columns + 7 * rows).astype(np.uint16) & 0xFFF
    digest = hashlib.sha256(equalize((words >> 4).astype(np.uint8)).tobytes())
    for tags in (
        {},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 1500, "WindowWidth": 900},
        {"RescaleSlope": 2, "RescaleIntercept": -100},
        {"PixelPaddingValue": int(words.min())},
    ):
        for equalizes in (False, True):
            pixels, *_ = read_dicom(write_dicom(tmp_path / "x.dcm", words, **tags), equalizes=equalizes)
            digest.update(pixels.tobytes())
    said = "other pixels than before: raise PIXELS_VERSION, and add what it gives now to EXPECTED"
    assert EXPECTED.get(PIXELS_VERSION) == digest.hexdigest()[:16], said
