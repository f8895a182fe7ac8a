"""The counts of a dataset, their comparison with published ones, its index and its examples."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import describe_dataset
import numpy as np
import pandas as pd
import pytest
from cxr.choices import LABELS
from cxr.errors import UserError
from cxr.study import paper
from dicom_files import write_dicom
from manifest_roots import manifest_rows
from manifest_roots import write_manifest
from mimic_tables import write_csv
from mimic_tables import write_published_number_of_rows
from picture_files import distance
from picture_files import soft_picture
from PIL import Image
from refused import refused

from mimic_cxr_dataset.gray_levels import equalize
from mimic_cxr_dataset.labels import index_images

SCRIPTS = Path(__file__).parents[2] / "scripts"
NIH_ROOT = Path(__file__).parents[3] / "shared" / "data" / "nih-cxr"
CSV_NAME = "dicoms_with_labels_and_splits.csv"
POSIX_MODES = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")

# (subject, study, split, views of its images, negbio, chexpert); a labeler that has no row of it: None
STUDIES = (
    (11, 51, "train", ["AP", "LATERAL"], {"Edema": "1.0"}, {"Edema": "1.0"}),
    (11, 52, "train", ["PA"], {"No Finding": "1.0", "Edema": "0.0"}, {"No Finding": "1.0", "Edema": "-1.0"}),
    (12, 53, "train", ["AP", "AP"], {"Edema": "-1.0"}, {"Edema": "-1.0"}),
    (13, 54, "train", ["PA"], None, None),
    (14, 55, "train", ["PA", ""], {"Edema": "0.0"}, {"Edema": "0.0"}),
    (15, 56, "validate", ["PA"], {"Fracture": "1.0"}, {}),
    (16, 57, "test", ["AP"], {}, {"Fracture": "1.0"}),
)
# What is counted in STUDIES, by hand. Frontal images with a label row: AP 4, PA 3.
IMAGE_COUNTS = {
    "all": {"images": 10, "studies": 7, "patients": 6},
    "train": {"images": 8, "studies": 5},
    "validation": {"images": 1, "studies": 1, "patients": 1},
    "test": {"images": 1, "studies": 1, "patients": 1},
}
STUDY_COUNTS = {
    "train": {"No Finding": 4, "Finding": 1},
    "validation": {"No Finding": 0, "Finding": 1},
}
VIEW_COUNTS = {"images with a label row": {"AP": 4, "PA": 3}}
AGREEMENT_COUNTS = {label: dict.fromkeys(paper.AGREEMENT_COLUMNS, 0) for label in LABELS}
AGREEMENT_COUNTS["No Finding"] |= {"positive": 1}
AGREEMENT_COUNTS["Edema"] = dict.fromkeys(paper.AGREEMENT_COLUMNS, 1)


def write_root(root: Path, studies=STUDIES, *, extension: str = ".csv", draw: bool = False) -> Path:
    """A tree of the studies; with `draw`, with images of 40 x 48 pixels."""
    root.mkdir()
    metadata, splits, labels = [], [], {"negbio": [], "chexpert": []}
    for subject, study, split, views, *by_labeler in studies:
        subject, study = 10_000_000 + subject, 50_000_000 + study
        for view in views:
            dicom_id = f"{len(metadata):08x}-00000000"
            metadata.append([dicom_id, subject, study, view])
            splits.append([dicom_id, study, subject, split])
            if draw:
                path = root / f"files/p10/p{subject}/s{study}/{dicom_id}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.arange(40, dtype=np.uint8) + np.full((48, 1), 20 * len(metadata), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
        for labeler, values in zip(labels, by_labeler):
            if values is not None:
                labels[labeler].append([subject, study, *(values.get(name, "") for name in LABELS)])
    name = "mimic-cxr-2.0.0-{}" + extension
    ids = ["subject_id", "study_id"]
    write_csv(root / name.format("metadata"), ["dicom_id", *ids, "ViewPosition"], metadata)
    write_csv(root / name.format("split"), ["dicom_id", "study_id", "subject_id", "split"], splits)
    for labeler, rows in labels.items():
        write_csv(root / name.format(labeler), [*ids, *LABELS], rows)
    return root


@pytest.fixture
def as_published(monkeypatch):
    """Takes the counts of STUDIES for the published ones."""
    for name in ("IMAGE_COUNTS", "STUDY_COUNTS", "VIEW_COUNTS", "AGREEMENT_COUNTS"):
        monkeypatch.setattr(paper, name, globals()[name])


def describe(root: Path, output_dir: Path, *flags: str) -> None:
    describe_dataset.main(["--data_dir", str(root), "--output_dir", str(output_dir), *flags])


def report(output_dir: Path) -> str:
    return (output_dir / "dataset.md").read_text(encoding="utf-8")


def section(output_dir: Path, title: str) -> list[list[str]]:
    """The cells of one table of dataset.md, without its header."""
    body = report(output_dir).split(f"## {title}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]


def verdicts(output_dir: Path) -> list[str]:
    return [line.removeprefix("- ") for line in report(output_dir).splitlines() if line.startswith("- ")]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("extension", [".csv", ".csv.gz"])
def test_counts_equal_to_the_published_ones_are_said_to_be(tmp_path, as_published, capsys, extension):
    describe(write_root(tmp_path / "root", extension=extension), tmp_path / "out")
    assert verdicts(tmp_path / "out") == [
        "Images, studies, patients: equals the published counts, all 11 of them.",
        "Finding and No Finding: equals the published counts, all 4 of them.",
        "Frontal images: equals the published counts, all 2 of them.",
        "Agreement of the labelers: equals the published counts, all 56 of them.",
    ]
    printed = capsys.readouterr().out
    assert all(line in printed for line in verdicts(tmp_path / "out"))
    assert "Differences" not in printed + report(tmp_path / "out")


def test_one_changed_row_is_listed_with_what_was_found_and_published(tmp_path, as_published, capsys):
    changed = [(*row[:4], {"Edema": "0.0"}, row[5]) if row[1] == 51 else row for row in STUDIES]
    describe(write_root(tmp_path / "root", changed), tmp_path / "out")
    assert section(tmp_path / "out", "Differences from the published counts") == [
        ["Finding and No Finding", "train", "No Finding 5, Finding 0", "No Finding 4, Finding 1"],
        ["Agreement of the labelers", "Edema", "positive 0, disagreement 2", "positive 1, disagreement 1"],
    ]
    equal = ["equals" in line for line in verdicts(tmp_path / "out")]
    assert equal == [True, False, True, False]
    assert "positive 0, disagreement 2" in capsys.readouterr().out


def test_tables_count_images_views_values_and_what_is_left_out(tmp_path):
    describe(write_root(tmp_path / "root"), tmp_path / "out")
    assert section(tmp_path / "out", "Images, studies and patients") == [
        ["train", "8", "5", "4"],
        ["validation", "1", "1", "1"],
        ["test", "1", "1", "1"],
        ["all", "10", "7", "6"],
    ]
    assert section(tmp_path / "out", "Views") == [
        ["AP", "4", "4", "4", "40.00%"],
        ["PA", "4", "3", "3", "40.00%"],
        ["(none)", "1", "1", "0", "10.00%"],
        ["LATERAL", "1", "1", "0", "10.00%"],
    ]
    left_out = section(tmp_path / "out", "Images left out, by reason")
    assert " ".join(left_out[-1]) == "all 10 2 1 0 0 7"
    values = {name: counts for name, *counts in section(tmp_path / "out", "Studies by label, negbio")}
    assert tuple(values) == LABELS
    assert values["Edema"] == ["1", "2", "1", "2"]  # 1.0, 0.0, -1.0, blank
    assert values["Pneumonia"] == ["0", "0", "0", "6"]


def test_label_table_has_the_fractions_within_a_split_and_stands_beside_the_published_one(tmp_path):
    describe(write_root(tmp_path / "root"), tmp_path / "out")
    table = section(tmp_path / "out", "Data labels size and distribution")
    lines = [" | ".join(row) for row in table]
    assert lines[0] == "train | 0 No Finding | 4 | 80.00% | 4 | 80.00% | 96,694 (40.63%) | 4,126 (41.26%)"
    assert lines[3] == (
        "validation | 1 Finding | 1 | 100.00% | 1 | 100.00% | 1,146 (58.50%) | 1,065 (58.13%)"
    )
    assert table[5][:4] == ["test", "1 Finding", "0", "0.00%"]
    assert table[-1] == ["train + validation", "", "6", "", "6", "", "239,921", "11,833"]
    assert "all 5 training images" in report(tmp_path / "out")


def test_sub_sample_is_the_one_that_a_run_with_the_same_flags_trains_on(sample_root, tmp_path):
    from cxr.data.subsets import draw_sample

    describe(sample_root, tmp_path / "out", "--num_samples", "20", "--seed", "3")
    rows = index_images(sample_root)[0]
    train = rows[rows["split"] == "train"]
    chosen = draw_sample(train["subject_id"], train["label"], num_samples=20, seed=3)
    positive = int(train["label"].to_numpy()[chosen].sum())
    table = section(tmp_path / "out", "Data labels size and distribution")
    assert [row[4] for row in table[:2]] == [str(20 - positive), str(positive)]
    assert table[2][2] == table[2][4]  # validation is whole
    text = report(tmp_path / "out")
    assert f"20 of {len(train)} training images" in text and "--max_train_samples 20 --seed 3" in text


@pytest.mark.parametrize(
    ("flags", "not_compared"),
    [
        (["--view", "lateral"], ["Finding and No Finding"]),
        (["--uncertain", "exclude"], ["Finding and No Finding"]),
        (["--dataset_config_name", "pleural_effusion"], ["Finding and No Finding"]),
        (["--labeler", "chexpert"], ["Finding and No Finding", "Frontal images"]),
    ],
)
def test_counts_that_other_options_change_are_not_compared(tmp_path, as_published, flags, not_compared):
    describe(write_root(tmp_path / "root"), tmp_path / "out", *flags)
    said = [line.split(":")[0] for line in verdicts(tmp_path / "out") if "not compared" in line]
    assert said == not_compared
    assert "published" not in report(tmp_path / "out").split("## Data")[1]


def test_one_labeler_is_enough(tmp_path, as_published):
    root = write_root(tmp_path / "root")
    (root / "mimic-cxr-2.0.0-chexpert.csv").unlink()
    describe(root, tmp_path / "out")
    assert verdicts(tmp_path / "out")[-1].startswith("Agreement of the labelers: not compared, ")
    assert sum("equals" in line for line in verdicts(tmp_path / "out")) == 3


def test_other_data_lists_its_differences_and_is_no_error(sample_root, tmp_path, capsys):
    describe(sample_root, tmp_path / "out")
    assert not any("equals" in line for line in verdicts(tmp_path / "out"))
    differences = section(tmp_path / "out", "Differences from the published counts")
    assert len(differences) == 4 + 2 + 1 + 14
    assert "images 377,110, studies 227,835, patients 65,379" in [row[3] for row in differences]
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 160


@POSIX_MODES
def test_index_has_a_line_per_labelled_image_whose_path_leads_to_it(sample_root, tmp_path):
    describe(sample_root, tmp_path / "out")
    index = pd.read_csv(tmp_path / "out" / CSV_NAME)
    assert list(index.columns) == ["dicom_id", "subject_id", "study_id", "view", "split", "label", "path"]
    rows = index_images(sample_root)[0]
    for column in ("dicom_id", "subject_id", "study_id", "split", "label"):
        assert index[column].tolist() == rows[column].tolist()
    assert set(index["view"]) == {"AP", "PA"}
    assert index["path"].str.startswith("files/p1").all() and not index["path"].str.contains(r"\\").any()
    assert all((sample_root / path).is_file() for path in index["path"])
    assert mode(tmp_path / "out" / CSV_NAME) == 0o600


def test_path_of_the_index_does_not_depend_on_how_the_root_was_given(tmp_path, monkeypatch):
    write_root(tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    describe(Path("root/../root/"), Path("out"))
    assert pd.read_csv("out/" + CSV_NAME)["path"][0] == "files/p10/p10000011/s50000051/00000000-00000000.jpg"


@POSIX_MODES
def test_figure_is_the_same_for_one_seed_and_private(sample_root, tmp_path, capsys):
    figures = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        describe(sample_root, tmp_path / name, "--num_examples", "2", "--seed", seed)
        figures.append((tmp_path / name / "examples.png").read_bytes())
    assert figures[0] == figures[1] != figures[2]
    assert mode(tmp_path / "a" / "examples.png") == 0o600
    assert f"keep {CSV_NAME} and examples.png private" in capsys.readouterr().out


def test_figure_shows_labels_and_views_but_no_ids(tmp_path, monkeypatch):
    def note(*args, **options):
        drawn.append((args, options))

    drawn = []
    monkeypatch.setattr(describe_dataset, "plot_examples", note)
    describe(write_root(tmp_path / "root", draw=True), tmp_path / "out")
    (examples, _), options = drawn[0]
    assert {name: len(pictures) for name, pictures in examples.items()} == {"No Finding": 3, "Finding": 1}
    assert {view for pictures in examples.values() for view, _ in pictures} == {"AP", "PA"}
    assert examples["Finding"][0][1].shape == (48, 40)
    assert not any(digit in options["title"] for digit in "0123456789")


@pytest.mark.parametrize("equalized", [True, False])
def test_figure_shows_dicom_files_as_collection_json_says(equalized, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(describe_dataset, "plot_examples", lambda found, *_, **options: drawn.append(found))
    root = write_root(tmp_path / "root", draw=True)
    (root / "collection.json").write_text(json.dumps({"equalized": equalized}), encoding="utf-8")
    gray = soft_picture()
    for path in root.glob("files/*/*/*/*.jpg"):
        write_dicom(path.with_suffix(".dcm"), gray)
        path.unlink()
    describe(root, tmp_path / "out")
    (_, found), *_ = drawn[0]["Finding"]
    assert distance(found, equalize(gray) if equalized else gray) < 1.5


def test_without_images_there_is_no_figure_and_a_line_says_why(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "examples.png").write_bytes(b"of other data")
    root = write_root(tmp_path / "root")
    describe(root, tmp_path / "out")
    said = [line for line in capsys.readouterr().out.splitlines() if "examples.png" in line]
    assert said == [f"No examples.png: {root} has no folder files/ with images"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.md", CSV_NAME]


def test_without_readable_images_of_a_label_a_line_names_it(tmp_path, capsys):
    root = write_root(tmp_path / "root", draw=True)
    next(root.glob("files/p10/p10000012/*/*.jpg")).write_bytes(b"no JPEG")
    describe(root, tmp_path / "out")
    assert (tmp_path / "out" / "examples.png").is_file()  # of the others
    for path in root.glob("files/p10/p10000011/s50000051/*.jpg"):
        path.write_bytes(b"no JPEG")
    describe(root, tmp_path / "out")
    assert not (tmp_path / "out" / "examples.png").exists()
    assert "No examples.png: found no readable training image of 'Finding' in" in capsys.readouterr().out


def test_without_data_dir_the_sample_is_described(sample_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(describe_dataset, "make_sample_data_once", lambda: sample_root)
    describe_dataset.main(["--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert printed.startswith(f"No --data_dir given: the synthetic sample in {sample_root}\n")
    assert "private" not in printed


def test_a_second_run_replaces_the_first(tmp_path):
    root = write_root(tmp_path / "root")
    for view, num_rows in (("frontal", 7), ("lateral", 1)):
        describe(root, tmp_path / "out", "--view", view)
        assert len(pd.read_csv(tmp_path / "out" / CSV_NAME)) == num_rows


def test_absent_folder_is_one_line_and_leaves_nothing_behind(tmp_path, capsys):
    out = tmp_path / "out"
    message = refused(
        describe_dataset.main, ["--data_dir", str(tmp_path / "no"), "--output_dir", str(out)], capsys
    )
    assert f"{tmp_path / 'no'} is missing" in message and "expected the MIMIC-CXR-JPG folder" in message
    assert not out.exists()


def test_strange_value_in_either_table_is_one_line_that_names_it(tmp_path):
    root = write_root(tmp_path / "root", [(*STUDIES[0][:5], {"No Finding": "2.0"}), *STUDIES[1:]])
    with pytest.raises(
        UserError, match=r"chexpert.csv, line 2: No Finding is '2.0'; expected 1.0, 0.0, -1.0"
    ):
        describe(root, tmp_path / "out")


def test_manifest_without_labels_has_the_other_tables(tmp_path):
    root = write_manifest(tmp_path / "root", manifest_rows(8), labels=[])
    describe(root, tmp_path / "out")
    assert section(tmp_path / "out", "Images, studies and patients")[-1] == ["all", "8", "8", "8"]
    left_out = section(tmp_path / "out", "Images left out, by reason")[-1]
    assert left_out == ["all", "8", "0", "8", "0", "0", "0"]
    assert "by label and value" not in report(tmp_path / "out")


@pytest.mark.parametrize("labeler", ["negbio", "chexpert"])
@pytest.mark.parametrize(
    ("line", "expected"), [(2, "the patient of the study's images"), (8, "one row per study")]
)
def test_study_of_another_patient_or_of_two_is_refused_in_either_table(tmp_path, labeler, line, expected):
    root = write_root(tmp_path / "root")
    path = root / f"mimic-cxr-2.0.0-{labeler}.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[line - 1 : line] = [lines[1].replace("10000011", "10000019")]  # line 8 is a new one
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{path}, line {line}: wrong .* expected {expected}"):
        describe(root, tmp_path / "out")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_output_dir_that_cannot_be_a_folder_is_one_line(tmp_path, capsys, name):
    root = write_root(tmp_path / "root")
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    message = refused(
        describe_dataset.main, ["--data_dir", str(root), "--output_dir", str(tmp_path / name)], capsys
    )
    assert f"--output_dir {tmp_path / name}: cannot be created" in message and "name another" in message
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_wrong_flag_is_one_line(capsys):
    assert "'gpt'" in refused(describe_dataset.main, ["--labeler", "gpt"], capsys)
    message = refused(describe_dataset.main, ["--num_examples", "none"], capsys)
    assert "found 'none', expected a whole number from 1" in message


def test_real_radiographs_are_described(tmp_path):
    if not NIH_ROOT.is_dir():
        pytest.skip(f"{NIH_ROOT} is not on this machine")
    describe(NIH_ROOT, tmp_path / "out")
    assert section(tmp_path / "out", "Images, studies and patients")[-1] == ["all", "602", "602", "408"]
    with Image.open(tmp_path / "out" / "examples.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 50


# In a process of its own, whose memory is measured.
PROGRAM = """
import json, pathlib, re, sys, time
started = time.perf_counter()
sys.path.insert(0, sys.argv[1])
import describe_dataset
describe_dataset.main(["--data_dir", sys.argv[2], "--output_dir", sys.argv[3]])
status = pathlib.Path("/proc/self/status").read_text()  # getrusage would count the test's own process
memory = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 2**20
print(json.dumps({"seconds": time.perf_counter() - started, "memory_gib": memory}))
"""


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
def test_all_377_110_images_take_seconds_and_little_memory(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_published_number_of_rows(root)
    command = [sys.executable, "-c", PROGRAM, str(SCRIPTS), str(root), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured)
    counts = section(tmp_path / "out", "Images, studies and patients")[-1]
    assert counts == ["all", "377,110", "227,835", "65,379"]
    assert measured["seconds"] < 15
    assert measured["memory_gib"] < 1.5
