"""Sex, age, race and scanner of an image, from MIMIC-IV's tables and the text of the procedure."""

import time

import numpy as np
import pandas as pd
import pytest
from mimic_tables import refusal
from mimic_tables import write_csv

from mimic_cxr_dataset import patients
from mimic_cxr_dataset.patients import OTHER_RACE
from mimic_cxr_dataset.patients import UNKNOWN

PATIENT_HEADER = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
PATIENTS = [
    [10000001, "F", 52, 2180, "2014 - 2016", ""],
    [10000002, "M", 18, 2150, "2008 - 2010", "2152-01-01"],
    [10000003, "F", 91, 2110, "2011 - 2013", ""],
]
ADMISSIONS = [[10000001, 20000001, "WHITE - RUSSIAN"], [10000002, 20000002, "BLACK/CAPE VERDEAN"]]


def write_hosp(folder, *, rows=PATIENTS, admissions=ADMISSIONS, race="race", ext=".csv.gz"):
    """Writes both tables with columns that are not read, as the real ones have."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / f"patients{ext}", PATIENT_HEADER, rows)
    write_csv(folder / f"admissions{ext}", ["subject_id", "hadm_id", race], admissions)
    return folder


def races_of(folder, texts, **options):
    """Returns the race of a patient with an admission per text."""
    write_hosp(folder, admissions=[[10000001, 20000001 + n, text] for n, text in enumerate(texts)], **options)
    return patients.read_patients(folder).loc[10000001, "race"]


@pytest.mark.parametrize(("ext", "race"), [(".csv.gz", "race"), (".csv", "race"), (".csv.gz", "ethnicity")])
def test_both_tables_give_a_row_per_patient_packed_or_not_and_of_version_1(tmp_path, ext, race):
    table = patients.read_patients(write_hosp(tmp_path / "hosp", ext=ext, race=race))
    assert table.index.tolist() == [10000001, 10000002, 10000003] and table.index.name == "subject_id"
    assert table.columns.tolist() == ["sex", "anchor_age", "anchor_year", "race"]
    assert table["sex"].tolist() == ["female", "male", "female"]
    assert table["anchor_age"].tolist() == [52, 18, 91]
    assert table["anchor_year"].tolist() == [2180, 2150, 2110]
    assert table["race"].tolist() == ["White", "Black", OTHER_RACE]


@pytest.mark.parametrize(
    ("text", "race"),
    [
        ("WHITE", "White"),
        ("WHITE - BRAZILIAN", "White"),
        ("PORTUGUESE", "White"),
        ("BLACK/AFRICAN AMERICAN", "Black"),
        ("ASIAN - SOUTH EAST ASIAN", "Asian"),
        ("HISPANIC OR LATINO", "Hispanic"),
        ("HISPANIC/LATINO - PUERTO RICAN", "Hispanic"),
        ("SOUTH AMERICAN", "Hispanic"),
        ("Asian", "Asian"),
        ("AMERICAN INDIAN/ALASKA NATIVE", OTHER_RACE),
        ("NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER", OTHER_RACE),
        ("MULTIPLE RACE/ETHNICITY", OTHER_RACE),
        ("UNABLE TO OBTAIN", OTHER_RACE),
        ("PATIENT DECLINED TO ANSWER", OTHER_RACE),
        ("OTHER", OTHER_RACE),
        ("", OTHER_RACE),
    ],
)
def test_texts_of_mimic_are_one_of_five_races(tmp_path, text, race):
    assert races_of(tmp_path, [text]) == race


def test_a_patient_has_the_most_frequent_race_and_of_equals_the_first_that_is_named(tmp_path):
    assert races_of(tmp_path, ["ASIAN", "WHITE", "ASIAN - KOREAN"]) == "Asian"
    assert races_of(tmp_path, ["UNKNOWN", "OTHER", "WHITE"]) == OTHER_RACE
    for texts in (["UNKNOWN", "HISPANIC OR LATINO"], ["HISPANIC OR LATINO", "UNKNOWN"]):
        assert races_of(tmp_path, texts) == "Hispanic"
    for texts in (["ASIAN", "BLACK/AFRICAN"], ["BLACK/AFRICAN", "ASIAN"]):
        assert races_of(tmp_path, texts) == "Black"


def test_admissions_of_other_patients_are_not_used(tmp_path):
    table = patients.read_patients(write_hosp(tmp_path, admissions=[[10000009, 20000001, "ASIAN"]]))
    assert len(table) == 3 and set(table["race"]) == {OTHER_RACE}


def test_images_get_sex_race_and_the_age_in_the_year_of_the_study(tmp_path):
    table = patients.read_patients(write_hosp(tmp_path))
    rows = pd.DataFrame(
        [
            (10000001, "21801231", "female", "40-59", "White"),
            (10000001, "21880101", "female", "60-79", "White"),
            (10000001, "21670101", "female", "18-39", "White"),
            (10000001, "22080101", "female", "80+", "White"),
            (10000002, "21491231", "male", UNKNOWN, "Black"),  # 17 years
            (10000002, "21500101", "male", "18-39", "Black"),
            (10000002, "", "male", UNKNOWN, "Black"),
            (10000009, "21801231", UNKNOWN, UNKNOWN, OTHER_RACE),
            (10000003, "21100101", "female", "80+", OTHER_RACE),
        ],
        columns=["subject_id", "study_date", "sex", "age", "race"],
        index=[7, 5, 3, 1, 2, 4, 6, 8, 0],
    )
    found = patients.describe_patients(rows, table)
    pd.testing.assert_frame_equal(found, rows[["sex", "age", "race"]], check_dtype=False)
    assert found.notna().all(axis=None)
    assert patients.describe_patients(rows[:0], table).empty


def test_scanner_follows_from_the_text_of_the_procedure():
    texts = {
        "CHEST (PORTABLE AP)": "portable",
        "chest (portable ap)": "portable",
        "CHEST PORT. LINE PLACEMENT": "portable",
        "CHEST (PA AND LAT) PORT": "portable",
        "CHEST (PA AND LAT)": "fixed",
        "CHEST (SINGLE VIEW)": "fixed",
        "CHEST, SUPPORT DEVICES": "fixed",
        "": UNKNOWN,
        "  ": UNKNOWN,
    }
    procedures = pd.Series(list(texts), index=range(10, 19))
    expected = pd.Series(list(texts.values()), index=range(10, 19))
    pd.testing.assert_series_equal(patients.scanner_of(procedures), expected, check_dtype=False)


def test_a_folder_that_is_not_hosp_is_one_line_that_says_which_is(tmp_path):
    hosp = write_hosp(tmp_path / "mimic-iv" / "hosp")
    refusal(
        lambda: patients.read_patients(tmp_path / "mimic-iv"), "mimic-iv has no patients.csv", f"use {hosp}."
    )
    refusal(lambda: patients.read_patients(tmp_path / "none"), "none is missing", "expected the folder hosp/")
    refusal(lambda: patients.read_patients(hosp / "patients.csv.gz"), "not a folder")
    (hosp / "admissions.csv.gz").unlink()
    refusal(lambda: patients.read_patients(hosp), "has no admissions.csv[.gz]", "download it")


def change_cell(line, column, value):
    rows = [list(row) for row in PATIENTS]
    rows[line - 2][PATIENT_HEADER.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (change_cell(3, "gender", "X"), ["line 3", "gender is 'X'", "F or M"]),
        (change_cell(3, "gender", ""), ["line 3", "gender is ''", "F or M"]),
        (change_cell(2, "anchor_age", "fifty"), ["line 2", "anchor_age is 'fifty'", "from 0 to 130"]),
        (change_cell(2, "anchor_age", "-1"), ["line 2", "anchor_age is '-1'", "from 0 to 130"]),
        (change_cell(2, "anchor_age", "50.5"), ["line 2", "anchor_age is '50.5'", "whole number"]),
        (change_cell(4, "anchor_year", ""), ["line 4", "anchor_year is ''", "from 1000 to 9999"]),
        (change_cell(4, "subject_id", 10000001), ["line 4", "wrong subject_id", "one row per patient"]),
        (change_cell(4, "subject_id", "p1"), ["line 4", "wrong subject_id", "a whole number"]),
    ],
)
def test_a_wrong_value_is_one_line_that_names_file_line_and_what_is_expected(tmp_path, rows, parts):
    message = refusal(
        lambda: patients.read_patients(write_hosp(tmp_path, rows=rows)), tmp_path / "patients.csv.gz", *parts
    )
    assert "1000000" not in message


def test_tables_of_another_version_are_one_line_that_says_which_column_is_missing(tmp_path):
    write_hosp(tmp_path)
    write_csv(
        tmp_path / "patients.csv", ["ROW_ID", "SUBJECT_ID", "GENDER", "DOB"], [[1, 2, "F", "2075-03-13"]]
    )
    refusal(lambda: patients.read_patients(tmp_path), "patients.csv has no column 'subject_id'", "MIMIC-IV")
    write_csv(tmp_path / "patients.csv", ["subject_id", "gender", "dob"], [[2, "F", "2075-03-13"]])
    refusal(lambda: patients.read_patients(tmp_path), "no column 'anchor_age'", "another version", "download")
    (tmp_path / "patients.csv").unlink()
    write_csv(tmp_path / "admissions.csv", ["subject_id", "hadm_id"], [[10000001, 2]])
    refusal(lambda: patients.read_patients(tmp_path), "admissions.csv has no column 'race'", "download")


@pytest.mark.timing
def test_tables_of_the_published_size_are_read_within_seconds(tmp_path):
    generator = np.random.default_rng(0)
    subjects = 10_000_000 + 33 * np.arange(300_000)
    ages, years = generator.integers(18, 91, 300_000), generator.integers(2110, 2200, 300_000)
    columns = {"subject_id": subjects, "gender": "F", "anchor_age": ages, "anchor_year": years, "dod": ""}
    pd.DataFrame(columns).to_csv(tmp_path / "patients.csv", index=False)
    texts = generator.choice(["WHITE", "BLACK/AFRICAN", "UNKNOWN"], 430_000)
    admissions = {"subject_id": generator.choice(subjects[:180_000], 430_000), "race": texts}
    pd.DataFrame({**admissions, "edregtime": "2180-05-06 19:17:00"}).to_csv(
        tmp_path / "admissions.csv", index=False
    )
    start = time.perf_counter()
    table = patients.read_patients(tmp_path)
    assert time.perf_counter() - start < 10
    assert len(table) == 300_000
