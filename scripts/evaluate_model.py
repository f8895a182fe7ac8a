"""Measures classifiers on images of other collections: external validation.

    # A minute on a laptop: a model of the synthetic sample on another synthetic sample.
    python scripts/run_classification.py --evaluate_test --output_dir runs/first
    python scripts/make_sample_data.py other_data --seed 1
    python scripts/evaluate_model.py runs/first --data_dir other_data --output_dir runs/external

    # Two models on two collections, recalibrated on each, with conformal prediction sets of 90 % coverage.
    python scripts/evaluate_model.py runs/vit-1k my-lab/cxr --hub_dir /data/hub \\
        --data_dir /data/nih /data/padchest --recalibrate validation --conformal 0.1

Nothing is trained. Each model sees the whole images of the test split of each folder. Labels are matched by
their names, and read by the label rule of the model. The output folder gets evaluation.html, evaluation.md,
evaluation.csv, evaluation.json, figures, and private tables of predictions. docs/external-validation.md
explains the numbers.
"""

from cxr.cli import evaluating

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    evaluating.parse_args(None, description=__doc__)

import argparse
import functools
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cxr.data.images import LabelledImages
from cxr.data.images import are_equalized
from cxr.data.images import check_studies
from cxr.data.images import load_images
from cxr.data.images import user_errors
from cxr.data.loading import whole_image_loader
from cxr.data.sources import REPOSITORY
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.evaluation.intervals import NUM_RESAMPLES
from cxr.external import measuring
from cxr.external.matching import Match
from cxr.external.matching import choose_equalizing
from cxr.external.matching import make_transform
from cxr.external.matching import match
from cxr.external.overlap import find_overlap
from cxr.external.overlap import name_of
from cxr.external.overlap import overlap_in_words
from cxr.external.report import by_folder
from cxr.external.report import slug_of
from cxr.external.report import write_report
from cxr.external.subject import RULE_FLAGS
from cxr.external.subject import Subject
from cxr.external.subject import load_subject
from cxr.external.tables import as_text
from cxr.run_folder.evaluation_record import Evaluation
from cxr.run_folder.evaluation_record import EvaluationResults
from cxr.run_folder.evaluation_record import Metric
from cxr.run_folder.files import make_output_dir
from cxr.run_folder.record import RunRecord
from cxr.run_folder.record import installed_versions
from cxr.training.scores import Scores
from cxr.training.scores import make_scores
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm.auto import tqdm

from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.tables import resolve_root

CHOOSABLE = ("view", "evaluation_level", *RULE_FLAGS)  # the flags that replace a part of a model's own rule
Loader = Callable[[Path, LabelRule, int], dict[str, LabelledImages]]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return evaluating.parse_args(argv, description=__doc__)


# Measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model on a folder: the images by split, and how they are labelled and prepared."""

    subject: Subject
    data_dir: Path
    data: str  # name of the folder
    match: Match
    images: dict[str, LabelledImages]
    equalizes: bool
    notes: list[str]

    def predict(self, split: str, *, batch_size: int) -> Scores:
        """Returns what the model says about the images of a split, by image or by study."""
        classifier, images = self.subject.classifier, self.images[split]
        transform = make_transform(classifier.image_size, equalizes=self.equalizes)
        loader = whole_image_loader(images, transform, batch_size=batch_size, device=classifier.device)
        parts = []
        what = f"{self.subject.name} on {self.data}, {split}"
        with tqdm(total=len(images), desc=what, unit="image", leave=False) as bar:
            for batch in loader:
                parts.append(classifier.logits(batch["image"]))
                bar.update(len(parts[-1]))
        logits = torch.cat(parts)
        if images.is_multi_label:  # the folder may lack some findings of the model
            logits = logits[:, [classifier.findings.index(name) for name in images.label_names]]
        labels = torch.from_numpy(images.labels.copy())
        return make_scores(logits, labels, images, level=self.match.level, split=split)


def make_case(subject: Subject, data_dir: Path, data: str, load: Loader, args: argparse.Namespace) -> Case:
    """Loads the images of a folder with the labels of a model. Raises UserError if one has no test images."""
    chosen = {name: getattr(args, name) for name in CHOOSABLE}
    matched = match(subject, data_dir, chosen)
    images = load(data_dir, matched.rule, subject.classifier.shortest_side)
    needed = ["test", *["validation"] * bool(args.recalibrate or args.conformal)]
    for split in needed:
        if split not in images:
            flag = " for --recalibrate and --conformal" if split == "validation" else ""
            raise UserError(
                f"--data_dir {data_dir}: found no {split} images with a label of {subject.name}, expected "
                f'some{flag}: write "{split}" in the split column of its table for the patients to use'
            )
    images = {split: images[split] for split in needed}
    if matched.level == "study":
        check_studies(images)
    equalized = are_equalized(images["test"], data_dir)
    equalizes, notes = choose_equalizing(subject, args.equalize, are_equalized=equalized)
    return Case(
        subject=subject,
        data_dir=data_dir,
        data=data,
        match=matched,
        images=images,
        equalizes=equalizes,
        notes=notes,
    )


