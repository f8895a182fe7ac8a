"""Draws the patients of a synthetic sample and their admissions, as MIMIC-IV has them in hosp/."""

from collections import defaultdict
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta

import numpy as np
import pandas as pd

from cxr.synthetic.exposure import patient_traits
from cxr.synthetic.plan import HOSPITAL
from cxr.synthetic.plan import Study
from cxr.synthetic.plan import date_and_time
from cxr.synthetic.plan import random_generator

# Together with those below, one patient in six has no row, as 11,245 of the 65,379 of MIMIC-CXR.
WITHOUT_ROW = 0.135
MIN_AGE, MAX_AGE = 18, 91  # 91 is the age that MIMIC-IV gives to everybody above 89
# The dates of a patient's studies are drawn independently, and may be 89 years apart. The age is drawn so
# that the patient is of MIN_AGE to MAX_AGE years at every study; where that cannot be, there is no row.
MAX_YEARS_BETWEEN_STUDIES = 70
MAX_ANCHOR_SHIFT = 3  # years from the first study to anchor_year
# MIMIC's texts, and how many of 100 patients have each.
RACES = {
    "WHITE": 38,
    "WHITE - RUSSIAN": 5,
    "WHITE - OTHER EUROPEAN": 5,
    "BLACK/AFRICAN AMERICAN": 14,
    "BLACK/CAPE VERDEAN": 4,
    "ASIAN": 5,
    "ASIAN - CHINESE": 6,
    "HISPANIC/LATINO - PUERTO RICAN": 6,
    "HISPANIC/LATINO - DOMINICAN": 5,
    "OTHER": 4,
    "UNKNOWN": 5,
    "PATIENT DECLINED TO ANSWER": 3,
}
OTHER_RACE_NOTED = 0.12  # of admissions
PATIENT_COLUMNS = ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod")
ADMISSION_COLUMNS = ("subject_id", "admittime", "dischtime", "deathtime", "admission_type", "race")
ANCHOR_YEAR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016")
ADMISSION_TYPES = ("EW EMER.", "OBSERVATION ADMIT", "URGENT", "ELECTIVE")
NUM_ADMISSIONS = (0.05, 0.3, 0.3, 0.2, 0.15)  # how likely 0, 1, ... are
DEAD = 0.15  # of patients: they have a date of death, outside the hospital


def hospital_tables(studies: list[Study], *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the tables patients and admissions, sorted by patient; the latter has a part of its columns."""
    studies_of = defaultdict(list)
    for study in sorted(studies, key=lambda one: one.subject_id):
        studies_of[study.patient].append(study)
    patients, admissions = [], []
    for patient, own in studies_of.items():
        rng = random_generator(seed, HOSPITAL, patient)
        days = sorted(datetime.strptime(date_and_time(one, seed=seed)[0], "%Y%m%d").date() for one in own)
        if rng.random() < WITHOUT_ROW or days[-1].year - days[0].year > MAX_YEARS_BETWEEN_STUDIES:
            continue
        subject, stays = {"subject_id": own[0].subject_id}, draw_admissions(days, rng)
        last_day = max([days[-1], *(stay["dischtime"].date() for stay in stays)])
        gender = "F" if patient_traits(own[0], seed=seed)["breasts"] else "M"
        died = last_day + timedelta(days=int(rng.integers(1, 365))) if rng.random() < DEAD else ""
        patients.append(subject | {"gender": gender} | draw_anchor(days, rng) | {"dod": died})
        admissions += [subject | stay for stay in stays]
    # Not as datetime64, which pandas may write without the time.
    admissions = pd.DataFrame(admissions, columns=list(ADMISSION_COLUMNS), dtype=object)
    numbers = random_generator(seed, HOSPITAL).choice(9_999_999, size=len(admissions), replace=False)
    admissions.insert(1, "hadm_id", 20_000_000 + numbers)
    return pd.DataFrame(patients, columns=list(PATIENT_COLUMNS)), admissions


def draw_anchor(days: list[date], rng: np.random.Generator) -> dict[str, object]:
    """Returns the columns that tell the age of a patient with studies on these days."""
    years, shift = days[-1].year - days[0].year, int(rng.integers(MAX_ANCHOR_SHIFT + 1))
    age = int(rng.integers(MIN_AGE, MAX_AGE - max(years, shift) + 1))  # in the year of the first study
    return {
        "anchor_age": age + shift,
        "anchor_year": days[0].year + shift,
        "anchor_year_group": rng.choice(ANCHOR_YEAR_GROUPS),
    }


def draw_admissions(days: list[date], rng: np.random.Generator) -> list[dict[str, object]]:
    """Returns the admissions of a patient with studies on these days, each at most a year from a study.

    Most of them note one race, as the patient has; a few note another one.
    """
    texts, weights = list(RACES), np.array(list(RACES.values()))
    race, stays = rng.choice(texts, p=weights / weights.sum()), []
    for _ in range(rng.choice(len(NUM_ADMISSIONS), p=NUM_ADMISSIONS)):
        day = days[rng.integers(len(days))]
        after, minutes = int(rng.integers(-365, 366)), int(rng.integers(300, 20_000))
        admitted = datetime.combine(day, time()) + timedelta(days=after, minutes=int(rng.integers(1440)))
        stay = {
            "admittime": admitted,
            "dischtime": admitted + timedelta(minutes=minutes),
            "deathtime": "",
            "admission_type": rng.choice(ADMISSION_TYPES),
            "race": rng.choice(texts) if rng.random() < OTHER_RACE_NOTED else race,
        }
        stays.append(stay)
    return sorted(stays, key=lambda stay: stay["admittime"])
