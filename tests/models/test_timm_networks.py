"""Networks of timm: made, loaded, saved and described as the other models are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_classification
import timm
import torch
from cxr.errors import UserError
from cxr.models import configs
from cxr.models import families
from cxr.models.acceleration import speed_up
from cxr.models.architectures import FIELDS
from cxr.models.architectures import describe_architecture
from cxr.models.architectures import estimate_gflop
from cxr.models.architectures import find_architecture
from cxr.models.features import load_encoder
from cxr.models.layers import add_drop_path
from cxr.models.layers import has_batchnorm
from cxr.models.layers import synchronize_batchnorm
from cxr.models.masking import hide_patches
from cxr.models.parameters import count_parameters
from cxr.models.pretrained import load_config
from cxr.models.pretrained import load_image_processor
from cxr.models.pretrained import load_pretrained
from cxr.models.scratch import new_classifier
from cxr.training.optimization import make_adamw
from safetensors.torch import load_file
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import AutoImageProcessor
from transformers import AutoModelForImageClassification
from transformers import TimmWrapperConfig
from transformers import TimmWrapperForImageClassification

LABELS = ["No Finding", "Finding"]
LOCAL = {"hub_dir": None, "revision": "main"}
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1]}


def make(name: str, image_size: int | None = 32, **options):
    torch.manual_seed(0)
    return new_classifier(
        configs.make_config(f"timm/{name}", overrides=None, image_size=image_size), LABELS, **options
    )


def on_hub(folder: Path, name: str, image_size: int, **arguments) -> Path:
    """Writes a folder as timm's models on the Hub are: a config.json without model_type, no processor."""
    folder.mkdir()
    network = timm.create_model(name, num_classes=10, **arguments)
    save_file(network.state_dict(), folder / "model.safetensors")
    about = {"tag": "in1k", "input_size": [3, image_size, image_size], **STATISTICS, "num_classes": 10}
    content = {"architecture": name, "num_classes": 10, "pretrained_cfg": about, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def load(folder: Path, *, labels=LABELS):
    config = load_config(str(folder), expected=tuple(families.FAMILIES), **LOCAL)
    return load_pretrained(
        families.family_of(config).classifier,
        str(folder),
        config=configs.classifier_config(config, labels),
        new_head=families.new_parameters(config),
        **LOCAL,
    )


def test_a_new_network_is_initialised_as_timm_does():
    found = make("test_resnet").timm_model.state_dict()
    torch.manual_seed(0)
    TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_resnet", num_labels=2))
    expected = timm.create_model("test_resnet", num_classes=2).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_plain_transformers_loads_a_saved_network_and_its_processor(name, tmp_path):
    model = make(name, multi_label=True).eval()
    model.save_pretrained(tmp_path)
    load_image_processor(None, image_size=32, **LOCAL).save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert list(loaded.config.id2label.values()) == LABELS
    assert loaded.config.problem_type == "multi_label_classification"
    pixel_values = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(pixel_values).logits, loaded(pixel_values).logits)
    assert AutoImageProcessor.from_pretrained(tmp_path).size["height"] == 32
    config = load_config(str(tmp_path), expected=("timm_wrapper",), **LOCAL)
    assert list(config.id2label.values()) == LABELS


def test_a_model_in_timms_own_form_keeps_its_weights_and_statistics_and_gets_a_new_head(tmp_path):
    folder = on_hub(tmp_path / "model", "test_resnet", 64)
    model = load(folder)
    expected = timm.create_model("test_resnet", num_classes=10)
    expected.load_state_dict(load_weights(folder))
    pixel_values = torch.rand(2, 3, 64, 64)
    found = model.eval().timm_model.forward_features(pixel_values)
    torch.testing.assert_close(found, expected.eval().forward_features(pixel_values))
    assert model.config.num_labels == 2
    processor = load_image_processor(str(folder), image_size=64, **LOCAL)
    assert list(processor.image_mean) == STATISTICS["mean"] and list(processor.image_std) == STATISTICS["std"]


def test_the_input_size_of_a_model_in_timms_own_form_is_that_in_its_config(tmp_path):
    folder = on_hub(tmp_path / "model", "test_resnet", 96)
    args = run_classification.parse_args([f"--model_name_or_path={folder}"])
    assert run_classification.load_config(args)[1] == 96
    flags = {"pooling": None, "image_size": None, "overrides": None, "device": torch.device("cpu")}
    assert load_encoder(str(folder), **flags, **LOCAL).image_size == 96


