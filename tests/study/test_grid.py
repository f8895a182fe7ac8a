"""The grid: which cells a preset means, what each of them is called and which flags it has."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from cxr.choices import MASKINGS
from cxr.data.subsets import draw_sample
from cxr.errors import UserError
from cxr.study import grid
from cxr.study import presets
from cxr.study.grid import CLASSIFICATION
from cxr.study.grid import PRETRAINING
from cxr.study.grid import Cell
from cxr.study.grid import ClassificationPoint
from cxr.study.presets import GRIDS
from cxr.study.presets import PAPER
from cxr.study.presets import Grid

from mimic_cxr_dataset.labels import index_images

TASKS = ("finding", "pleural_effusion")  # the paper's, whatever others there are
DATA, STUDY = Path("/data/cxr").absolute(), Path("/runs/study").absolute()


def plan(preset: Grid, *, settings=(), augmentations=None, mask_ratios=None, **axes) -> list[Cell]:
    arms = {"augmentations": augmentations, "mask_ratios": mask_ratios}
    changed = presets.change_grid(preset, settings=tuple(settings), **arms, **axes)
    return grid.plan_cells(changed, data_dir=DATA, output_dir=STUDY)


def one_cell(model: str, *settings, **axes) -> list[Cell]:
    """A cell for the model, after its pretraining if there is one."""
    axes = {"augmentations": ["none"], "mask_ratios": [0.0], "seeds": [0], "train_sizes": [1000], **axes}
    return plan(PAPER, models=[model], tasks=["finding"], training_modes=["full"], settings=settings, **axes)


def ids(cells: list[Cell]) -> list[str]:
    return [cell.run_id for cell in cells]


def arm_of(point: ClassificationPoint) -> tuple[str, float]:
    return point.augmentation, point.masking


def write_model(folder: Path, model_type: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder


# Presets ----------------------------------------------------------------------------------------------------


def test_paper_is_72_arms_a_seed_and_three_seeds():
    cells = plan(PAPER)
    assert len(cells) == len(set(ids(cells))) == 216
    assert Counter(cell.point.seed for cell in cells) == {0: 72, 1: 72, 2: 72}
    assert {cell.script for cell in cells} == {CLASSIFICATION}
    assert not [cell for cell in cells if cell.needs or cell.point.own_pretraining]


def test_paper_has_exactly_the_papers_arms_at_each_size_task_and_mode():
    points = [cell.point for cell in plan(PAPER)]
    rest = {(point.train_size, point.task, point.training_mode, point.view, point.seed) for point in points}
    assert rest == set(
        itertools.product((1_000, 10_000, None), TASKS, ("full", "last_layer"), ["frontal"], range(3))
    )
    found = Counter((point.model, *arm_of(point)) for point in points)
    vit = [("mae", 0.25), ("mae", 0.5), ("mae", 0.75), ("none", 0.0)]
    arms = [("facebook/vit-mae-base", *arm) for arm in vit]
    arms += [("microsoft/resnet-18", augmentation, 0.0) for augmentation in ("classic", "none")]
    assert found == dict.fromkeys(arms, len(rest))


def test_cell_of_the_paper_has_its_flags_and_hyperparameters():
    cell = next(cell for cell in plan(PAPER) if cell.run_id == "vit-mae-base_mae_p25_1000_finding_s0")
    assert cell.flags == {
        "data_dir": str(DATA),
        "dataset_config_name": "finding",
        "view": "frontal",
        "seed": 0,
        "max_train_samples": 1000,
        "augmentation": "mae",
        "mask_ratio": 0.25,
        "train_last_layer_only": False,
        "evaluate_test": True,
        "model_name_or_path": "facebook/vit-mae-base",
        "num_train_epochs": 20,
        "learning_rate": 1e-6,
        "per_device_train_batch_size": 32,
    }


def test_every_axis_reaches_the_flags_of_its_cells():
    for cell in plan(PAPER, views=["frontal", "lateral"]):
        point, flags = cell.point, cell.flags
        assert flags["max_train_samples"] == point.train_size
        assert flags["dataset_config_name"] == point.task
        assert flags["train_last_layer_only"] == (point.training_mode == "last_layer")
        same = {"augmentation": "augmentation", "masking": "mask_ratio", "view": "view", "seed": "seed"}
        assert all(flags[flag] == getattr(point, axis) for axis, flag in same.items())


def test_future_has_the_larger_models_and_lateral_views_and_shares_its_first_cells_with_the_paper():
    cells = plan(GRIDS["future"])
    names = {cell.point.model for cell in cells}
    assert {name.rpartition("-")[2] for name in names} == {"base", "large", "huge", "18", "34", "50", "152"}
    assert {cell.point.view for cell in cells} == {"frontal", "lateral"}
    assert len(cells) == (3 * 4 + 4 * 2) * 3 * 2 * 3  # arms, sizes, views, seeds
    of_paper = {cell.run_id: cell for cell in plan(PAPER)}
    shared = [cell for cell in cells if cell.run_id in of_paper]
    assert len(shared) == 6 * 3 * 3 and all(cell == of_paper[cell.run_id] for cell in shared)


def test_smoke_is_a_grid_of_tiny_models_from_scratch_on_the_cpu():
    smoke = GRIDS["smoke"]
    cells = plan(smoke)
    assert smoke.config_file == "cpu.yaml" and len(cells) == 13
    starts = {cell.flags.get("config_name") for cell in cells if not cell.needs}
    assert starts == {"vit-mae-tiny", "resnet-18"}  # nothing is downloaded
    assert {cell.flags["image_size"] for cell in cells} == {32}


@pytest.mark.parametrize("preset", GRIDS)
def test_model_from_scratch_never_has_the_rate_of_a_pretrained_one_unless_it_is_named(preset):
    scratch = ids_and_rates(plan(GRIDS[preset], models=["resnet-18", "vit-mae-tiny"]))
    assert all(rate >= 1e-4 for name, rate in scratch.items() if "-pre_" not in name)
    named = plan(GRIDS[preset], models=["resnet-18"], settings=[("scratch", {"learning_rate": 1e-6})])
    assert set(ids_and_rates(named).values()) == {1e-6}


def ids_and_rates(cells: list[Cell]) -> dict[str, float]:
    return {cell.run_id: cell.flags["learning_rate"] for cell in cells}


def test_compare_trains_models_of_any_start_with_the_same_images_and_augmentation_until_they_converge():
    cells = plan(GRIDS["compare"], models=["vit-mae-tiny", "resnet-18"], pretrain="beside", seeds=[0])
    classifiers = [cell for cell in cells if cell.script == CLASSIFICATION]
    assert {arm_of(cell.point) for cell in classifiers} == {("classic", 0.0)}
    assert len(classifiers) == 3 * 2 and len(cells) == 7
    assert {cell.flags["lr_scheduler_type"] for cell in cells} == {"cosine"}
    assert all(cell.flags["learning_rate"] >= 1e-4 for cell in cells)


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pretrain", [None, "beside", "instead"])
@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("preset", GRIDS)
def test_run_ids_are_unique_short_and_safe_on_windows(preset, masking, pretrain):
    cells = plan(GRIDS[preset], masking=masking, pretrain=pretrain)
    names = ids(cells)
    assert len(set(names)) == len(names) and max(map(len, names)) <= 60
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*_[a-z0-9_-]*[a-z0-9]", name) for name in names)


def test_awkward_folders_and_shares_still_give_safe_short_names(tmp_path):
    folders = ("CON", "My Model (v2.1)", "модель", "a" * 99)
    models = [str(write_model(tmp_path / name, "vit_mae")) for name in folders]
    axes = {"mask_ratios": [0.125, 0.0], "seeds": [4294967295], "train_sizes": [123456], "views": ["lateral"]}
    names = ids(plan(PAPER, models=models, masking="erasing", pretrain="beside", **axes))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_-]*[a-z0-9]", name) and len(name) <= 90 for name in names)
    assert "con-pre_mae_e12-5_123456_effusion_head_lateral_s4294967295" in names
    assert {name.partition("_")[0] for name in names} >= {"con", "my-model-v2-1", "model", "a" * 24}


def test_folder_of_a_model_is_named_for_the_run_that_it_is_in():
    assert grid.slug("runs/mae-chest/model") == "mae-chest"
    assert grid.slug("facebook/vit-mae-base") == "vit-mae-base"
    assert grid.slug("model") == "model"


def test_folder_is_a_pretrained_model_of_the_family_that_its_configuration_says(tmp_path):
    folder = write_model(tmp_path / "mine" / "model", "resnet")
    cells = plan(PAPER, models=[str(folder)])
    assert {cell.flags["model_name_or_path"] for cell in cells} == {str(folder)}
    assert {arm_of(cell.point) for cell in cells} == {("classic", 0.0), ("none", 0.0)}
    assert all(cell.run_id.startswith("mine_") for cell in cells)


@pytest.mark.parametrize("revision", ["main", "v1"])
@pytest.mark.parametrize("where", ["hub_dir", "cache"])
def test_family_of_a_name_is_what_its_configuration_here_says_and_no_part_of_the_name(
    where, revision, tmp_path, monkeypatch
):
    repository = tmp_path / "models--my-lab--resnet-like"
    write_model(repository / "snapshots" / ("a" * 40), "vit")
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text("a" * 40, encoding="utf-8")
    if where == "cache":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    settings = {"model_revision": revision} | ({"hub_dir": str(tmp_path)} if where == "hub_dir" else {})
    (cell,) = one_cell("my-lab/resnet-like", ("", settings), ("vit", {"weight_decay": 0.3}))
    assert cell.flags["weight_decay"] == 0.3


def test_revision_of_a_model_is_for_its_pretraining_and_not_for_the_folder_that_this_writes():
    pretraining, cell = one_cell("facebook/vit-mae-base", ("", {"model_revision": "v1"}), pretrain="instead")
    assert pretraining.flags["model_revision"] == "v1" and "model_revision" not in cell.flags


@pytest.mark.parametrize("name", ["my-lab/resnet-18", "facebook/vit-large", "vit", "/no/such/folder"])
def test_name_that_tells_no_family_is_refused_with_what_to_do(name):
    with pytest.raises(
        UserError, match=f"model {name}: found no folder .*name a folder, or download the model first"
    ):
        one_cell(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"model_type": "bert"}',
            "model_type='bert', expected 'vit', 'vit_mae', 'dinov2', 'resnet' or 'timm_wrapper'",
        ),
        ('{"model_type": "vit", "hidden_size": 0}', "hidden_size=0, expected greater than 0"),
        ("{}", "found no model_type"),
        ("[", "Invalid JSON"),
    ],
)
def test_configuration_that_no_model_has_is_refused(content, said, tmp_path):
    (write_model(tmp_path / "mine", "vit") / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"config.json: not what transformers writes: .*{said}.*another"):
        one_cell(str(tmp_path / "mine"))


def test_model_is_from_scratch_when_it_is_a_configurations_name():
    cells = plan(PAPER, models=["vit-mae-tiny", "facebook/vit-mae-base", "resnet-18"], seeds=[0])
    found = {(cell.point.model, cell.point.from_scratch) for cell in cells}
    assert found == {("vit-mae-tiny", True), ("facebook/vit-mae-base", False), ("resnet-18", True)}
    assert all(("config_name" in cell.flags) == cell.point.from_scratch for cell in cells)


def test_relative_folder_becomes_absolute_so_that_a_cell_finds_it(tmp_path, monkeypatch):
    write_model(tmp_path / "mine", "vit_mae")
    monkeypatch.chdir(tmp_path)
    (cell,) = one_cell("mine")
    assert cell.flags["model_name_or_path"] == str(tmp_path / "mine")


def test_two_models_or_shares_of_one_name_are_refused(tmp_path):
    folders = [str(write_model(tmp_path / name / "vit", "vit_mae")) for name in ("a", "b")]
    for name, axes in (("vit_mae_p25", {"models": folders}), ("_p33-3", {"mask_ratios": [0.33333, 0.33334]})):
        said = rf"name .*{name}_1000_finding_s0; expected --models.* and --mask_ratios .*; rename a model"
        with pytest.raises(UserError, match=said):
            plan(PAPER, **axes)


# Axes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "values", "field"),
    [
        ("models", ["facebook/vit-mae-large", "microsoft/resnet-50"], "model"),
        ("train_sizes", [None, 7], "train_size"),
        ("tasks", ["pleural_effusion"], "task"),
        ("training_modes", ["last_layer"], "training_mode"),
        ("views", ["all", "lateral"], "view"),
        ("seeds", [11, 12, 13, 14], "seed"),
    ],
)
def test_axis_replaces_that_of_the_preset_and_no_other(axis, values, field):
    before, after = plan(PAPER), plan(PAPER, **{axis: values})
    assert {getattr(cell.point, field) for cell in after} == set(values)
    for name in before[0].point.as_json().keys() - {field}:
        of_before, of_after = ({getattr(cell.point, name) for cell in cells} for cells in (before, after))
        assert of_after == of_before, name


def test_augmentations_and_mask_ratios_are_crossed_and_a_resnet_is_not_masked():
    cells = plan(PAPER, augmentations=["mae", "classic"], mask_ratios=[0.0, 0.6], seeds=[0])
    arms = {(grid.find_architecture(cell.point.model).family, *arm_of(cell.point)) for cell in cells}
    crossed = {("vit", augmentation, share) for augmentation in ("mae", "classic") for share in (0.0, 0.6)}
    assert arms == crossed | {("resnet", "mae", 0.0), ("resnet", "classic", 0.0)}


def test_mask_ratios_alone_keep_the_augmentations_of_the_preset():
    arms = {arm_of(cell.point) for cell in plan(PAPER, mask_ratios=[0.9]) if "vit" in cell.run_id}
    assert arms == {("mae", 0.9), ("none", 0.9)}


def test_values_named_twice_are_planned_once():
    cells = plan(PAPER, seeds=[0, 0], train_sizes=[1000, 1000], mask_ratios=[0.5, 0.5], tasks=["finding"] * 2)
    assert len(cells) == len(set(ids(cells))) == (2 + 2) * 2


def test_masking_is_by_patches_or_by_erasing():
    (patches,) = one_cell("facebook/vit-mae-base", mask_ratios=[0.25])
    (erasing,) = one_cell("facebook/vit-mae-base", mask_ratios=[0.25], masking="erasing")
    assert patches.flags["mask_ratio"] == 0.25 and "random_erasing_prob" not in patches.flags
    assert erasing.flags["random_erasing_prob"] == 0.25 and "mask_ratio" not in erasing.flags
    assert [patches.run_id, erasing.run_id] == [
        "vit-mae-base_none_p25_1000_finding_s0",
        "vit-mae-base_none_e25_1000_finding_s0",
    ]


def test_cells_without_masking_are_the_same_for_both_kinds_of_it():
    patches, erasing = ({cell.run_id: cell for cell in plan(PAPER, masking=kind)} for kind in MASKINGS)
    shared = patches.keys() & erasing.keys()
    assert len(shared) == 216 // 2
    assert all(patches[name] == erasing[name] for name in shared)


def test_small_samples_run_first():
    sizes = [cell.point.train_size for cell in one_cell("resnet-18", train_sizes=[None, 500, 20])]
    assert sizes == [20, 500, None]


# Pretraining ------------------------------------------------------------------------------------------------


def test_pretraining_is_shared_by_all_cells_of_a_seed_and_view_and_comes_before_them():
    cells = plan(PAPER, pretrain="beside", views=["frontal", "lateral"])
    pretrainings = [cell for cell in cells if cell.script == PRETRAINING]
    assert sorted(ids(pretrainings)) == [
        *(f"vit-mae-base_pretrain_lateral_s{seed}" for seed in range(3)),
        *(f"vit-mae-base_pretrain_s{seed}" for seed in range(3)),
    ]
    users = Counter(cell.needs for cell in cells if cell.needs)
    assert users == {cell.run_id: 4 * 3 * 2 * 2 for cell in pretrainings}  # arms, sizes, tasks, modes
    position = {name: number for number, name in enumerate(ids(cells))}
    assert all(position[cell.needs] < position[cell.run_id] for cell in cells if cell.needs)


def test_pretrained_cell_starts_from_the_pretraining_of_its_own_seed_and_view():
    for cell in plan(PAPER, pretrain="instead", views=["frontal", "lateral"]):
        if cell.needs:
            assert cell.flags["model_name_or_path"] == str(STUDY / cell.needs / "model")
            assert cell.needs.endswith(f"_s{cell.point.seed}")
            assert ("lateral" in cell.needs) == (cell.point.view == "lateral")


def test_pretraining_starts_from_the_named_model_on_all_training_images():
    pretraining, _ = one_cell("facebook/vit-mae-base", pretrain="instead")
    assert pretraining.flags == {
        "data_dir": str(DATA),
        "view": "frontal",
        "seed": 0,
        "model_name_or_path": "facebook/vit-mae-base",
        "num_train_epochs": 100,
    }


def test_beside_keeps_the_cells_that_start_as_named_and_instead_does_not():
    plain = set(ids(plan(PAPER)))
    beside, instead = (set(ids(plan(PAPER, pretrain=how))) for how in ("beside", "instead"))
    assert plain < beside and instead < beside
    assert len(beside) == 216 + 144 + 3 and len(instead) == 216 + 3
    assert {name for name in plain & instead} == {name for name in plain if name.startswith("resnet")}


def test_model_from_scratch_that_is_pretrained_here_is_fine_tuned_without_its_overrides():
    setting = ("vit", {"config_overrides": "patch_size=8"})
    pretraining, fine_tuning = one_cell("vit-mae-tiny", setting, pretrain="instead")
    assert pretraining.flags["config_name"] == "vit-mae-tiny"
    assert pretraining.flags["config_overrides"] == "patch_size=8"
    assert not {"config_name", "config_overrides"} & fine_tuning.flags.keys()


# Settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "reached"),
    [
        ("", {"vit-pretrain", "vit-20", "vit-all", "resnet-20", "resnet-all"}),
        ("vit", {"vit-pretrain", "vit-20", "vit-all"}),
        ("resnet", {"resnet-20", "resnet-all"}),
        ("pretraining", {"vit-pretrain"}),
        ("classification", {"vit-20", "vit-all", "resnet-20", "resnet-all"}),
        ("scratch", {"resnet-20", "resnet-all"}),
        ("pretrained", {"vit-20", "vit-all"}),
        ("20", {"vit-20", "resnet-20"}),
        ("all", {"vit-all", "resnet-all"}),
    ],
)
def test_setting_reaches_the_cells_of_its_scope(scope, reached):
    found, axes = set(), {"models": ["vit-mae-tiny", "resnet-18"], "tasks": ["finding"], "seeds": [0]}
    axes |= {"train_sizes": [20, None], "pretrain": "instead", "training_modes": ["full"]}
    for cell in plan(PAPER, settings=[(scope, {"weight_decay": 0.3})], **axes):
        if cell.flags.get("weight_decay") == 0.3:
            size = getattr(cell.point, "train_size", 0)
            what = "pretrain" if cell.script == PRETRAINING else grid.size_name(size)
            found.add(f"{grid.find_architecture(cell.point.model).family}-{what}")
    assert found == reached


def test_setting_of_a_training_size_or_recipe_that_is_not_in_the_grid_is_refused():
    for scope, axis in {"all": "train_sizes", "30": "train_sizes", "mae": "recipes"}.items():
        with pytest.raises(UserError, match=rf"^--set {scope}\.: found no such .*; use one of --{axis}$"):
            one_cell("vit-mae-tiny", (scope, {"weight_decay": 0.3}))


def test_later_settings_count_and_all_come_after_those_of_the_preset():
    settings = [("vit", {"learning_rate": 1e-3}), ("", {"learning_rate": 1e-4})]
    assert one_cell("vit-mae-tiny", *settings)[0].flags["learning_rate"] == 1e-4
    assert one_cell("vit-mae-tiny", *settings[::-1])[0].flags["learning_rate"] == 1e-3


def test_base_learning_rate_replaces_the_learning_rate_of_the_preset_and_the_reverse():
    base, plain = ("", {"base_learning_rate": 1e-3}), ("", {"learning_rate": 1e-4})
    flags = one_cell("vit-mae-tiny", base)[0].flags
    assert flags["base_learning_rate"] == 1e-3 and "learning_rate" not in flags
    flags = one_cell("vit-mae-tiny", base, plain)[0].flags
    assert flags["learning_rate"] == 1e-4 and "base_learning_rate" not in flags


@pytest.mark.parametrize(
    "flag", ["seed", "view", "mask_ratio", "max_train_samples", "evaluate_test", "output_dir", "data_dir"]
)
def test_setting_of_what_the_grid_sets_is_refused(flag):
    with pytest.raises(ValueError, match=f"--set {flag}: found a flag that the study sets itself"):
        one_cell("vit-mae-tiny", ("", {flag: 1}))


def test_mask_ratio_of_the_pretraining_is_free_to_choose():
    pretraining, fine_tuning = one_cell(
        "vit-mae-tiny", ("pretraining", {"mask_ratio": 0.9}), pretrain="instead"
    )
    assert pretraining.flags["mask_ratio"] == 0.9 and fine_tuning.flags["mask_ratio"] == 0.0


# Images -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_planned_samples_are_the_same_for_all_models_nested_and_of_the_seed(sample_root):
    models = ["facebook/vit-mae-base", "microsoft/resnet-18", "vit-mae-tiny"]
    cells = plan(PAPER, models=models, train_sizes=[8, 20, None], pretrain="beside")
    images = {task: index_images(sample_root, task=task)[0] for task in TASKS}
    drawn: dict[tuple, set[frozenset]] = {}
    for flags in (cell.flags for cell in cells if cell.script == CLASSIFICATION):
        task, seed, size = (flags[name] for name in ("dataset_config_name", "seed", "max_train_samples"))
        train = images[task][images[task]["split"] == "train"]
        of_images = train["subject_id"].to_numpy(), train["label"].to_numpy()
        chosen = draw_sample(*of_images, num_samples=size, seed=seed)
        drawn.setdefault((task, seed, size), set()).add(frozenset(train["dicom_id"].iloc[chosen]))
    assert len(drawn) == 2 * 3 * 3
    assert {len(samples) for samples in drawn.values()} == {1}  # one sample, whatever the model
    for task in TASKS:
        small, middle, whole = (
            [next(iter(drawn[task, seed, size])) for seed in range(3)] for size in (8, 20, None)
        )
        assert all(a < b < c for a, b, c in zip(small, middle, whole))
        assert len(set(middle)) == 3 and len(set(whole)) == 1
