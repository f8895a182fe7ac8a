"""A metric module for `evaluate`: scikit-learn's metrics of binary classification from probabilities.

metric = evaluate.load("chest_xray_metrics")  # the folder: no network
metric.compute(references=[0, 1, 1], predictions=[0.2, 0.7, 0.4], threshold=0.5)
"""

import datasets
import evaluate
import numpy as np
from sklearn import metrics

_DESCRIPTION = """\
Accuracy, precision, recall and F1 of the positive class at a threshold; AUROC and average precision over all
thresholds.
"""

_KWARGS_DESCRIPTION = """\
Args:
    references: labels, 0 or 1.
    predictions: probabilities of label 1.
    threshold: a probability at or above it is called positive (default 0.5).
Returns:
    accuracy, precision, recall, f1, auroc, average_precision, threshold, n. AUROC and average precision are
    None if there is only one class; precision, recall and F1 are 0 where they would divide by zero.
"""

_CITATION = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011."


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ChestXrayMetrics(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, threshold=0.5):
        labels, probabilities = np.asarray(references), np.asarray(predictions)
        calls = (probabilities >= threshold).astype(int)
        both_classes = len(np.unique(labels)) == 2
        average_precision = None
        if both_classes:  # at most 1, which the sum of rounded numbers may exceed
            average_precision = min(float(metrics.average_precision_score(labels, probabilities)), 1.0)
        return {
            "accuracy": float(metrics.accuracy_score(labels, calls)),
            "precision": float(metrics.precision_score(labels, calls, zero_division=0)),
            "recall": float(metrics.recall_score(labels, calls, zero_division=0)),
            "f1": float(metrics.f1_score(labels, calls, zero_division=0)),
            "auroc": float(metrics.roc_auc_score(labels, probabilities)) if both_classes else None,
            "average_precision": average_precision,
            "threshold": float(threshold),
            "n": len(labels),
        }
