"""A published file becomes a folder that our scripts and plain transformers load, or nothing is written."""

import json
import re

import convert_checkpoint
import probe
import published_files as files
import pytest
import run_classification
import run_mae_pretrain
import torch
import torchvision
from cxr.data.transforms import Normalizer
from cxr.errors import UserError
from cxr.models.configs import classifier_config
from cxr.models.pretrained import load_config
from cxr.models.pretrained import load_pretrained
from published_files import HEADS_FLAGS
from refused import refused
from safetensors.torch import save_file
from tiny_runs import QUICK
from tiny_runs import run_main
from transformers import AutoImageProcessor
from transformers import AutoModelForImageClassification
from transformers import ResNetForImageClassification
from transformers import ViTForImageClassification
from transformers import ViTMAEForPreTraining

LOCAL = {"hub_dir": None, "revision": "main"}
HEAD = {"new_head": "classifier."}


def convert(file, out, *flags):
    convert_checkpoint.main([str(file), str(out), *flags])
    assert {path.name for path in out.parent.iterdir() if path.name.startswith(".")} == set()
    return out


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory):
    """The folder of a masked autoencoder of medical_mae's."""
    folder = tmp_path_factory.mktemp("medical")
    tensors = files.encoder_tensors() | files.decoder_tensors()
    flags = {"model": "mae_vit_small_patch16_dec512d2b", "datasets_names": ["chexpert"]}
    file = files.save_checkpoint(folder / "vit-s_CXR_tiny_mae.pth", tensors, **flags)
    return convert(file, folder / "mae", *HEADS_FLAGS)


def flags_of_run(sample_root, folder):
    return [f"--data_dir={sample_root}", f"--model_name_or_path={folder}", *QUICK, "--max_train_steps=2"]


