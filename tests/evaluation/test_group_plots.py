"""The figure of groups is a whole PNG file, with as many rows as groups that are shown."""

import numpy as np
from cxr.evaluation import group_plots
from PIL import Image


def group(name, *, num_patients=20, auroc=0.8):
    interval = auroc and [auroc - 0.1, auroc + 0.1]
    return {
        "attribute": "race",
        "group": name,
        "num_patients": num_patients,
        "auroc": auroc,
        "intervals": {"auroc": interval},
    }


def height(groups, path):
    group_plots.plot_groups(groups, path, title="Edema", overall=0.75)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and len(np.unique(np.asarray(picture.convert("L")))) > 10
        return picture.size[1]


def test_small_and_undefined_groups_have_no_row_in_the_figure(tmp_path):
    path = tmp_path / "groups.png"
    path.write_bytes(b"old")
    shown = [group("White"), group("Black")]
    left_out = [group("Asian", num_patients=9), group("Hispanic", auroc=None)]
    assert height([*shown, *left_out], path) < height([*shown, group("Asian"), group("Hispanic")], path)
    assert [file.name for file in tmp_path.iterdir()] == ["groups.png"]
