"""A study of classifiers of several findings: its flags, its images and its models, before it starts."""

import argparse

import pytest
from cxr.errors import UserError
from cxr.study import grid
from cxr.study import presets
from cxr.study.cells import check_cells
from cxr.study.costs import count_images
from cxr.study.plan_tables import settings_in_words
from run_study import setting

MIX = "Atelectasis=positive,Edema=positive"


def plan(root, *texts, tasks=("findings",), pretrain=None):
    changed = presets.change_grid(
        presets.SMOKE,
        models=["resnet-18"] if pretrain is None else ["vit-mae-tiny"],
        tasks=list(tasks),
        train_sizes=[None],
        augmentations=["none"],
        mask_ratios=[0.0],
        pretrain=pretrain,
        settings=tuple(map(setting, texts)),
    )
    return grid.plan_cells(changed, data_dir=root, output_dir=root / "study")


def test_findings_are_a_list_and_policies_a_text_with_its_own_signs():
    _, flags = setting("classification.findings=Edema, Pleural Effusion")
    assert flags == {"findings": ["Edema", "Pleural Effusion"]}
    assert setting(f"uncertain={MIX}") == ("", {"uncertain": MIX})
    assert list(grid.to_words(flags)) == ["--findings", "Edema", "Pleural Effusion"]
    shown = settings_in_words((("classification", flags), ("", {"crop_scale": [0.2, 1.0]})))
    assert list(shown) == ["classification.findings=Edema,Pleural Effusion", "crop_scale=0.2 1.0"]
    for text in shown:
        assert list(settings_in_words((setting(text),))) == [text]


def test_the_head_has_an_output_per_finding(sample_root):
    plans = [(), ("classification.findings=chexpert5",), ("classification.findings=Edema",)]
    counts = [
        facts.num_parameters
        for texts in plans
        for facts in check_cells(plan(sample_root, *texts, f"classification.uncertain={MIX}")).values()
    ]
    width = 512 + 1
    assert [counts[0] - counts[1], counts[1] - counts[2]] == [9 * width, 4 * width]


def test_images_are_those_with_a_label_of_the_findings(sample_root):
    texts = [(), ("classification.findings=Edema", "classification.blank=exclude")]
    counts = [next(iter(count_images(plan(sample_root, *one), sample_root).values())) for one in texts]
    assert 0 < counts[1].train < counts[0].train


def test_a_pretraining_has_no_findings(sample_root):
    cells = plan(sample_root, "classification.findings=Edema", pretrain="instead")
    facts = check_cells(cells)
    assert [of_cell.is_pretraining for of_cell in facts.values()] == [True, False]
    assert cells[1].run_id == "vit-mae-tiny-scratch-pre_none_all_findings_s0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classification.findings=Edemas", "Edemas"),
        ("classification.uncertain=Edema=maybe", "expected one of mix"),
        ("findings=Edema", "found the task 'finding'"),
    ],
)
def test_wrong_findings_and_policies_are_one_line(sample_root, text, said):
    with pytest.raises(UserError, match=said):
        check_cells(plan(sample_root, text, pretrain="instead"))


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="expected FLAG=VALUE"):
        setting("classification.findings=")
