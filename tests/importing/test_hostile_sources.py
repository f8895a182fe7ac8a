"""Sources that are not as published, or that would be misread, are refused in one line."""

import errno
import os
import re
import sys

import import_dataset
import numpy as np
import pytest
from collection_files import draw
from collection_files import medmnist_arrays
from collection_files import write_nih
from collection_files import write_padchest
from collection_files import write_vindr
from cxr.errors import UserError
from import_runs import run
from import_runs import write_own_table
from PIL import Image

OWN_TABLES = {  # a table, the flags for it, and what the message says
    "blank patient": (
        [["a.png", " ", "x", 1]],
        [],
        "line 2: wrong value in the column 'who'",
    ),
    "image twice": (
        [["a.png", "p", "train", 1]] * 2,
        [],
        "labels.csv, line 3: wrong value in the column 'path'; expected one row per file",
    ),
    "two splits": (
        [["a.png", "p", "train", 1], ["b.png", "p ", "test", 1]],
        ["--split_column", "part"],
        "line 3: value in the column 'part' is 'test'; expected each patient in one split",
    ),
    "label twice": (
        [["a.png", "p", "train", 1]],
        ["--label_columns", "Edema", "Edema"],
        "found 2 labels named Edema",
    ),
    "manifest's name": (
        [["a.png", "p", "train", 1]],
        ["--label_columns", "split"],
        "expected one, and none named image_id",
    ),
}


@pytest.mark.parametrize("name", OWN_TABLES)
def test_own_table_that_would_be_misread_is_refused(name, tmp_path):
    rows, flags, message = OWN_TABLES[name]
    table = write_own_table(tmp_path / "own", ["path", "who", "part", "Edema"], rows)
    flags = ["--subject_column", "who", "--label_columns", "Edema", *flags]
    with pytest.raises(ValueError, match=re.escape(message)):
        run("table", table, tmp_path / "out", *flags)


@pytest.mark.parametrize("name", ["split", "path"])
def test_class_named_like_a_column_is_refused(name, tmp_path):
    for number in range(8):
        draw(tmp_path / "own" / ("normal", name)[number % 2] / f"{number}.png")
    with pytest.raises(
        UserError, match=f"found 1 labels named {name}, expected one, and none named image_id"
    ):
        run("folder", tmp_path / "own", tmp_path / "out")


def test_views_that_few_runs_use_are_said(tmp_path, capsys):
    rows = [[f"{n}.png", "PA " if n else "Postero-Anterior", 1] for n in range(5)]
    table = write_own_table(tmp_path / "own", ["path", "view", "Edema"], rows)
    run("table", table, tmp_path / "out", "--label_columns", "Edema", "--view_column", "view")
    said = "1 of 5 images have a view that is neither frontal nor lateral, such as 'Postero-Anterior'"
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_file_name_that_is_not_utf8_is_refused(tmp_path):
    for name in ("a", "b", "c"):
        draw(tmp_path / "own" / "normal" / f"{name}.png")
    (tmp_path / "own" / "normal" / "a.png").rename(tmp_path / "own" / "normal" / "a\udcff.png")
    with pytest.raises(UserError, match="expected UTF-8; rename it"):
        run("folder", tmp_path / "own", tmp_path / "out")


def spoil_table(root):
    path = root / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Hernia", "Alien"), encoding="utf-8")


def spoil_folders(root):
    path = next(root.rglob("00000001_000.png"))
    (root / "copy").mkdir()
    (root / "copy" / path.name).write_bytes(path.read_bytes())


def spoil_list(root):
    (root / "test_list.txt").write_text("", encoding="utf-8")


def spoil_encoding(root):
    (root / "test_list.txt").write_bytes("00000001_000.png".encode("utf-16"))


