"""The recipes: which flags they set, and which flags of the user count more."""

import json

import pytest
import run_classification
import run_mae_pretrain
from cxr.choices import RECIPES
from cxr.cli import classification
from cxr.cli import recipes

VIT, RESNET, DENSENET = (
    f"--config_name={name}" for name in ("vit-mae-tiny", "resnet-18", "timm/densenet121")
)
PRETRAINED_VIT = "--model_name_or_path=facebook/vit-mae-base"


def classifier(*flags: str, recipe: str = "mae", model: str = PRETRAINED_VIT):
    return run_classification.parse_args([f"--recipe={recipe}", model, *flags])


@pytest.mark.parametrize("parse", [run_classification.parse_args, run_mae_pretrain.parse_args])
def test_the_papers_recipe_changes_nothing(parse):
    for flags in ([], [VIT], ["--data_dir=."]):
        assert vars(parse([*flags, "--recipe=paper"])) == vars(parse(flags))


def test_every_flag_of_a_recipe_is_set():
    for recipe in RECIPES:
        for parse, script in (
            (run_classification.parse_args, "classification"),
            (run_mae_pretrain.parse_args, "pretraining"),
        ):
            args = parse([f"--recipe={recipe}", PRETRAINED_VIT])
            for name, value in recipes.RECIPES[recipe][script].items():
                assert getattr(args, name) == value, name


def test_recipes_are_those_of_the_publications():
    mae, medical = classifier(), classifier(recipe="medical_mae")
    assert (mae.base_learning_rate, mae.learning_rate, mae.layer_decay, mae.drop_path) == (
        5e-4,
        None,
        0.65,
        0.1,
    )
    assert (mae.mixup, mae.cutmix, mae.random_erasing_prob, mae.label_smoothing) == (0.8, 1.0, 0.25, 0.1)
    assert (medical.base_learning_rate, medical.layer_decay, medical.drop_path) == (2.5e-4, 0.55, 0.2)
    assert (medical.randaugment, medical.mixup, medical.min_learning_rate) == (
        "rand-m6-mstd0.5-inc1",
        0.0,
        1e-5,
    )
    pretraining = run_mae_pretrain.parse_args(["--recipe=medical_mae", VIT])
    assert (pretraining.mask_ratio, pretraining.norm_pix_loss, pretraining.crop_scale) == (
        0.9,
        False,
        (0.5, 1.0),
    )


def test_a_flag_given_by_hand_wins_even_with_the_value_of_the_default():
    args = classifier("--mixup=0", "--weight_decay=0.01", "--num_train_epochs=20")
    assert (args.mixup, args.weight_decay, args.num_train_epochs) == (0.0, 0.01, 20)


def test_a_flag_that_says_the_same_in_another_way_wins():
    args = classifier("--learning_rate=1e-3", "--warmup_ratio=0.2", "--gradient_accumulation_steps=2")
    assert (args.learning_rate, args.base_learning_rate) == (1e-3, None)
    assert (args.warmup_epochs, args.warmup_ratio, args.images_per_step) == (None, 0.2, None)


def test_a_batch_by_hand_counts_if_it_is_larger_than_the_recipes():
    assert classifier("--per_device_train_batch_size=2048").images_per_step is None
    for smaller in ("64", "auto"):
        assert classifier(f"--per_device_train_batch_size={smaller}").images_per_step == 1024


def test_a_shorter_training_has_a_shorter_warmup():
    assert classifier("--num_train_epochs=200").warmup_epochs == 5
    assert classifier("--num_train_epochs=10").warmup_epochs == pytest.approx(1)
    assert classifier("--num_train_epochs=10", "--warmup_epochs=3").warmup_epochs == 3
    args = classifier("--max_train_steps=40")
    assert (args.warmup_epochs, args.warmup_ratio) == (None, pytest.approx(0.05))


@pytest.mark.parametrize("model", [RESNET, DENSENET])
def test_a_cnn_has_the_recipe_without_what_is_for_vits(model):
    args = classifier(model=model)
    assert getattr(args, "pooling", None) != "mean"
    assert (args.layer_decay, args.drop_path, args.mixup) == (None, 0.0, 0.8)


def test_from_scratch_all_layers_learn_at_the_same_rate():
    for args in (classifier(model=VIT), run_classification.parse_args(["--recipe=mae"])):
        assert (args.layer_decay, args.drop_path) == (None, 0.1)
    assert classifier("--layer_decay=0.9", model=VIT).layer_decay == 0.9


