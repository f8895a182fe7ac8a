"""What a model says about a folder is measured with the resamples of the images that need intervals only."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from cxr.external import measuring
from cxr.external import tables
from cxr.training.scores import Scores


def scores_of(split: str, *, seed: int) -> Scores:
    generator, num_images = np.random.default_rng(seed), 60
    labels = generator.integers(0, 2, (num_images, 2))
    labels[:5, 1] = measuring.MASKED
    patients = [f"{split}{number // 2}" for number in range(num_images)]
    rows = pd.DataFrame({"dicom_id": range(num_images), "subject_id": patients})
    probabilities = generator.random((num_images, 2))
    return Scores(
        split=split, names=("Edema", "Fracture"), rows=rows, labels=labels, probabilities=probabilities
    )


@pytest.mark.parametrize(
    ("num_positive", "said"), [(8, ": 4 positive in the test split"), (42, "9 negative"), (20, "")]
)
def test_intervals_by_fewer_than_ten_patients_of_a_class_are_doubted(num_positive, said):
    """Each patient has two images."""
    scores = scores_of("test", seed=0)
    labels = (np.arange(60) < num_positive).astype(int)
    scores = dataclasses.replace(scores, labels=labels, probabilities=scores.probabilities[:, 0])
    doubts = measuring.doubts(scores)
    if said:
        assert "Intervals are too narrow" in doubts[0] and said in doubts[0]
    assert len(doubts) == bool(said)


def test_only_images_that_get_intervals_are_resampled(monkeypatch):
    drawn, weights_of = set(), measuring.weights_of

    def note(patients):
        drawn.update(patients)
        return weights_of(patients)

    monkeypatch.setattr(measuring, "weights_of", note)
    test, validation, reference = (scores_of(name, seed=n) for n, name in enumerate(("t", "v", "r")))
    splits = measuring.Splits(
        test=test, validation=validation, internal=None, reference=reference, reference_name="others"
    )
    found = measuring.measure_findings(splits, [0.5, 0.5], recalibrates=True, alpha=0.025)
    assert drawn == {*test.rows["subject_id"]}
    one = found["Fracture"]
    assert tables._conformal([("model", "Fracture", one)]).note.startswith("At least 97.5 % of the images")
    assert (one.external.n, one.external.num_patients) == (55, 28)  # five images without a label
    assert one.external.metrics["auroc"].interval and one.conformal.metrics["coverage"].interval
    assert one.recalibrated.after.metrics["auroc"].value == pytest.approx(one.external.metrics["auroc"].value)