def test_folder_has_the_files_of_a_model_and_loads_in_plain_transformers_bit_by_bit(mae_folder):
    assert {path.name for path in mae_folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = json.loads((mae_folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "vit_mae" and config["layer_norm_eps"] == 1e-6
    model, info = ViTMAEForPreTraining.from_pretrained(mae_folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tensors, found = files.encoder_tensors() | files.decoder_tensors(), model.state_dict()
    assert torch.equal(found["vit.embeddings.position_embeddings"], tensors["pos_embed"])
    assert torch.equal(found["decoder.decoder_pos_embed"], tensors["decoder_pos_embed"])
    key = tensors["blocks.1.attn.qkv.weight"][files.WIDTH : 2 * files.WIDTH]
    assert torch.equal(found["vit.layers.1.attention.k_proj.weight"], key)
    assert list(AutoImageProcessor.from_pretrained(mae_folder).image_mean) == [0.5056] * 3


@pytest.mark.parametrize("script", [run_mae_pretrain, run_classification], ids=lambda one: one.__name__)
def test_training_starts_from_the_folder_with_its_statistics(
    script, mae_folder, sample_root, tmp_path, monkeypatch
):
    seen = []
    normalize = Normalizer.__call__

    def watch(self, images):
        seen.append((images, normalize(self, images)))
        return seen[-1][1]

    monkeypatch.setattr(Normalizer, "__call__", watch)
    run_main(script, tmp_path / "run", *flags_of_run(sample_root, mae_folder))
    images, normalized = seen[0]
    expected = (images.float() / 255 - 0.5056) / 0.252
    assert torch.allclose(normalized, expected.expand_as(normalized), atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert list(processor.image_mean) == [0.5056] * 3 and list(processor.image_std) == [0.252] * 3


def load(folder, model_class, **options):
    """Loads a folder as the training scripts do."""
    config = load_config(str(folder), expected=("vit_mae", "resnet"), **LOCAL)
    if options:
        config = classifier_config(config, ["negative", "positive"])
    return load_pretrained(model_class, str(folder), config=config, **LOCAL, **options)


def test_both_trainings_load_an_encoder_without_decoder(tmp_path):
    tensors = files.encoder_tensors()
    file = files.save_checkpoint(tmp_path / "mae_pretrain_vit_tiny.pth", tensors)
    folder = convert(file, tmp_path / "mae", *HEADS_FLAGS)
    for model_class, options in ((ViTMAEForPreTraining, {}), (ViTForImageClassification, HEAD)):
        model = load(folder, model_class, **options)
        assert torch.equal(model.vit.embeddings.position_embeddings, tensors["pos_embed"])
        assert torch.equal(model.vit.layers[1].mlp.fc2.weight, tensors["blocks.1.mlp.fc2.weight"])


@pytest.mark.parametrize("with_head", [True, False])
def test_fine_tuning_loads_a_resnet(with_head, tmp_path):
    tensors = torchvision.models.resnet18(num_classes=1000).state_dict()
    tensors = {name: values for name, values in tensors.items() if with_head or "fc." not in name}
    save_file(tensors, tmp_path / "resnet18.safetensors")
    folder = convert(tmp_path / "resnet18.safetensors", tmp_path / "resnet-18")
    model = load(folder, ResNetForImageClassification, **HEAD)
    found = model.resnet.encoder.stages[3].layers[1].layer[1].convolution.weight
    assert torch.equal(found, tensors["layer4.1.conv2.weight"])


def test_classifier_keeps_its_head_in_plain_transformers(tmp_path):
    tensors = files.classifier_tensors(5)
    folder = convert(files.save_checkpoint(tmp_path / "x.pth", tensors), tmp_path / "vit", *HEADS_FLAGS)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert isinstance(model, ViTForImageClassification) and model.config.num_labels == 5
    with torch.no_grad():
        found = model(pixel_values=files.images()).logits
    assert torch.allclose(found, files.logits_of(tensors, files.images()), atol=1e-5)


def test_mean_pooling_is_kept_in_plain_transformers_with_timm(tmp_path):
    tensors = files.classifier_tensors(5, mean_pooling=True)
    file = files.save_checkpoint(tmp_path / "x.pth", tensors, dataset="chestxray", norm_stats=None)
    folder = convert(file, tmp_path / "vit", *HEADS_FLAGS)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(pixel_values=files.images()).logits
    assert torch.allclose(found, files.logits_of(tensors, files.images()), atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.5056] * 3 and processor.size["height"] == files.SIDE


def test_table_has_every_tensor_once_and_what_is_not_used(tmp_path, capsys):
    tensors = files.encoder_tensors()
    file = files.save_checkpoint(tmp_path / "x.pth", tensors, norm_pix_loss=False)
    convert(file, tmp_path / "mae", *HEADS_FLAGS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "tensor in the file"
    assert [line.split()[0] for line in lines[1 : 1 + len(tensors)]] == list(tensors)
    qkv = next(line for line in lines if line.startswith("blocks.1.attn.qkv.bias"))
    assert qkv.split(maxsplit=2)[1:] == ["vit.layers.1.attention.{q,k,v}_proj.bias", "(72,)"]
    rest = "\n".join(lines[1 + len(tensors) :])
    for part in ("not used: optimizer (", "not used: epoch (", "new one with random weights", "ImageNet's"):
        assert part in rest


@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema"])
def test_an_average_of_the_weights_is_taken_and_named(entry, tmp_path, capsys):
    tensors = torchvision.models.resnet18(num_classes=2).state_dict()
    average = {name: values + 1 if values.is_floating_point() else values for name, values in tensors.items()}
    wrapped = {f"module.{name}": values for name, values in average.items()} | {"n_averaged": torch.tensor(3)}
    torch.save({"state_dict": tensors, entry: wrapped}, tmp_path / "x.pth")  # as torch's AveragedModel
    model = load(convert(tmp_path / "x.pth", tmp_path / "out"), ResNetForImageClassification)
    assert torch.equal(model.classifier[1].bias, average["fc.bias"])
    assert (
        f"not used: state_dict (weights of the training; {entry} is used instead)" in capsys.readouterr().out
    )


def test_statistics_of_the_flags_win(tmp_path):
    file = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors(), datasets_names=[])
    given = ["--image_mean", "0.1", "0.2", "0.3", "--image_std", "0.4", "0.5", "0.6"]
    processor = AutoImageProcessor.from_pretrained(convert(file, tmp_path / "mae", *HEADS_FLAGS, *given))
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and list(processor.image_std) == [0.4, 0.5, 0.6]


def test_statistics_of_medical_maes_fine_tuning_are_called_so(tmp_path, capsys):
    file = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors(), datasets_names=["mimic_cxr"])
    convert(file, tmp_path / "mae", *HEADS_FLAGS)
    assert "those of medical_mae's fine-tuning; its pretraining had ImageNet's for" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[1]", '{"model_type": "bert"}'])
def test_a_config_beside_the_file_that_is_not_timms_is_not_used(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    file = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors())
    convert(file, tmp_path / "mae", *HEADS_FLAGS)
    said = capsys.readouterr().out
    assert "not used: config.json (a file beside it, but not timm's)" in said and "ImageNet's" in said


# Refusals ---------------------------------------------------------------------------------------------------

WRONG = {
    "one statistic": (["--image_mean", "0", "0", "0"], "found one of them, expected both or none"),
    "a mean of gray levels": (["--image_mean", "128", "1", "1"], "found 128, expected a number from 0 to 1"),
    "a deviation of 0": (["--image_std", "0", "1", "1"], r"found 0, expected a number from 0.001 to 1"),
    "heads that do not divide": (
        ["--num_attention_heads=5"],
        "and of num_attention_heads=5",
    ),
    "no number of heads": ([], "add --num_attention_heads N"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flags_are_refused_and_nothing_is_written(case, tmp_path, capsys):
    flags, message = WRONG[case]
    file = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors())
    assert message in refused(convert_checkpoint.main, [file, tmp_path / "out", *flags], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_folder_that_is_there_is_not_replaced(mae_folder, capsys):
    file = mae_folder.parent / "vit-s_CXR_tiny_mae.pth"
    message = refused(convert_checkpoint.main, [file, mae_folder, *HEADS_FLAGS], capsys)
    assert "found something there, expected nothing" in message


def test_a_stop_while_writing_leaves_no_folder(tmp_path, monkeypatch):
    def fail(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ViTMAEForPreTraining, "save_pretrained", fail)
    file = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors())
    with pytest.raises(OSError):
        convert_checkpoint.main([str(file), str(tmp_path / "out"), *HEADS_FLAGS])
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("script", [run_mae_pretrain, run_classification], ids=lambda one: one.__name__)
def test_training_scripts_say_how_to_convert_a_file(script, suffix, sample_root, tmp_path):
    file = tmp_path / f"x{suffix}"
    file.touch()
    message = f"make one of this file with scripts/convert_checkpoint.py {file} {tmp_path / 'x'}"
    with pytest.raises(UserError, match=re.escape(message)):
        run_main(script, tmp_path / "run", *flags_of_run(sample_root, file))


def test_a_probe_says_how_to_convert_a_file(tmp_path):
    file = tmp_path / "x.pth"
    file.touch()
    message = f"make one of this file with scripts/convert_checkpoint.py {file} {tmp_path / 'x'}"
    with pytest.raises(UserError, match=re.escape(message)):
        probe.main([str(file), f"--output_dir={tmp_path / 'out'}"])