def test_a_folder_is_known_by_its_configuration(tmp_path):
    config = {"model_type": "resnet", "hidden_sizes": [64], "depths": [2], "layer_type": "basic"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    args = classifier(model=f"--model_name_or_path={tmp_path}")
    assert getattr(args, "pooling", None) != "mean"
    assert classifier().pooling == "mean"


def test_a_model_that_is_not_downloaded_is_refused_because_its_kind_decides(capsys):
    unknown = "--model_name_or_path=not/downloaded"
    with pytest.raises(SystemExit) as ended:
        classifier(model=unknown)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "model not/downloaded: found no folder" in said
    assert "download the model first: hf download" in said
    assert classifier(recipe="paper", model=unknown).model_name_or_path == "not/downloaded"
    later = classifier(model="--model_name_or_path=study/pretraining/model")  # a study's, which comes first
    assert (later.pooling, later.layer_decay) == ("mean", 0.65)


def test_dinov2_keeps_its_own_pooling(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}', encoding="utf-8")
    args = classifier(model=f"--model_name_or_path={tmp_path}")
    assert (args.pooling, args.layer_decay, args.drop_path) == (None, 0.65, 0.1)


def test_a_distilled_deit_keeps_its_own_pooling():
    assert classifier(model="--config_name=timm/deit_tiny_distilled_patch16_224").pooling is None
    assert classifier(model="--config_name=timm/deit_tiny_patch16_224").pooling == "mean"


def test_a_recipes_minimum_is_never_above_the_learning_rate_given_by_hand():
    args = classifier("--learning_rate=1e-7")
    assert args.min_learning_rate == 1e-7
    assert "  min_learning_rate      1e-07 (the recipe: 1e-06)" in recipes.describe(args, "classification")
    assert classifier("--learning_rate=1e-3").min_learning_rate == 1e-6
    assert classifier("--learning_rate=1e-7", "--min_learning_rate=1e-5").min_learning_rate == 1e-5


def test_a_recipe_has_no_flag_without_effect_beside_those_given_by_hand():
    last_layer = classifier("--train_last_layer_only")
    assert (last_layer.drop_path, last_layer.layer_decay) == (0, None)
    assert classifier("--lr_scheduler_type=constant").min_learning_rate == 0


def test_the_default_learning_rate_of_a_recipe_is_called_so():
    said = "0.0005 for 256 images per step, that of the recipe mae"
    assert classification.describe_default_learning_rate(classifier()) == said
    assert "the paper's" in classification.describe_default_learning_rate(classifier(recipe="paper"))


def test_the_sample_keeps_its_tiny_model_and_gets_the_recipes_training():
    args = run_classification.parse_args(["--recipe=medical_mae"])
    assert (args.config_name, args.image_size, args.num_train_epochs) == ("vit-mae-tiny", 64, 75)
    assert (args.learning_rate, args.base_learning_rate) == (None, 2.5e-4)


def test_the_block_says_what_was_changed_by_hand():
    lines = list(recipes.describe(classifier("--mixup=0", "--learning_rate=1e-3"), "classification"))
    assert lines[0] == "Recipe mae:"
    assert "  mixup                  0 (the recipe: 0.8)" in lines
    assert "  base_learning_rate     not used (the recipe: 0.0005)" in lines
    assert "  cutmix                 1" in lines
    assert not list(recipes.describe(classifier(recipe="paper"), "classification"))


def test_both_ways_to_ask_for_a_batch_are_refused(capsys):
    with pytest.raises(SystemExit):
        classifier("--images_per_step=64", "--gradient_accumulation_steps=2")
    assert "leave one of them out" in capsys.readouterr().err


def test_several_data_folders_are_for_pretraining(tmp_path, capsys):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    flags = ["--data_dir", *map(str, folders)]
    args = run_mae_pretrain.parse_args(flags)
    assert [args.data_dir, *args.other_data_dirs] == folders
    with pytest.raises(SystemExit) as ended:
        run_classification.parse_args(flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "found 2 folders, expected one" in said and "run_mae_pretrain.py" in said
    with pytest.raises(SystemExit):
        run_mae_pretrain.parse_args([*flags, str(tmp_path / "c")])
    assert f"{tmp_path / 'c'}: found no such folder" in capsys.readouterr().err
