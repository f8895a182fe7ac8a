"""MIMIC-IV's tables on hostile input: accepted as an oracle in plain Python reads them, or one clear line."""

import re
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mimic_tables import refusal
from test_hostile_dataset import HOSTILE_TEXTS
from test_hostile_dataset import RefusedError
from test_hostile_dataset import cases
from test_hostile_dataset import encode
from test_hostile_dataset import mutated_contents
from test_hostile_dataset import oracle_ids
from test_hostile_dataset import oracle_number
from test_hostile_dataset import oracle_rows
from test_hostile_dataset import require
from test_hostile_dataset import row_mutations

from mimic_cxr_dataset import patients
from mimic_cxr_dataset.patients import OTHER_RACE
from mimic_cxr_dataset.patients import RACES


def sound_tables():
    """Tables of eight patients, of whom five have admissions: {name: rows, the header first}."""
    of_patients = [["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]]
    for number in range(8):
        columns = ["FM"[number % 2], str(18 + 9 * number), str(2120 + 7 * number), "2008 - 2010", ""]
        of_patients.append([str(10000011 + number), *columns])
    admissions = [["subject_id", "hadm_id", "race", "insurance"]]
    texts = ["WHITE", "WHITE - RUSSIAN", "ASIAN", "UNKNOWN", "BLACK/AFRICAN", "PORTUGUESE", "OTHER", ""]
    for number, text in enumerate([*texts, "HISPANIC OR LATINO", "ASIAN - KOREAN"]):
        admissions.append([str(10000011 + number % 5), str(20000001 + number), text, "Other"])
    return {"patients": of_patients, "admissions": admissions}


def oracle_race(text):
    text = text.strip().upper()
    starts = {"White": ("WHITE", "PORTUGUESE"), "Black": "BLACK", "Asian": "ASIAN"}
    starts["Hispanic"] = ("HISPANIC", "SOUTH AMERICAN")
    return next((race for race, start in starts.items() if text.startswith(start)), OTHER_RACE)


def oracle(contents):
    """(subject_id, sex, anchor_age, anchor_year, race) of each patient."""
    rows = oracle_rows(contents["patients"], ["subject_id", "gender", "anchor_age", "anchor_year"])
    admissions = oracle_rows(contents["admissions"], ["subject_id"], optional=("race", "ethnicity"))
    require("race" in admissions[0] or "ethnicity" in admissions[0], "no race")
    for table in (rows, admissions):
        oracle_ids(table)
    require(len({row["subject_id"] for row in rows}) == len(rows), "patient twice")
    found = []
    for row in rows:
        require(row["gender"] in ("F", "M"), "gender")
        age, year = oracle_number(row["anchor_age"]), oracle_number(row["anchor_year"])
        require(age is not None and 0 <= age <= 130 and age == int(age), "age")
        require(year is not None and 1000 <= year <= 9999 and year == int(year), "year")
        own = [one for one in admissions if one["subject_id"] == row["subject_id"]]
        races = Counter(oracle_race(one.get("race", one.get("ethnicity"))) for one in own)
        race = max(RACES, key=lambda race: (races[race], -RACES.index(race))) if own else OTHER_RACE
        sex = {"F": "female", "M": "male"}[row["gender"]]
        found.append((row["subject_id"], sex, int(age), int(year), race))
    return found


def check_against_oracle(folder, contents, *, is_private):
    """Reads the tables; returns whether they were accepted."""
    for name, content in contents.items():
        (folder / f"{name}.csv").write_bytes(content)
    try:
        expected = oracle(contents)
    except RefusedError:
        message = refusal(lambda: patients.read_patients(folder), folder, ".csv")
        if is_private:
            assert not re.search("100000[12][0-9]|200000[01][0-9]", message), message
        return False
    assert list(patients.read_patients(folder).itertuples(name=None)) == expected
    return True


@st.composite
def mutated_tables(draw):
    """Contents of the tables, changed in up to three places, and whether no id may be shown."""
    tables, count = sound_tables(), draw(st.integers(1, 3))
    for _ in range(count):
        draw(row_mutations(tables))
    return encode(tables), count == 1


def test_sound_tables_of_patients_are_read_as_the_oracle_reads_them(tmp_path):
    assert check_against_oracle(tmp_path, encode(sound_tables()), is_private=True)
    assert {race for *_, race in oracle(encode(sound_tables()))} == set(RACES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutated", "count", "at_least"),
    [
        (mutated_tables(), 450, 50),
        (st.tuples(mutated_contents(sound_tables()), st.just(True)), 300, 10),
    ],
    ids=["rows", "bytes"],
)
def test_changed_tables_of_patients_are_refused_in_one_line_or_read_as_the_oracle_reads_them(
    tmp_path, mutated, count, at_least
):
    outcomes = Counter()

    @cases(count)
    @given(mutated)
    def check(drawn):
        contents, is_private = drawn
        outcomes[check_against_oracle(tmp_path, contents, is_private=is_private)] += 1

    check()
    assert min(outcomes[True], outcomes[False]) > at_least


def test_any_date_and_any_text_of_a_procedure_give_a_group():
    table = pd.DataFrame(
        {"sex": ["male"], "anchor_age": [50], "anchor_year": [2150], "race": ["White"]}, index=[1]
    )
    dates = st.one_of(HOSTILE_TEXTS, st.from_regex("[0-9]{8}", fullmatch=True))

    @cases(100)
    @given(dates, HOSTILE_TEXTS)
    def check(date, text):
        rows = pd.DataFrame({"subject_id": [1], "study_date": [date]})
        age = int(date[:4]) - 2100 if re.fullmatch("[0-9]{8}", date) else -1
        group = next((name for first, name in reversed(patients.AGES.items()) if age >= first), "unknown")
        assert patients.describe_patients(rows, table)["age"].tolist() == [group]
        assert set(patients.scanner_of(pd.Series([text]))) <= {"portable", "fixed", "unknown"}

    check()
