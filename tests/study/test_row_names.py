"""Tests for cxr.study.names: how a report calls its models."""

import pytest
from cxr.study.names import names_of_folders
from cxr.study.results import gather_rows
from finished_runs import write_run


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["resnet-18", "facebook/vit-mae-base"], {}),
        (["/runs/vit/model"], {"/runs/vit/model": "vit"}),
        (["/runs/vit/model", "/converted"], {"/runs/vit/model": "vit", "/converted": "converted"}),
        (["/a/vit/model", "/b/vit/model"], {"/a/vit/model": "/a/vit", "/b/vit/model": "/b/vit"}),
    ],
)
def test_a_model_folder_is_named_by_its_run(models, names):
    assert names_of_folders(models) == names


def test_a_row_of_a_model_folder_has_the_name_of_its_run(tmp_path):
    model = tmp_path / "vit-tiny_pretrain_s0" / "model"
    write_run(tmp_path / "classifier", model=str(model), pretrained=True)
    (rows,) = gather_rows([tmp_path / "classifier"]).values()
    assert [row.model for row in rows] == ["vit-tiny_pretrain_s0"]
