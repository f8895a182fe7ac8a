"""A model without its run folder: its internal figures are those of its card, and nothing else is made up."""

from types import SimpleNamespace

import evaluate_model
import pytest
from cxr.external.tables import HEADINGS
from cxr.external.tables import csv_lines
from cxr.external.tables import make_tables
from cxr.run_folder.evaluation_record import EvaluatedFinding
from cxr.run_folder.evaluation_record import Evaluation
from cxr.run_folder.evaluation_record import Measurement
from cxr.run_folder.evaluation_record import Metric
from cxr.run_folder.evaluation_record import Overlap

CARD = {("validation", "auroc"): 0.9, ("test", "auroc"): 0.8, ("validation", "average_precision"): 0.7}


def evaluation(*, macro: dict[str, Metric]) -> Evaluation:
    metrics = dict.fromkeys(HEADINGS, Metric(value=0.6))
    measured = Measurement(n=20, num_positive=5, num_patients=10, threshold=0.5, metrics=metrics)
    rule = {"task": "finding", "view": "frontal", "uncertain": "negative", "blank": "negative"}
    return Evaluation(
        model="model",
        data="data",
        **rule,
        labeler=None,
        evaluation_level="image",
        equalizes=False,
        num_images=20,
        num_patients=10,
        internal_split=None,
        macro=macro,
        left_out=[],
        findings={"Edema": EvaluatedFinding(external=measured)},
        overlap=Overlap(same_name=None, num_unknown_trainings=0, num_same_ids=None, num_same_pixels=None),
        notes=[],
    )


@pytest.mark.parametrize("macro", [{}, {"auroc": Metric(value=0.6)}])
def test_figures_of_a_card_are_those_of_its_test_split_without_counts_or_intervals(macro):
    found = evaluate_model.with_card(evaluation(macro=macro), SimpleNamespace(card=CARD))
    assert found.internal_split.startswith("test, by its card")
    assert found.headline("auroc", internal=True) == Metric(value=0.8)
    assert found.headline("average_precision", internal=True) is None
    (line, *_) = csv_lines([found])
    assert line["internal_auroc"] == 0.8 and "internal_n" not in line
    assert [row[2] for row in make_tables([found])[0].rows] == ["external", "internal"]
