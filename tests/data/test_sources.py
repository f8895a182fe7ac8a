"""Where code and images come from, as a card may say it."""

import gzip

import pytest
from cxr.data.sources import label_tables_differ
from cxr.data.sources import public_address


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


def test_label_tables_of_a_collection_that_was_brought_into_the_layout_are_the_same(tmp_path):
    assert label_tables_differ(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-negbio.csv").write_bytes(b"labels")
    assert label_tables_differ(tmp_path)
    path = tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(gzip.compress(b"labels"))
    assert not label_tables_differ(tmp_path)
    path.write_bytes(gzip.compress(b"other labels"))
    assert label_tables_differ(tmp_path)
    path.write_bytes(b"damaged")
    assert label_tables_differ(tmp_path)
