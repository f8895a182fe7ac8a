"""Several collections are pretrained on together."""

import json
import shutil
from pathlib import Path

import pytest
from cxr.data.images import load_images
from cxr.data.roots import are_all_equalized
from cxr.data.roots import count_by_root
from cxr.data.roots import load_roots
from cxr.errors import UserError
from cxr.sharing.card import name_roots

from mimic_cxr_dataset.label_rule import LabelRule


@pytest.fixture(scope="module")
def roots(sample_root, tmp_path_factory) -> dict[str, Path]:
    """Two collections with the same files."""
    folder = tmp_path_factory.mktemp("roots")
    return {name: shutil.copytree(sample_root, folder / name) for name in ("nih-cxr", "padchest")}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    cache = {"cache_dir": tmp_path_factory.mktemp("cache"), "num_proc": 1}
    return {"shortest_side": 40, "shows_progress": True, "on_bad_image": "error", **cache}


def test_each_split_has_the_images_of_all_roots_with_ids_of_their_own(roots, options):
    together, alone = load_roots(roots, LabelRule(), **options), {}
    for name, root in roots.items():
        alone[name] = load_images(root, LabelRule(), **options)
    assert list(together) == ["train", "validation"]
    for split, images in together.items():
        for column in ("dicom_id", "subject_id", "study_id"):
            expected = [f"{name}/{value}" for name in roots for value in alone[name][split][column]]
            assert images[column] == expected
        assert len(set(images["dicom_id"])) == len(images)
        contents = [content for name in roots for content in alone[name][split].read(range(len(images) // 2))]
        assert images.read(range(len(images))) == contents
        assert count_by_root(images) == {name: len(images) // 2 for name in roots}


def test_the_order_of_the_folders_makes_no_difference(roots, options):
    one, other = (
        load_roots(dict(order), LabelRule(), **options) for order in (roots.items(), [*roots.items()][::-1])
    )
    assert one["train"]["dicom_id"] == other["train"]["dicom_id"]
    assert one["train"].read([0, 3, -1]) == other["train"].read([0, 3, -1])


def test_the_cache_is_that_of_each_root_alone(roots, options, tmp_path):
    own = options | {"cache_dir": tmp_path}
    for root in roots.values():
        load_images(root, LabelRule(), **own)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    load_roots(roots, LabelRule(), **own)
    assert before and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")} == before


def test_collections_that_differ_in_equalisation_are_warned_about(roots, options, caplog):
    images = load_roots(roots, LabelRule(), **options)["train"]
    same = are_all_equalized(images, roots)
    assert same in (True, False) and not caplog.records
    path = roots["padchest"] / "collection.json"
    path.write_text(json.dumps({"equalized": not same}), encoding="utf-8")
    try:
        assert are_all_equalized(images, roots) is None
    finally:
        path.unlink()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"only {'nih-cxr' if same else 'padchest'} is equalised" in warning


def test_two_roots_of_one_name_are_refused(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "cxr").mkdir(parents=True)
    with pytest.raises(UserError, match="both called cxr, expected collections of different names"):
        name_roots([tmp_path / "a" / "cxr", tmp_path / "b" / "cxr"])
    assert list(name_roots([tmp_path / "a", tmp_path / "b"])) == ["a", "b"]


def test_a_damaged_collection_json_of_a_manifest_is_a_user_error(tmp_path):
    (tmp_path / "manifest.csv").touch()
    (tmp_path / "collection.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"collection\.json: .* expected JSON"):
        name_roots([tmp_path])
