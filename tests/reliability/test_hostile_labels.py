"""Hostile label rules and radiologist's tables: each is right, or refused in one line without an id."""

import re

import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from mimic_roots import patients
from mimic_roots import write_root
from mimic_tables import encode_csv

from mimic_cxr_dataset.choices import LABELS
from mimic_cxr_dataset.choices import UNCERTAIN
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.label_rule import parse_uncertain
from mimic_cxr_dataset.labels import read_radiologist
from mimic_cxr_dataset.tables import read_images

WORDS = st.sampled_from(
    [*LABELS, *UNCERTAIN, "mix", "edema", "", " ", "=", ",", "Edema ", "-1.0", "\n", "\x00"]
)
TEXTS = st.lists(WORDS | st.sampled_from(["=", ","]), max_size=9).map("".join) | st.text(max_size=20)
HEADER = ["study_id", *sorted({*LABELS, "Airspace Opacity"} - {"Lung Opacity"})]
STUDIES = ["50000001", "50000002", "50000003"]  # the last is a training study


def check_message(error):
    message = str(error)
    assert message and len(message) < 1000 and "\n" not in message, message
    assert not re.search("5000000[1-9]|1000000[1-9]", message), message


@given(TEXTS)
@settings(deadline=None)
def test_a_policy_text_names_a_policy_for_every_label_or_is_refused(text):
    try:
        policies = parse_uncertain(text)
    except DatasetError as error:
        check_message(error)
        return
    assert tuple(policies) == LABELS and set(policies.values()) <= set(UNCERTAIN)
    for finding, policy in policies.items():  # what was said is what holds
        if policy != "negative" and text != "mix":
            assert policy in text
            assert finding in text or text.lstrip().startswith(policy)


@given(st.lists(WORDS, max_size=4).map(tuple), TEXTS, st.sampled_from(["finding", "findings"]))
@settings(deadline=None)
def test_a_label_rule_has_labels_or_is_refused(findings, uncertain, task):
    try:
        rule = LabelRule(task=task, findings=findings or None, uncertain=uncertain)
    except DatasetError as error:
        check_message(error)
        return
    assert rule.label_names and set(rule.label_names) <= {*LABELS, "Finding"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    images = [*patients(2, split="test"), *patients(1, split="train", start=2)]
    return write_root(tmp_path_factory.mktemp("hostile") / "root", images, draw=False)


def sound_rows():
    return [HEADER, [STUDIES[0], *["1"] * 14], [STUDIES[1], *["-1", "0", "", "1.0", *[""] * 10]]]


@st.composite
def tables(draw):
    """A sound table with one cell, row, column or byte changed."""
    rows = [list(row) for row in sound_rows()]
    kind = draw(st.sampled_from(["cell", "row", "column", "bytes", "none"]))
    texts = st.sampled_from(["", "2", "nan", "1e400", "x", "-1", "0", "\u0661"]) | st.text(max_size=5)
    if kind == "cell":
        row, column = draw(st.integers(0, 2)), draw(st.integers(0, 14))
        rows[row][column] = draw(texts if column else texts | st.sampled_from([*STUDIES, "50000009"]))
    elif kind == "row":
        rows.insert(draw(st.integers(0, 3)), draw(st.lists(texts, max_size=17)))
    elif kind == "column":
        column = draw(st.integers(0, 14))
        rows = [row[:column] + row[column + 1 :] for row in rows]
    content = encode_csv(rows)
    if kind == "bytes":
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place + draw(st.integers(0, 4)) :]
    return content


@pytest.mark.slow
@given(tables())
@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
def test_a_hostile_radiologists_table_is_read_or_refused_in_one_line(root, content):
    (root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_bytes(content)
    try:
        table = read_radiologist(root, images=read_images(root))
    except DatasetError as error:
        check_message(error)
        return
    assert set(table["study_id"]) <= {50000001, 50000002} and table["study_id"].is_unique
    assert set(table["subject_id"]) <= {10000001, 10000002}
    assert table[list(LABELS)].isin([1, 0, -1]).where(table[list(LABELS)].notna(), other=True).all(axis=None)
