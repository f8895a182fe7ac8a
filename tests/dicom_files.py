"""Writes small DICOM files of radiographs for tests."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.uid import generate_uid


def make_header(path: Path, *, syntax: str = ExplicitVRLittleEndian, valid: bool = True, **tags) -> Path:
    """Writes a file without an image; `valid=False` allows values that the standard forbids."""
    mode = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = mode if valid else pydicom.config.IGNORE
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.SOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    pydicom.config.settings.writing_validation_mode = mode
    return path


def write_dicom(
    path: Path, values: np.ndarray, *, view_meaning: str = "", voi_table: list[int] | None = None, **tags
) -> Path:
    """Writes `values` (H, W), (frames, H, W) or (H, W, 3), uint8 or uint16 of 12 bits; `tags` override."""
    is_color = values.ndim == 3 and values.shape[-1] == 3
    rows, columns = values.shape[:2] if is_color else values.shape[-2:]
    bits = 8 * values.itemsize
    pixels = values.tobytes()
    header = {
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3 if is_color else 1,
        "PhotometricInterpretation": "RGB" if is_color else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": min(bits, 12),
        "HighBit": min(bits, 12) - 1,
        "PixelRepresentation": 0,
        "PixelData": encapsulate([pixels]) if "syntax" in tags else pixels + b"\0" * (len(pixels) % 2),
    }
    if is_color:
        header["PlanarConfiguration"] = 0
    if view_meaning:
        code = Dataset()
        code.CodeMeaning = view_meaning
        header["ViewCodeSequence"] = Sequence([code])
    if voi_table:
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [len(voi_table), 0, 16])
        table.add_new("LUTData", "US", voi_table)
        header["VOILUTSequence"] = Sequence([table])
    return make_header(path, **(header | tags))
