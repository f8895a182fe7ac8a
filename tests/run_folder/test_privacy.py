"""No id of a patient, study or image leaves the private files: of all bytes that runs and reports write."""

import csv
import gzip
import io
import logging
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import report_study
import run_classification
import run_mae_pretrain
from cxr.errors import run_script
from cxr.run_folder import privacy
from cxr.training import run as run_module
from poison import PoisonedNormalizer
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

REPOSITORY = Path(__file__).parents[2]
PRIVATE = {"samples.json", "predictions_validation.csv", "predictions_test.csv", "bad_steps.jsonl"}
PRIVATE |= {"predictions_radiologist.csv", "predictions_radiologist_study.csv"}
PUSHED = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
PUSHED |= {f"{name}.png" for name in ("loss", "roc_pr_validation", "roc_pr_test")}
PUSHED |= {"confusion_matrix_validation.png", "confusion_matrix_test.png"}


def all_ids(root: Path) -> re.Pattern[bytes]:
    """Matches any id of the tables; numbers only where they stand alone, as weights have many digits."""
    with gzip.open(root / "mimic-cxr-2.0.0-metadata.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = "|".join(sorted({row[name] for row in rows for name in ("subject_id", "study_id")}))
    images = "|".join(row["dicom_id"] for row in rows)
    return re.compile(rf"{images}|(?<![\d.])[ps]?(?:{numbers})(?!\d)".encode())


def files_with_ids(folder: Path, ids: re.Pattern[bytes]) -> set[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    return {path for path in files if ids.search(path.read_bytes()) or ids.search(str(path).encode())}


@pytest.fixture(scope="module")
def ids(sample_root) -> re.Pattern[bytes]:
    return all_ids(sample_root)


def test_ids_are_found_where_they_are(ids, sample_root):
    image = next(sample_root.rglob("*.jpg"))
    for text in (
        image.stem,
        image.parent.name,
        image.parents[1].name,
        f'{{"id": {image.parents[1].name[1:]}}}',
    ):
        assert ids.search(text.encode())
    assert not ids.search(f"0.{image.parents[1].name[1:]}".encode())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.slow
def test_runs_and_their_report_write_ids_to_private_files_only(
    ids, sample_root, tmp_path, capfd, monkeypatch
):
    """Both scripts with all that writes: tracker, log, hub, bad steps, figures, predictions, a report."""
    monkeypatch.setattr(PoisonedNormalizer, "poisoned", (2,))
    monkeypatch.setattr(PoisonedNormalizer, "num_calls", 0)
    monkeypatch.setattr(run_module, "Normalizer", PoisonedNormalizer)
    data = [f"--data_dir={sample_root}", "--with_tracking", "--logging_steps=1"]
    hub = ["--push_to_hub", "--hub_model_id=my-lab/mae", f"--hub_dir={tmp_path / 'hub'}"]
    run_main(run_mae_pretrain, tmp_path / "runs" / "mae", *TINY_VIT, *QUICK, *data, *hub)
    model = f"--model_name_or_path={tmp_path / 'runs' / 'mae' / 'model'}"
    monkeypatch.setattr(PoisonedNormalizer, "num_calls", 0)
    run_main(run_classification, tmp_path / "runs" / "vit", model, *QUICK, *data, *hub, "--evaluate_test")
    report_study.main([str(tmp_path / "runs")])

    found = files_with_ids(tmp_path, ids)
    assert {path.name for path in found} == PRIVATE
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    assert {path.name for path in (tmp_path / "hub").glob("models--*/snapshots/*/*")} == PUSHED
    said = capfd.readouterr()
    assert not ids.search((said.out + said.err).encode())


def test_error_about_an_image_names_it_on_the_terminal_alone(ids, sample_root, tmp_path, capfd):
    root = tmp_path / "root"
    shutil.copytree(sample_root, root)
    damaged = sorted(root.rglob("*.jpg"))[5]
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(SystemExit):
        run_script(
            lambda: run_main(run_mae_pretrain, tmp_path / "run", *TINY_VIT, *QUICK, f"--data_dir={root}")
        )
    assert damaged.name in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()  # the run had not begun


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.slow
def test_log_of_a_study_is_private_as_an_error_names_an_image(ids, sample_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(sample_root, root)
    damaged = sorted(root.rglob("*.jpg"))[5]
    damaged.write_bytes(damaged.read_bytes()[:300])
    command = [sys.executable, str(REPOSITORY / "scripts" / "run_study.py"), "--models", "resnet-18"]
    command += [
        f"--data_dir={root}",
        f"--output_dir={tmp_path / 'study'}",
        "--preset=smoke",
        "--train_sizes=32",
    ]
    done = subprocess.run([*command, "--tasks=finding"], capture_output=True)
    assert done.returncode == 1 and not ids.search(done.stdout + done.stderr)
    (log,) = (tmp_path / "study" / "logs").iterdir()
    assert ids.search(log.read_bytes()) and stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/data/files/p10/p10000032/s50414267/a.jpg is bad", "<id> is bad"),
        ("of 02aa804e-bde0afdd-112c0b34-7bc16630-4e384014,", "of <id>,"),
        ("patient 10000032, study s50414267", "patient <id>, study <id>"),
        ("subject_10000032_50414267 of.P10000032", "subject_<id>_<id> of.<id>"),
        ("02AA804E-BDE0AFDD-112C0B34-7BC16630-4E384014.jpg", "<id>.jpg"),
        (r"'\n10000032\tp10000033' p10000032s50414267", r"'\n<id>\t<id>' <id>"),
        ("patient10000032 STUDY50414267 %2Fp10000032%2Fs50414267", "<id> <id> %2F<id>%2F<id>"),
        (r"files\p10\p10000032\s50414267 and files/p10/", "<id> and <id>"),
        ("runs/mae-20261123-071500 after 12345678901 steps, 0.10000032", None),
        ("237,962 images of 256 pixels, seed 4294967295", None),
        ("commit 0a10000032f, 5.50414267e-05, files/private, a10000032", None),
    ],
)
def test_ids_are_masked_and_other_numbers_are_not(text, masked):
    assert privacy.mask_ids(text) == (masked or text)


def test_formatter_masks_arguments_and_traces():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(privacy.MaskingFormatter("%(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    try:
        raise ValueError("patient 10000032")
    except ValueError:
        log.exception("In %s", "p10000032")
    assert "10000032" not in stream.getvalue() and stream.getvalue().startswith("In <id>\nTraceback")