SPOILT = {
    "encoding": (spoil_encoding, "test_list.txt: found no text ("),
    "one patient": (
        lambda root: (root / "Data_Entry_2017_v2020.csv").write_text(
            (root / "Data_Entry_2017_v2020.csv").read_text().replace(",2,", ",1,").replace(",3,", ",1,")
        ),
        "found 1 of 1 training patients for the validation split",
    ),
    "label": (spoil_table, "found the label 'Alien', expected one of No Finding, Atelectasis"),
    "folders": (spoil_folders, "00000001_000.png, expected one file of each image; move one"),
    "list": (spoil_list, "found 2 images that are in no list"),
    "no list": (
        lambda root: (root / "test_list.txt").unlink(),
        "found no test_list.txt, expected Data_Entry",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_source_that_is_not_as_published_is_refused_and_leaves_nothing(name, tmp_path):
    spoil, message = SPOILT[name]
    root = write_nih(tmp_path / "nih", ["No Finding", "Hernia"] * 4, num_test=2)
    spoil(root)
    with pytest.raises(ValueError, match=re.escape(message)):
        run("nih", root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["nih"]


def test_lists_with_the_mark_of_an_editor_are_read_and_hidden_files_are_not_images(tmp_path):
    root = write_nih(tmp_path / "nih", ["No Finding", "Hernia"] * 4, num_test=2)
    path = root / "train_val_list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    for folder in ("__MACOSX", ".hidden"):
        draw(root / folder / "00000001_000.png")
    assert len(run("nih", root, tmp_path / "out")) == 8


def test_folder_that_cannot_be_read_is_refused_and_not_skipped(tmp_path, monkeypatch):
    for number in range(8):
        draw(tmp_path / "own" / ("normal", "ill")[number % 2] / f"{number}.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("ill"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"ill: found a folder that cannot be read \(Permission denied\)"):
        run("folder", tmp_path / "own", tmp_path / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right of their own")
@pytest.mark.parametrize(("link", "target"), [("normal/again", "."), ("ill", "normal")])
def test_folder_that_a_link_shows_twice_is_refused(link, target, tmp_path):
    for number in range(8):
        draw(tmp_path / "own" / "normal" / f"{number}.png")
    (tmp_path / "own" / link).symlink_to(tmp_path / "own" / target)
    with pytest.raises(UserError, match=r"found the same folder as .*, through a link; remove the link"):
        run("folder", tmp_path / "own", tmp_path / "out")


def test_image_that_no_manifest_can_have_is_named(tmp_path):
    for number in range(8):
        draw(tmp_path / "own" / "normal" / f"{number}.png")
    draw(tmp_path / "own" / "normal" / "a::b.png")
    with pytest.raises(UserError, match=r"own, image \S+/normal/a::b.png: wrong path; .* without '::'"):
        run("folder", tmp_path / "own", tmp_path / "out")
    root = write_padchest(tmp_path / "padchest", ["['normal']"] * 9, ["PA"] * 9)
    path = next(root.glob("*.csv"))
    path.write_text(path.read_text(encoding="utf-8").replace(",P3,", ",P\N{EURO SIGN},"))
    with pytest.raises(UserError, match=r"padchest, image \S+0003_00-007-001.png: wrong subject_id"):
        run("padchest", root, tmp_path / "out")


def test_long_names_of_files_become_short_ids_and_long_cells_are_images_without_a_file(tmp_path):
    for number in range(8):
        draw(tmp_path / "own" / "normal" / ("\N{HEBREW LETTER ALEF}" * 40 + f"{number}.png"))
    manifest = run("folder", tmp_path / "own", tmp_path / "out")
    assert len({*manifest.index}) == 8 and max(map(len, manifest.index)) <= 200
    rows = [[f"{n}.png", f"i{n}", 1] for n in range(8)]
    table = write_own_table(tmp_path / "table", ["path", "id", "Edema"], rows)
    with table.open("a", encoding="utf-8") as file:
        file.write("x" * 5000 + ",i8,1\n")
    flags = ("--label_columns", "Edema", "--image_column", "id")
    assert len(run("table", table, tmp_path / "other", *flags)) == 8


def test_pattern_with_a_group_for_each_alternative_is_refused_with_what_to_write(tmp_path):
    for number in range(8):
        draw(tmp_path / "own" / "normal" / f"{('person', 'case')[number % 2]}{number}.png")
    pattern = ("--subject_pattern", r"person(\d+)|case(\d+)")
    with pytest.raises(UserError, match="one group around all alternatives, as in"):
        run("folder", tmp_path / "own", tmp_path / "out", *pattern)


def spoil_npz(path, **arrays):
    np.savez(path, **{**medmnist_arrays("pneumoniamnist", (9, 4, 5)), **arrays})


def spoil_bytes(path):
    np.savez_compressed(path, **medmnist_arrays("pneumoniamnist", (9, 4, 5)))
    content = bytearray(path.read_bytes())
    content[100:120] = b"\xff" * 20
    path.write_bytes(content)


def spoil_method(path):
    """Says that the arrays are packed by a method that no Python unpacks."""
    spoil_npz(path)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        for found in re.finditer(re.escape(signature), bytes(content)):
            content[found.start() + offset] = 97
    path.write_bytes(content)


def save_npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


SPOILT_NPZ = {
    "changed": (spoil_bytes, "found no arrays of MedMNIST"),
    "packed otherwise": (spoil_method, "found no arrays of MedMNIST"),
    "pickled": (lambda path: spoil_npz(path, val_images=np.array([{}] * 4)), "found no arrays of MedMNIST"),
    "no split": (lambda path: np.savez(path, train_images=np.zeros(3)), "found no arrays of MedMNIST"),
    "one array": (save_npy, "found no arrays of MedMNIST"),
    "text": (lambda path: path.write_text("<html>"), "found no arrays of MedMNIST"),
    "color": (
        lambda path: spoil_npz(path, val_images=np.zeros((4, 28, 28, 3), "uint8")),
        "found val images (4, 28, 28, 3)",
    ),
    "no pixels": (
        lambda path: spoil_npz(path, val_images=np.zeros((4, 0, 28), "uint8")),
        "found val images (4, 0, 28)",
    ),
}


@pytest.mark.parametrize("name", SPOILT_NPZ)
def test_arrays_that_are_not_as_published_are_refused(name, tmp_path):
    spoil, message = SPOILT_NPZ[name]
    spoil(tmp_path / "pneumoniamnist.npz")
    with pytest.raises(UserError, match=re.escape(message)):
        run("medmnist", tmp_path / "pneumoniamnist.npz", tmp_path / "out")


@pytest.mark.parametrize("value", ["", "-1"])
def test_vindr_label_that_is_unknown_is_refused_and_not_taken_for_negative(value, tmp_path):
    path = write_vindr(tmp_path / "vindr") / "annotations" / "image_labels_test.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",1,", f",{value},"), encoding="utf-8")
    with pytest.raises(UserError, match=f"line 2: COPD is '{value}'; expected 0 or 1"):
        run("vindr", tmp_path / "vindr", tmp_path / "out")


def test_padchest_says_which_labels_it_cannot_read(tmp_path, capsys):
    root = write_padchest(tmp_path / "padchest", ["pneumonia", *["['normal']"] * 8], ["PA"] * 9)
    assert len(run("padchest", root, tmp_path / "out")) == 8
    assert "1 of the images without labels have something else" in " ".join(capsys.readouterr().out.split())
    root = write_padchest(tmp_path / "excluded", ["['exclude']"] * 3, ["PA"] * 3)
    with pytest.raises(UserError, match="found no image that can be used"):
        run("padchest", root, tmp_path / "other")


def test_interrupted_import_leaves_nothing(tmp_path, monkeypatch):
    np.savez(tmp_path / "pneumoniamnist.npz", **medmnist_arrays("pneumoniamnist", (9, 3, 4)))

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run("medmnist", tmp_path / "pneumoniamnist.npz", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pneumoniamnist.npz"]


WRONG_FLAGS = {
    "long source": (["nih", "{}/" + "x" * 300, "{}/out"], "SOURCE"),
    "long out": (["nih", "{}", "{}/" + "x" * 300], "cannot be read (File name too long); name another"),
    "no source": (["nih", "{}/no", "{}/out"], "found nothing there, expected Data_Entry_2017*.csv"),
    "no file in it": (["medmnist", "{}", "{}/out"], "found no such file, expected pneumoniamnist.npz"),
    "out is there": (["medmnist", "{}/a.txt", "{}"], "found something there, expected a new folder"),
    "no labels": (["table", "{}/a.txt", "{}/out"], "found no --label_columns"),
    "lines in a name": (
        ["folder", "{}", "{}/out", "--name", "a\nb"],
        "--name: found 'a\\nb', expected one",
    ),
    "not for it": (["nih", "{}", "{}/out", "--view", "PA"], "--view is for folder, not for nih"),
    "no group": (["folder", "{}", "{}/out", "--subject_pattern", "x"], "expected a group in brackets"),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_wrong_command_is_refused_in_one_line_with_a_hint(name, tmp_path, capsys):
    words, message = WRONG_FLAGS[name]
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises((SystemExit, ValueError)) as error:
        import_dataset.main([word.format(tmp_path) for word in words])
    assert message in str(error.value) + capsys.readouterr().err
