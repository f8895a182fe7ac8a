"""Where code and images come from, as a card may say it."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from cxr.data import sources
from cxr.data.sources import is_mimic
from cxr.data.sources import public_address
from cxr.errors import UserError
from make_sample_data import make_sample_data

SCRIPTS = Path(__file__).parents[2] / "scripts"
# Stands in for make_sample_data.py: a tiny sample, and a line for each time that it is called.
DRAW = f"""
import sys
sys.path[:0] = [{str(SCRIPTS)!r}, {str(SCRIPTS.parent)!r}]
from pathlib import Path
from make_sample_data import make_sample_data
with Path(__file__).with_name("calls.txt").open("a") as file:
    print("called", file=file)
make_sample_data(sys.argv[1], num_images=12, image_size=32)
"""
USE = f"""
import sys
sys.path[:0] = [{str(SCRIPTS)!r}, {str(SCRIPTS.parent)!r}]
from pathlib import Path
from cxr.data import sources
sources.REPOSITORY = Path(sys.argv[1])
sources.SAMPLE_DIR = Path(sys.argv[1], "sample_data")
print((sources.make_sample_data_once() / "hosp" / "patients.csv.gz").is_file())
"""


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/lab/code.git",
        "https://me:ghp_secret@github.com/lab/code.git",
        "https://ghp_secret@github.com/lab/code.git",
        "https://github.com/lab/code.git?private_token=secret#secret",
        "https://me:p@ss:word@github.com/lab/code.git",
        "git@github.com:lab/code.git",
        "ssh://git@github.com/lab/code.git",
        "ssh://git:secret@GitHub.com/lab/code.git",
    ],
)
def test_address_of_the_code_has_no_credentials_and_is_one_for_browsers(url):
    assert public_address(url) == "https://github.com/lab/code.git"


def test_address_keeps_its_port():
    assert public_address("https://me:secret@git.lab.org:8443/a/b") == "https://git.lab.org:8443/a/b"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/home/me/code",
        "../code",
        "C:\\Users\\me\\code",
        "file:///home/me/code",
        "me@cluster.lab.org:/home/me/code.git",
        "me@cluster.lab.org:code.git",
        "git@cluster.lab.org:/srv/git/code.git",
        "git@cluster.lab.org:~me/code.git",
        "ssh://me@cluster.lab.org/home/me/code.git",
        "ssh://git@cluster.lab.org:2222/code.git",
        "ssh://git@cluster.lab.org/~me/code.git",
        "alias:code",
        "http://localhost:3000/me/code",
        "http://192.168.0.7/me/code",
        "https://github.com:port/code",
        "https://github.com/lab/`code` | x",
    ],
)
def test_address_that_is_local_or_not_plain_is_left_out(url):
    assert public_address(url) is None


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "make_sample_data.py").write_text(DRAW, encoding="utf-8")
    monkeypatch.setattr(sources, "REPOSITORY", tmp_path)
    monkeypatch.setattr(sources, "SAMPLE_DIR", tmp_path / "sample_data")
    return tmp_path


def num_calls(repository: Path) -> int:
    path = repository / "scripts" / "calls.txt"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def make_old_sample(folder: Path) -> Path:
    """Makes a sample as it was before samples had a version."""
    make_sample_data(folder, num_images=12, image_size=32)
    (folder / sources.VERSION_FILE).unlink()
    (folder / "hosp" / "patients.csv.gz").unlink()
    return folder


@pytest.mark.parametrize("first", ["no sample", "an old sample", "a sample of another version"])
def test_of_processes_that_race_for_the_sample_one_makes_it_and_all_use_it(repository, first):
    if first != "no sample":
        sample = make_old_sample(repository / "sample_data")
    if first == "a sample of another version":
        (sample / sources.VERSION_FILE).write_bytes(b"\xff1\n")
    command = [sys.executable, "-c", USE, str(repository)]
    racing = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    out, err = zip(*(process.communicate() for process in racing))
    assert out == ("True\n",) * 4
    assert num_calls(repository) == 1
    assert "".join(err).count("another version: making it anew") == (first != "no sample")
    assert {path.name for path in repository.iterdir()} - {".sample_data.lock"} == {"scripts", "sample_data"}
    sources.make_sample_data_once()
    assert num_calls(repository) == 1


def test_old_sample_stays_until_the_new_one_is_complete(repository):
    sample = make_old_sample(repository / "sample_data")
    (repository / "scripts" / "make_sample_data.py").write_text("raise SystemExit(2)", encoding="utf-8")
    with pytest.raises(UserError, match="could not be made"):
        sources.make_sample_data_once()
    assert (sample / "sample-findings.json.gz").is_file()


def test_what_a_process_left_that_was_killed_while_it_made_the_sample_is_removed(repository):
    make_old_sample(repository / ".sample_data.new" / "old")  # killed between the two renames
    sources.make_sample_data_once()
    assert (repository / "sample_data" / "hosp" / "patients.csv.gz").is_file()
    assert not (repository / ".sample_data.new").exists()


def test_a_folder_with_other_content_and_a_link_to_an_old_sample_stay_as_they_are(repository):
    (repository / "sample_data").mkdir()
    assert sources.make_sample_data_once() == repository / "sample_data"
    (repository / "sample_data").rmdir()
    (repository / "sample_data").symlink_to(make_old_sample(repository / "mine"))
    assert sources.make_sample_data_once() == repository / "sample_data"
    assert not num_calls(repository)


def test_link_that_leads_nowhere_is_named_and_stays(repository):
    (repository / "sample_data").symlink_to(repository / "nowhere")
    with pytest.raises(UserError, match=r"sample_data cannot be replaced \(Not a directory\); remove it"):
        sources.make_sample_data_once()
    assert (repository / "sample_data").is_symlink()


def test_label_tables_of_a_collection_that_was_brought_into_the_layout_are_the_same(tmp_path):
    for folder, expected in ((tmp_path / "mimic-cxr-jpg" / "2.1.0", True), (tmp_path, False)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mimic-cxr-2.0.0-negbio.csv").write_bytes(b"labels")
        assert is_mimic(folder) is expected  # with one table, by its path
    path = tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(gzip.compress(b"labels"))
    assert not is_mimic(tmp_path)
    (tmp_path / "mimic-cxr-2.1.0-test-set-labeled.csv").write_bytes(b"a radiologist's labels")
    assert not is_mimic(tmp_path)
    path.write_bytes(gzip.compress(b"other labels"))
    assert is_mimic(tmp_path)
    path.write_bytes(b"damaged")
    assert is_mimic(tmp_path)