def load_weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def test_a_pretrained_vit_takes_images_of_another_size_as_timm_interpolates_it(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = on_hub(tmp_path / "model", "test_vit", 64, img_size=64)
    model = load(folder)
    families.set_input_size(model, 96)
    expected = timm.create_model("test_vit", num_classes=10, img_size=64)
    expected.load_state_dict(load_weights(folder))
    expected.set_input_size((96, 96))
    assert torch.equal(model.timm_model.pos_embed, expected.pos_embed)
    assert "Position embeddings interpolated by timm, 64 to 96 pixels" in caplog.messages
    assert model.config.model_args["img_size"] == 96
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    pixel_values = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(again(pixel_values).logits, model.eval()(pixel_values).logits)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_a_swin_for_images_of_another_size_computes_the_same_after_it_is_loaded_again(name, tmp_path):
    model = load(on_hub(tmp_path / "model", name, 64, img_size=64, embed_dim=24))
    for parameter in model.parameters():  # those of a new block's last norms are 0
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    families.set_input_size(model, 96)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    pixel_values = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(again(pixel_values).logits, model.eval()(pixel_values).logits)


def test_a_network_whose_windows_timm_would_not_make_again_keeps_its_size(tmp_path):
    model = load(on_hub(tmp_path / "model", "swin_s3_tiny_224", 224, embed_dim=24))
    with pytest.raises(UserError, match="--image_size 256: found swin_s3_tiny_224 of timm"):
        families.set_input_size(model, 256)


def test_images_that_fit_no_windows_are_refused_before_training():
    for arguments in ({}, {"img_size": 250}):  # pretrained, and untrained
        config = TimmWrapperConfig(architecture="maxvit_tiny_rw_224", model_args=arguments)
        with pytest.raises(UserError, match="timm/maxvit_tiny_rw_224, image_size 250: found an input"):
            families.check_input_size(config, 250)


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [("vit_tiny_patch16_224", 100, 16), ("beit_base_patch16_224", 100, 16), ("swin_s3_tiny_224", 226, 4)],
)
def test_images_that_are_no_multiple_of_the_patches_are_refused_as_for_own_vits(name, size, side):
    message = f"found image_size={size}, expected a multiple of patch_size={side}, such as "
    with pytest.raises(UserError, match=message):
        configs.make_config(f"timm/{name}", overrides=None, image_size=size)
    pretrained = TimmWrapperConfig(architecture=name, model_args={})
    with pytest.raises(UserError, match=message):
        families.check_input_size(pretrained, size)
    families.check_input_size(pretrained, 224)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"act_layer": "os.system"}, "found act_layer in model_args, expected some of img_size"),
        ({"pretrained": True}, "found pretrained in model_args"),
        ({"depth": 10**9}, "model_args.depth"),
        ({"embed_dim": 10**6, "depth": 10}, "GiB"),
        ({"embed_dim": 100, "num_heads": 3}, "expected arguments that timm's test_vit takes"),
        ({"in_chans": 1}, "in_chans"),
    ],
)
def test_arguments_of_a_network_are_checked_against_a_list(arguments, reason, tmp_path):
    content = {"model_type": "timm_wrapper", "architecture": "test_vit", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        load_config(str(tmp_path), expected=("timm_wrapper",), **LOCAL)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp", "../x", "densenet121.ra_in1k"])
def test_a_config_names_a_network_and_nothing_to_download(name, tmp_path):
    content = {"model_type": "timm_wrapper", "architecture": name}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="architecture"):
        load_config(str(tmp_path), expected=("timm_wrapper",), **LOCAL)


def test_an_unknown_name_is_refused_with_a_similar_one():
    with pytest.raises(UserError, match=r"found no densenet12 in timm .*did you mean densenet121"):
        make("densenet12")


def test_an_untrained_network_named_as_a_pretrained_one_is_said_to_be_a_config_name(monkeypatch):
    monkeypatch.setattr("cxr.models.pretrained._reaches_hub", lambda: False)
    with pytest.raises(UserError, match=r"did you mean --config_name timm/resnet18\?"):
        load_config("timm/resnet18", expected=tuple(families.FAMILIES), **LOCAL)


