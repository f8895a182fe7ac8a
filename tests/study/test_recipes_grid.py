"""The axis of recipes: names, flags and arms of its cells, and its rows and answers in a report."""

import json
from pathlib import Path

import pytest
import run_study
from cxr.choices import RECIPES
from cxr.cli import recipes
from cxr.errors import UserError
from cxr.run_folder.files import write_json
from cxr.study import grid
from cxr.study.answer import answer
from cxr.study.cells import check_cells
from cxr.study.how_trained import how_trained
from cxr.study.measuring import measure_tables
from cxr.study.presets import GRIDS
from cxr.study.results import gather_rows
from finished_runs import write_run


def plan(preset: str, flags: str) -> dict[str, grid.Cell]:
    args = run_study.make_parser().parse_args(["--output_dir=x", "--seeds", "0", *flags.split()])
    chosen = run_study.chosen_grid(args, GRIDS[preset])
    cells = grid.plan_cells(chosen, data_dir=Path(), output_dir=Path("x"))
    return {cell.run_id: cell for cell in cells}


TINY = "--models vit-mae-tiny resnet-18 --train_sizes 100 --recipes "


@pytest.mark.parametrize("preset", GRIDS)
def test_the_default_recipe_leaves_names_and_flags_as_they_were(preset):
    named = plan(preset, "--recipes paper")
    assert named == plan(preset, "")
    assert not any("recipe" in cell.flags or "recipe" in name for name, cell in named.items())


def test_a_plan_from_before_recipes_is_read(tmp_path):
    cells = plan("compare", "--train_sizes 100")
    written = grid.Plan(cells=cells).as_json()
    for cell in written["cells"].values():
        del cell["point"]["recipe"]
    write_json(tmp_path / "plan.json", written)
    assert grid.read_plan(tmp_path) == cells


def test_a_recipe_is_in_the_name_and_its_values_are_not_those_of_the_preset():
    cells = plan("compare", f"{TINY} paper medical_mae")
    assert list(cells) == [
        "vit-mae-tiny-scratch_classic_100_finding_s0",
        "vit-mae-tiny-scratch_mae_recipe-medical-mae_100_finding_s0",
        "resnet-18-scratch_classic_100_finding_s0",
        "resnet-18-scratch_mae_recipe-medical-mae_100_finding_s0",
    ]
    for name, facts in check_cells(list(cells.values())).items():
        args = facts.args
        if "medical" in name:
            assert (args.num_train_epochs, args.base_learning_rate, args.learning_rate) == (75, 2.5e-4, None)
            assert (args.warmup_epochs, args.augmentation, facts.images_per_step(1, 100)) == (5, "mae", 100)
        else:
            assert (args.num_train_epochs, args.learning_rate, args.warmup_ratio) == (50, 1e-4, 0.1)
            assert (args.augmentation, facts.images_per_step(1, 100)) == ("classic", 32)


@pytest.mark.parametrize("preset", GRIDS)
def test_no_preset_changes_what_a_recipe_says(preset):
    for recipe in RECIPES[1:]:
        for cell in plan(preset, f"--recipes {recipe}").values():
            if cell.script == grid.PRETRAINING:
                continue
            decided = recipes.RECIPES[recipe]["classification"].keys() - {"augmentation"}
            assert not decided & cell.flags.keys()
            assert cell.flags["augmentation"] == "mae" and cell.flags["mask_ratio"] == 0.0


def test_what_the_user_sets_counts_in_all_recipes_or_in_one():
    cells = plan("compare", f"{TINY} paper mae --set weight_decay=0.2 paper.learning_rate=1e-3 mae.mixup=0.1")
    for name, facts in check_cells(list(cells.values())).items():
        args, is_mae = facts.args, "recipe-mae" in name
        assert args.weight_decay == 0.2
        assert (args.mixup, args.learning_rate) == ((0.1, None) if is_mae else (0.0, 1e-3))


def test_augmentations_and_masks_that_the_user_names_replace_the_recipes_own():
    flags = f"{TINY} mae --augmentations none classic --mask_ratios 0 0.5"
    arms = {
        (cell.point.model, cell.point.augmentation, cell.point.masking)
        for cell in plan("compare", flags).values()
    }
    vit = {("vit-mae-tiny", name, share) for name in ("none", "classic") for share in (0.0, 0.5)}
    assert arms == vit | {("resnet-18", name, 0.0) for name in ("none", "classic")}


def test_the_recipe_of_a_pretraining_is_a_setting_and_that_of_a_classifier_an_axis():
    cells = plan("compare", f"{TINY} paper --pretrain --set pretraining.recipe=mae")
    args = check_cells(list(cells.values()))["vit-mae-tiny-scratch_pretrain_s0"].args
    assert (args.recipe, args.num_train_epochs, args.learning_rate) == ("mae", 800, None)
    with pytest.raises(UserError, match="use --models or another axis"):
        plan("compare", f"{TINY} paper --set classification.recipe=mae")


def test_a_report_has_a_row_a_recipe_and_compares_them(tmp_path):
    for recipe, quality in (("paper", 0.5), ("mae", 2.5)):
        for seed in (0, 1, 2):
            of_run = {
                "recipe": recipe,
                "random_erasing_prob": 0.25 * (recipe == "mae"),
                "augmentation": "mae",
            }
            flags = {"recipe": recipe, "layer_decay": 0.65 if recipe == "mae" else None}
            folder = tmp_path / f"{recipe}-{seed}"
            write_run(folder, quality=quality, seed=seed, flags=flags, model="vit-mae-tiny", **of_run)
    (table,) = tables = measure_tables(gather_rows([tmp_path]), 200)
    assert [row.label for row in table.rows] == [
        f"vit-mae-tiny, from scratch, recipe {name}" for name in ("mae", "paper")
    ]
    assert [row.name.remark for row in table.rows] == ["recipe mae", ""]
    (one,) = answer(tables)
    assert one.question == "Recipe against recipe"
    assert one.compared == "vit-mae-tiny, from scratch: recipe mae against recipe paper"
    assert one.better == "recipe mae"
    common, differing = how_trained(tables)
    facts = [facts for table in differing for facts in table]
    assert {facts["recipe"] for facts in facts if "recipe" in facts} == {"mae", "paper"}
    assert "layer decay 0.65" in json.dumps(differing) and "recipe" not in common
