"""Reads sex, age and race of the patients from MIMIC-IV's hosp/ folder; says which scanner made an image."""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b".
import re
from pathlib import Path

import numpy as np
import pandas as pd

from .csv_files import parse_ids
from .csv_files import parse_numbers
from .csv_files import read_csv
from .csv_files import reject
from .errors import DatasetError

UNKNOWN = "unknown"
SEXES = {"F": "female", "M": "male"}
AGES = {18: "18-39", 40: "40-59", 60: "60-79", 80: "80+"}  # the first year of each group
OTHER_RACE = "other or unknown"
RACES = ("White", "Black", "Asian", "Hispanic", OTHER_RACE)
# How MIMIC's texts begin: "WHITE - RUSSIAN" or "HISPANIC/LATINO - CUBAN". The last two follow the census
# of the United States: people of Portugal are White, as of all Europe; those of South America are Hispanic.
RACE_PREFIXES = {
    "WHITE": "White",
    "BLACK": "Black",
    "ASIAN": "Asian",
    "HISPANIC": "Hispanic",
    "PORTUGUESE": "White",
    "SOUTH AMERICAN": "Hispanic",
}
PATIENT_COLUMNS = ("subject_id", "gender", "anchor_age", "anchor_year")
SOURCE = "MIMIC-IV (https://physionet.org/content/mimiciv/)"


def read_patients(patients_dir: str | Path) -> pd.DataFrame:
    """Returns a row per patient of MIMIC-IV, by subject_id: sex, anchor_age, anchor_year, race.

    The race is the most frequent of RACES over the patient's admissions; of equally frequent ones, the first
    in RACES. It is OTHER_RACE for a patient without an admission. An admission of a patient who is not in
    patients.csv is not used. Raises DatasetError if the folder or a table is not as MIMIC-IV's hosp/ has it.
    """
    folder = Path(patients_dir).expanduser()
    path, admissions_path = _find_table(folder, "patients"), _find_table(folder, "admissions")
    patients = parse_ids(path, _read_columns(path, PATIENT_COLUMNS))
    reject(patients["subject_id"].duplicated(), path, patients["subject_id"], "one row per patient")
    reject(~patients["gender"].isin(list(SEXES)), path, patients["gender"], " or ".join(SEXES))
    for column, low, high in (("anchor_age", 0, 130), ("anchor_year", 1000, 9999)):
        numbers = parse_numbers(patients[column])
        is_right = (numbers >= low) & (numbers <= high) & (numbers == np.floor(numbers))
        reject(~is_right, path, patients[column], f"a whole number from {low} to {high}")
        patients[column] = numbers.astype("int64")
    patients.insert(1, "sex", patients.pop("gender").map(SEXES))
    patients = patients.set_index("subject_id")
    races = _most_frequent_races(admissions_path)
    return patients.assign(race=races.reindex(patients.index, fill_value=OTHER_RACE))


def describe_patients(rows: pd.DataFrame, patients: pd.DataFrame) -> pd.DataFrame:
    """Returns the sex, age group and race of the patient of each image; `rows` has subject_id and study_date.

    The age is that in the year of the study: anchor_age + year of study_date - anchor_year. The date is as
    `read_images` has it: YYYYMMDD, or "". Below 18 the age is UNKNOWN, as without a date. A patient without a
    row in `patients`, the table of `read_patients`, has sex and age UNKNOWN and race OTHER_RACE.
    """
    known = patients.reindex(rows["subject_id"]).set_axis(rows.index)
    year = rows["study_date"].str.extract("^([0-9]{4})[0-9]{4}$", expand=False).astype("float64")
    age = known["anchor_age"] + year - known["anchor_year"]
    group = pd.cut(age, [*AGES, np.inf], right=False, labels=list(AGES.values())).astype(object)
    return pd.DataFrame(
        {
            "sex": known["sex"].fillna(UNKNOWN),
            "age": group.fillna(UNKNOWN),
            "race": known["race"].fillna(OTHER_RACE),
        }
    )


def scanner_of(procedures: pd.Series) -> pd.Series:
    """Returns the scanner that made each image: "portable", "fixed" or UNKNOWN.

    `procedures` are the texts of the column PerformedProcedureStepDescription. With the word "portable" or
    "port", as in "CHEST (PORTABLE AP)", it is portable; without it, as in "CHEST (PA AND LAT)", fixed.
    """
    return procedures.map({text: _scanner(text) for text in procedures.unique()})


def _scanner(procedure: str) -> str:
    if not procedure.strip():
        return UNKNOWN
    return "portable" if re.search(r"\bport(able)?\b", procedure, flags=re.IGNORECASE) else "fixed"


def _find_table(folder: Path, table: str) -> Path:
    expected = f"expected the folder hosp/ of {SOURCE}, which holds patients.csv[.gz] and admissions.csv[.gz]"
    if not folder.is_dir():
        found = "not a folder" if folder.exists() else "missing"
        raise DatasetError(f"patients_dir {folder} is {found}: {expected}.")
    names = (f"{table}.csv", f"{table}.csv.gz")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        is_parent = any((folder / "hosp" / name).is_file() for name in names)
        advice = f"use {folder / 'hosp'}" if is_parent else "download it, or correct patients_dir"
        raise DatasetError(f"patients_dir {folder} has no {table}.csv[.gz]: {expected}; {advice}.")
    return path


def _read_columns(path: Path, columns: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Returns the columns as text. Raises DatasetError if one is missing, as in tables of MIMIC-III."""
    table = read_csv(path, [], optional=(*columns, *optional))
    missing = [column for column in columns if column not in table]
    if missing:
        raise DatasetError(
            f"{path} has no column {missing[0]!r}: expected the table of {SOURCE}, not of another version; "
            "download that one."
        )
    return table


def _most_frequent_races(path: Path) -> pd.Series:
    """Returns the race of each patient with an admission, by subject_id."""
    table = _read_columns(path, ("subject_id",), optional=("race", "ethnicity"))
    column = next((name for name in ("race", "ethnicity") if name in table), None)
    if column is None:  # "ethnicity" was its name in version 1.0
        raise DatasetError(f"{path} has no column 'race': expected the table of {SOURCE}; download that one.")
    table = parse_ids(path, table)
    races = table[column].map({text: _race(text) for text in table[column].unique()})
    counts = table.groupby(["subject_id", races.rename("race")]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(RACES), fill_value=0)
    return pd.Series(np.array(RACES)[counts.to_numpy().argmax(axis=1)], index=counts.index)


def _race(text: str) -> str:
    text = text.strip().upper()
    return next((race for prefix, race in RACE_PREFIXES.items() if text.startswith(prefix)), OTHER_RACE)