def test_images_too_small_for_the_strides_of_a_network_are_refused_before_training():
    config = configs.make_config("timm/resnet18", overrides=None, image_size=None)
    families.check_input_size(config, 32)
    config = configs.make_config("timm/densenet121", overrides=None, image_size=None)
    with pytest.raises(UserError, match="timm/densenet121, image_size 16: found an input that the network"):
        families.check_input_size(config, 16)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_layer_decay_and_weight_decay_are_those_of_timm(name):
    model = make(name)
    options = {"weight_decay": 0.05, "layer_decay": 0.75}
    optimizer = make_adamw(model, learning_rate=1.0, betas=(0.9, 0.999), **options)
    network = model.timm_model
    exempt = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = param_groups_layer_decay(network, no_weight_decay_list=exempt, **options)
    expected = {
        id(one): (group["lr_scale"], group["weight_decay"]) for group in groups for one in group["params"]
    }
    found = {
        id(one): (group["learning_rate_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for one in group["params"]
    }
    assert found.keys() == expected.keys()
    assert all(found[one] == pytest.approx(expected[one]) for one in found)


def test_drop_path_is_timms_and_the_saved_model_knows_nothing_of_it():
    model = make("test_vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_drop_path(model, 0.1)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.timm_model.blocks]
    expected = timm.create_model("test_vit", drop_path_rate=0.1).blocks
    assert rates == [getattr(block.drop_path1, "drop_prob", 0.0) for block in expected]
    assert max(rates) == pytest.approx(0.1)
    assert "drop_path_rate" not in model.config.model_args
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_drop_path_that_timm_adds_by_default_is_off_without_the_flag():
    args = run_classification.parse_args(["--config_name=timm/swin_tiny_patch4_window7_224"])
    config, image_size = run_classification.load_config(args)
    images = SimpleNamespace(label_names=LABELS, is_multi_label=False)
    for rate in (0.0, 0.2):
        args.drop_path = rate
        model = run_classification.load_model(args, config, image_size, images)
        rates = [one.drop_prob for one in model.modules() if isinstance(one, timm.layers.DropPath)]
        assert rates and max(rates) == pytest.approx(rate)


@pytest.mark.slow
def test_drop_path_of_a_network_without_such_branches_is_refused():
    with pytest.raises(UserError, match=r"--drop_path 0\.1: found densenet121 of timm"):
        add_drop_path(make("densenet121"), 0.1)


@pytest.mark.slow
def test_synchronised_batch_normalisation_keeps_timms_activations():
    model = make("densenet121")
    activations = [type(one.act) for one in model.modules() if isinstance(one, timm.layers.BatchNormAct2d)]
    assert has_batchnorm(model)
    converted = synchronize_batchnorm(model)
    found = [type(one.act) for one in converted.modules() if isinstance(one, timm.layers.SyncBatchNormAct)]
    assert nn.ReLU in activations and found == activations


def test_hiding_patches_keeps_the_first_tokens_of_a_vit():
    model = make("test_vit")
    first, side = model.timm_model.num_prefix_tokens, model.timm_model.patch_embed.grid_size[0]
    hook, lengths = hide_patches(model, 0.5), []
    model.timm_model.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    hook.noise = torch.rand(2, families.num_patches(model.config, 32))
    model(torch.rand(2, 3, 32, 32))
    hook.noise = None
    model(torch.rand(2, 3, 32, 32))
    assert lengths == [first + side**2 // 2, first + side**2]


def test_the_head_that_is_trained_alone_is_timms_classifier():
    for name in ("test_resnet", "test_convnext", "test_vit"):
        model = make(name)
        (head,) = families.family_of(model.config).heads(model)
        assert head.out_features == 2
        assert all(one in set(head.parameters()) for one in model.timm_model.get_classifier().parameters())


def test_fsdp_shards_a_vit_block_by_block_and_a_cnn_as_one():
    assert make("test_vit")._no_split_modules == ["Block"]
    assert make("test_resnet")._no_split_modules == []


def test_a_cnn_is_laid_out_as_channels_last():
    model = make("test_resnet")
    speed_up(model, torch_compile=False)
    kernels = [one.weight for one in model.modules() if isinstance(one, nn.Conv2d) and one.kernel_size[0] > 1]
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in kernels)


@pytest.mark.parametrize(("name", "family"), [("test_resnet", "resnet"), ("test_vit", "vit")])
def test_a_name_alone_tells_family_parameters_and_cost(name, family):
    fields = find_architecture(f"timm/{name}")
    assert fields.family == family
    assert find_architecture(f"timm/{name}.r160_in1k") == fields
    model = make(name, image_size=None)
    expected = sum(one.numel() for one in model.parameters())
    assert count_parameters(fields, num_labels=2) == expected
    whole, half = (estimate_gflop(fields, image_size=160, share_seen=share) for share in (1.0, 0.5))
    assert whole > 0 and half == pytest.approx(whole / 2 if family == "vit" else whole)
    assert describe_architecture(FIELDS["timm_wrapper"].model_validate(model.config.to_dict())) == (
        f"{name} of timm"
    )


@pytest.mark.slow
def test_densenet121_costs_what_its_authors_count():
    assert estimate_gflop(find_architecture("timm/densenet121"), image_size=224, share_seen=1.0) == (
        pytest.approx(2 * 2.88, rel=0.03)
    )