def evaluate(
    case: Case, args: argparse.Namespace, *, label: str, before: tuple[str, Scores] | None
) -> tuple[Evaluation, Scores]:
    """Measures a model on a folder; `before` is the first folder that it was measured on, with its name."""
    subject, images = case.subject, case.images["test"]
    scores = {split: case.predict(split, batch_size=args.batch_size) for split in case.images}
    internal, reference = next(iter(subject.measured.values()), None), subject.measured.get("validation")
    splits = measuring.Splits(
        test=scores["test"],
        validation=scores.get("validation"),
        internal=internal,
        reference=reference or (before and before[1]),
        reference_name="its validation images" if reference else before[0] if before else "",
    )
    classifier = subject.classifier
    of_finding = dict(zip(classifier.findings, classifier.thresholds))
    names = images.label_names if images.is_multi_label else images.label_names[1:]
    findings = measuring.measure_findings(
        splits,
        [of_finding[name] for name in names],
        recalibrates=args.recalibrate is not None,
        alpha=args.conformal,
    )
    macro, left_out = measuring.macro_metrics(scores["test"])
    means_there, missing = measuring.internal_macro(internal, names, left_out)
    overlap = find_overlap(subject, case.data_dir, images)
    warnings = overlap_in_words(overlap, num_images=len(images))
    found = Evaluation(
        model=label,
        data=case.data,
        task=case.match.rule.task,
        **{name: getattr(case.match.rule, name) for name in ("view", "uncertain", "blank")},
        labeler=case.match.labeler,
        evaluation_level=case.match.level,
        equalizes=case.equalizes,
        num_images=len(images),
        num_patients=len(set(images["subject_id"])),
        internal_split=internal and f"{internal.split} of its training",
        macro=macro,
        internal_macro=means_there,
        left_out=left_out,
        findings=findings,
        overlap=overlap,
        notes=[*warnings, *case.match.notes, *case.notes, *missing, *measuring.doubts(scores["test"])],
    )
    return with_card(found, subject) if internal is None else found, scores["test"]


def with_card(found: Evaluation, subject: Subject) -> Evaluation:
    """Returns the evaluation with the figures of the model's card as the internal ones, without intervals."""
    if not subject.card:
        return found
    splits = [split for split, _ in subject.card]
    split = "test" if "test" in splits else splits[0]
    by_card = {name: Metric(value=value) for (one, name), value in subject.card.items() if one == split}
    where = f"{split}, by its card{', all its findings' * found.is_multi_label}"
    return found.model_copy(update={"internal_split": where, "by_card": by_card})


def label_models(names: list[str]) -> dict[str, str]:
    """Returns short names: of a model in a run folder, the name of the run, if no other model has it."""
    paths = [Path(name) for name in names]
    short = [path.parent.name if path.name == "model" and path.is_dir() else str(path) for path in paths]
    return {name: one if one and short.count(one) == 1 else name for name, one in zip(names, short)}


def label_folders(folders: list[Path]) -> dict[Path, str]:
    short = [name_of(folder) for folder in folders]
    return {folder: one if short.count(one) == 1 else str(folder) for folder, one in zip(folders, short)}


# The script -------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, output_dir: Path) -> EvaluationResults:
    """Evaluates all models on all folders, and writes the tables of predictions."""
    with user_errors():
        for folder in args.data_dir:
            resolve_root(folder)
    source = {"device": args.device, "hub_dir": args.hub_dir, "revision": args.model_revision}
    subjects = [load_subject(name, **source) for name in args.models]
    labels, folders = label_models(args.models), label_folders(args.data_dir)

    @functools.cache
    def load(data_dir: Path, rule: LabelRule, shortest_side: int) -> dict[str, LabelledImages]:
        options = {"on_bad_image": args.on_bad_image, "cache_dir": args.cache_dir, "shows_progress": True}
        options |= {"num_proc": args.preprocessing_num_workers, "needs": ()}
        return load_images(data_dir, rule, shortest_side=shortest_side, **options)

    cases = [
        make_case(subject, folder, name, load, args)
        for folder, name in folders.items()
        for subject in subjects
    ]
    record, evaluations, scores = RunRecord(output_dir, enabled=True), [], {}
    for case in tqdm(cases, desc="evaluations", disable=len(cases) == 1):
        label = labels[case.subject.name]
        before = next(((data, one) for (data, model), one in scores.items() if model == label), None)
        found, of_test = evaluate(case, args, label=label, before=before)
        record.write_predictions(f"predictions_{slug_of(label, case.data)}.csv", of_test.table())
        evaluations.append(found)
        scores[case.data, label] = of_test
    pairs = [
        (folder[0].data, *((one.model, scores[one.data, one.model]) for one in pair))
        for folder in by_folder(evaluations)
        for pair in itertools.combinations(folder, 2)
    ]
    compared = [measuring.compare_models(*pair) for pair in pairs]
    by_finding = [one for pair in pairs for one in measuring.compare_findings(*pair)]
    return EvaluationResults(
        evaluations=evaluations,
        differences=measuring.corrected([one for one in compared if not isinstance(one, str)]),
        differences_by_finding=measuring.corrected(by_finding),
        not_compared=[one for one in compared if isinstance(one, str)],
        num_resamples=NUM_RESAMPLES,
        versions=installed_versions(),
    )


def print_results(results: EvaluationResults, console: Console) -> None:
    shown = Table(title="AUROC, with its 95 % interval over patients")
    for name in ("model", "folder", "external", "internal"):
        shown.add_column(name, overflow="fold")
    for one in results.evaluations:
        values = (as_text(one.headline("auroc", internal=internal)) for internal in (False, True))
        shown.add_row(escape(one.model), escape(one.data), *map(escape, values))
    console.print(shown)
    for one in results.evaluations:
        for note in one.notes:
            console.print(f"{one.model} on {one.data}: {note}", highlight=False, markup=False)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    output_dir = args.output_dir or REPOSITORY / "runs" / f"evaluation-{time.strftime('%Y%m%d-%H%M%S')}"
    make_output_dir(output_dir)
    results = measure(args, output_dir)
    write_report(results, output_dir)
    print_results(results, Console())
    print(f"Report: {output_dir / 'evaluation.html'}")


if __name__ == "__main__":
    run_script(main)
