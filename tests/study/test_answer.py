"""The answer of a report: which differences it has, their correction, and their verdicts in words."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import report_study
from cxr.evaluation.intervals import Difference
from cxr.evaluation.intervals import holm
from cxr.run_folder.files import write_json
from cxr.study import grid
from cxr.study.answer import Answer
from cxr.study.answer import answer
from cxr.study.answer import format_p
from cxr.study.answer import sentence
from cxr.study.measuring import measure_tables
from cxr.study.report import general_notes
from cxr.study.results import gather_rows
from cxr.study.results import point_of
from finished_runs import classification_results
from finished_runs import write_run

VIT = {"model": "vit-mae-tiny", "augmentation": "mae", "pretrained": False}
RESNET = {"model": "resnet-18", "augmentation": "none", "pretrained": False}
ROWS = (
    ({**VIT, "mask_ratio": 0.0}, 1.0),
    ({**VIT, "mask_ratio": 0.5}, 1.6),
    ({**VIT, "mask_ratio": 0.75}, 2.4),
    (RESNET, 0.6),
    ({**RESNET, "augmentation": "classic"}, 0.6),
    ({**RESNET, "model": "microsoft/resnet-18", "pretrained": True}, 2.0),
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> list:
    """Six rows of two sizes, three seeds each: no row of a ViT is trained as one of a ResNet is."""
    folder = tmp_path_factory.mktemp("runs")
    for number, (row, quality) in enumerate(ROWS):
        for size in (1000, 2000):
            for seed in (0, 1, 2):
                name = folder / f"{number}-{size}-{seed}"
                write_run(name, quality=quality, seed=seed, num_train_images=size, **row)
    return measure_tables(gather_rows([folder]), 200)


def compared(answers: list[Answer], question: str) -> dict[str, Answer]:
    return {one.compared: one for one in answers if one.question.startswith(question)}


def test_each_question_of_the_grid_has_a_row_a_training_size(tables):
    answers = answer(tables)
    by_question = {}
    for one in answers:
        by_question.setdefault(one.question, []).append((one.compared, one.table.name.size))
    sizes = ("1000", "2000")
    assert by_question == {
        "Pretrained or from scratch": [
            ("resnet-18: pretrained (ResNet) against from scratch", size) for size in sizes
        ],
        "Model against model": [
            (f"vit-mae-tiny, from scratch against {other}", size)
            for other in ("resnet-18, from scratch", "ResNet")
            for size in sizes
        ],
        "More or less masking": [
            (f"vit-mae-tiny, from scratch, augmented (mae): {share}% masked against nothing masked", size)
            for share in (50, 75)
            for size in sizes
        ],
        "With or without augmentation": [
            ("resnet-18, from scratch: augmented (classic) against not augmented", size) for size in sizes
        ],
    }


def test_p_is_corrected_over_all_rows_of_the_answer(tables):
    answers = answer(tables)
    assert [one.p for one in answers] == holm([one.difference.p for one in answers])


def test_a_difference_is_that_of_rows_alike_in_all_else_where_there_are_such(tables):
    (one, _) = [one for one in answer(tables) if one.question == "Pretrained or from scratch"]
    aurocs = {row.label: row.values["auroc"] for row in one.table.rows}
    expected = aurocs["ResNet, not augmented"] - aurocs["resnet-18, from scratch, not augmented"]
    assert one.difference.value == pytest.approx(expected) and one.differs_too == ()


def test_a_difference_of_rows_unlike_in_all_is_of_their_means_and_says_what_differs(tables):
    found = compared(answer(tables), "Model")["vit-mae-tiny, from scratch against resnet-18, from scratch"]
    of_model = {}
    for row in found.table.rows:
        of_model.setdefault(row.name.model, []).append(row.values["auroc"])
    means = {model: sum(values) / len(values) for model, values in of_model.items()}
    expected = means["vit-mae-tiny, from scratch"] - means["resnet-18, from scratch"]
    assert found.difference.value == pytest.approx(expected)
    assert found.verdict.endswith("augmentation and masking also differ")


def changed(one: Answer, *, p: float, **changes) -> Answer:
    return dataclasses.replace(one, p=p, **{"differs_too": (), **changes})


def test_the_verdict_says_what_p_was_found_and_what_was_needed(tables):
    one = answer(tables)[0]
    unclear = changed(one, p=0.51).verdict
    assert unclear == "Not distinguishable (p = 0.51 after correction; p < 0.05 needed)"
    assert changed(one, p=0.0123).verdict.startswith("Better: pretrained (ResNet) (p = 0.012 after")
    lower = Difference(value=-0.1, low=-0.2, high=-0.01, p=0.01)
    assert changed(one, p=0.0123, difference=lower).better == "from scratch"


@pytest.mark.parametrize(
    ("p", "said"), [(1.0, "1"), (0.5123, "0.51"), (0.0499, "0.0499"), (0.0502, "0.0502"), (1e-9, "< 0.001")]
)
def test_a_p_value_is_never_rounded_across_what_is_needed(p, said):
    assert format_p(p) == said


def test_the_sentence_says_the_clear_differences_and_how_many_are_not(tables):
    first, second, *others = answer(tables)
    clear = [changed(first, p=0.01), changed(second, p=0.01)]
    values = [f"{one.difference.value:.3f}" for one in clear]
    said = "resnet-18: pretrained (ResNet) is better than from scratch by "
    said += f"{values[0]} with 1,000 and {values[1]} with 2,000 training images"
    assert sentence(clear, tables) == f"{said}."
    one_more = changed(others[0], p=0.3)
    assert sentence([*clear, one_more], tables).startswith(f"{said}; the other 1 difference of AUROC is not")
    assert "the other 2 differences of AUROC are not" in sentence([*clear, one_more, one_more], tables)


def test_the_sentence_never_has_the_needed_p_beside_not(tables):
    unclear = [changed(one, p=0.51) for one in answer(tables)]
    expected = "None of the 12 differences of AUROC is distinguishable from chance "
    assert sentence(unclear, tables) == expected + "(smallest p = 0.51 after correction; p < 0.05 needed)."
    assert sentence(unclear[:1], tables).startswith("The only difference of AUROC is not distinguishable")


def test_runs_that_answer_nothing_are_said_to(tmp_path):
    write_run(tmp_path / "a")
    tables = measure_tables(gather_rows([tmp_path]), 20)
    assert sentence(answer(tables), tables).startswith("There is nothing to compare yet")
    write_run(tmp_path / "b", model="b", pretrained=True, num_images=100)
    tables = measure_tables(gather_rows([tmp_path]), 20)
    assert sentence(answer(tables), tables).startswith(
        "Nothing is compared: no two rows that differ in one thing"
    )


def test_models_of_two_run_folders_are_two_models(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, model=f"elsewhere/{name}/model", pretrained=True)
    (one,) = answer(measure_tables(gather_rows([tmp_path]), 50))
    assert one.question == "Model against model"
    assert one.compared == "elsewhere/a/model against elsewhere/b/model"


@pytest.mark.parametrize(("num_negative", "is_doubted"), [(8, True), (20, False)])
def test_intervals_by_fewer_than_ten_patients_of_a_class_are_doubted(num_negative, is_doubted, tmp_path):
    for name in ("a", "b"):
        path = write_run(tmp_path / name, model=name, pretrained=True) / "predictions_test.csv"
        predictions = pd.read_csv(path)
        labels = (predictions.index >= num_negative).astype(int)
        predictions.assign(label=labels).to_csv(path, index=False)
    said = " ".join(general_notes(measure_tables(gather_rows([tmp_path]), 50)))
    assert ("few patients have a label: 4 negative in the test split" in said) == is_doubted
    assert ("few patients have a label" in said) == is_doubted


def test_runs_that_differ_in_a_flag_answer_which_is_better(tmp_path):
    for number, decay in enumerate((0.1, 0.2)):
        for seed in (0, 1):
            flags = {"weight_decay": decay}
            write_run(tmp_path / f"{number}{seed}", seed=seed, quality=1 + number, flags=flags)
    (one,) = answer(measure_tables(gather_rows([tmp_path]), 50))
    assert (one.question, one.first) == ("Other flags", "weight_decay 0.1")


def write_planned(folder: Path, *, own_pretraining: bool, **results) -> tuple[str, grid.Cell]:
    point = point_of(classification_results(**results))
    point = point.model_copy(update={"own_pretraining": own_pretraining})
    name = grid.run_id(point)
    write_run(folder / name, **results)
    return name, grid.ClassificationCell(run_id=name, script=grid.CLASSIFICATION, point=point, flags={})


def test_a_model_pretrained_in_the_study_is_compared_with_itself_from_scratch(tmp_path):
    cells = [write_planned(tmp_path, own_pretraining=own, model="vit-mae-tiny") for own in (False, True)]
    write_json(tmp_path / "plan.json", grid.Plan(cells=dict(cells)).as_json())
    (one,) = answer(measure_tables(gather_rows([tmp_path]), 50))
    assert one.compared == "vit-mae-tiny: pretrained here against from scratch"


def test_two_pretrainings_of_one_network_are_two_sides_of_the_comparison(tmp_path):
    continued = {"model": "facebook/vit-mae-base", "pretrained": True}
    starts = ((False, {"model": "vit-mae-base"}), (True, {"model": "vit-mae-base"}), (True, continued))
    cells = [write_planned(tmp_path, own_pretraining=own, **results) for own, results in starts]
    write_json(tmp_path / "plan.json", grid.Plan(cells=dict(cells)).as_json())
    found = answer(measure_tables(gather_rows([tmp_path]), 50))
    assert {frozenset((one.first, one.second)) for one in found} == {
        frozenset(("pretrained here", "pretrained here from MAE ViT")),
        frozenset(("pretrained here", "from scratch")),
        frozenset(("pretrained here from MAE ViT", "from scratch")),
    }


def test_undertrained_rows_are_marked_and_the_verdict_says_what_that_means(tmp_path, capsys):
    reason = "the best epoch is the last"
    write_run(tmp_path / "a", model="a", pretrained=True, undertrained=reason)
    write_run(tmp_path / "b", model="b", pretrained=True, quality=1.0)
    report_study.main([str(tmp_path), "--num_resamples", "50"])
    printed = capsys.readouterr().out
    for text in (printed, *((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("md", "html"))):
        said = " ".join(text.replace("│", " ").split())
        assert "in 1 of 1 comparison a model is undertrained" in said
        assert f"† a is undertrained: {reason}." in said
    assert "a model is undertrained, so more epochs may change this" in (tmp_path / "report.md").read_text(
        "utf-8"
    )
    assert '<abbr title="undertrained: the best' in (tmp_path / "report.html").read_text("utf-8")


def test_the_answer_comes_before_any_table(tmp_path, capsys):
    for name in ("a", "b"):
        write_run(tmp_path / name, model=name, pretrained=True)
    report_study.main([str(tmp_path), "--num_resamples", "20"])
    printed = capsys.readouterr().out
    assert printed.startswith("The answer: ")
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        places = [
            text.index(part) for part in ("difference of AUROC is", "How the models were trained", "Accuracy")
        ]
        assert places == sorted(places)


def test_a_single_row_is_answered_with_its_ensemble(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / str(seed), seed=seed, model="resnet-18")
    (table,) = measure_tables(gather_rows([tmp_path]), 20)
    row = table.rows[0]
    said = sentence([], [table])
    assert said.startswith(f"resnet-18, from scratch: AUROC {row.values['auroc']:.3f} with one model")
    assert f"{row.ensemble.values['auroc']:.3f} with the ensemble of the 3, accuracy 0." in said
