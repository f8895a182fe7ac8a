"""Model folders, configurations and run records that someone edited or damaged: right, or one clear line.

What is refused is a UserError, which the scripts print on one line. No code in a folder is run, and nothing
is written outside a report's folder. The slow tests draw 780 cases.
"""

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import report_study
import torch
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.models import architectures
from cxr.models import configs
from cxr.models.architectures import estimate_gflop
from cxr.models.architectures import find_architecture
from cxr.models.pretrained import load_config
from cxr.models.pretrained import load_image_processor
from cxr.models.pretrained import load_pretrained
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from cxr.sharing import local_hub
from finished_runs import measured
from finished_runs import write_run
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save_file
from transformers import ResNetConfig
from transformers import ResNetForImageClassification
from transformers import ViTForImageClassification
from transformers import ViTMAEForPreTraining

LOCAL = {"hub_dir": None, "revision": "main"}
LABELS = ["No Finding", "Pleural Effusion"]
CLASSIFIERS = {
    "vit_mae": ViTForImageClassification,
    "vit": ViTForImageClassification,
    "resnet": ResNetForImageClassification,
}
SMALL = (
    "hidden_size=8,num_attention_heads=2,num_hidden_layers=1,intermediate_size=8,patch_size=8,"
    "decoder_hidden_size=8,decoder_num_attention_heads=2,decoder_num_hidden_layers=1,decoder_intermediate_size=8"
)
WEIGHTS: dict[str, dict[str, torch.Tensor]] = {}  # of the models in `originals`
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = 10**400


def cases(number: int):
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """A model folder of each kind, as a run leaves it."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = configs.make_config("vit-mae-tiny", overrides=SMALL, image_size=16)
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    made = {"vit_mae": new_mae(config), "vit": new_classifier(config, LABELS)}
    made["resnet"] = new_classifier(small, LABELS)
    for name, model in made.items():
        model.save_pretrained(root / name)
        WEIGHTS[name] = model.state_dict()
        load_image_processor(None, image_size=16, **LOCAL).save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture
def folder(originals, tmp_path) -> Path:
    """A copy of the ViT's folder, to be spoilt."""
    return Path(shutil.copytree(originals["vit"], tmp_path / "model"))


def load(folder: Path, *, pretraining: bool = False):
    """Loads a model and its image processor as the main scripts do."""
    name = str(folder)
    expected = ("vit_mae",) if pretraining else tuple(CLASSIFIERS)
    config = load_config(name, expected=expected, **LOCAL)
    if pretraining:
        model = load_pretrained(ViTMAEForPreTraining, name, config=config, **LOCAL)
    else:
        kind, config = CLASSIFIERS[config.model_type], configs.classifier_config(config, LABELS)
        model = load_pretrained(kind, name, config=config, new_head=("classifier.",), **LOCAL)
    return model, load_image_processor(name, image_size=16, **LOCAL)


def load_or_refuse(folder: Path, *, pretraining: bool = False):
    """Returns what `load` does, None where it is refused in a line that names the folder.

    What loads computes finite numbers, and nothing was written, not even by code in the folder.
    """
    before = sorted(folder.parent.rglob("*"))
    try:
        model, processor = load(folder, pretraining=pretraining)
    except UserError as error:
        assert str(folder) in str(error) and len(str(error)) < 1500 and "\n" not in str(error)
        model = None
    assert sorted(folder.parent.rglob("*")) == before
    if model is None:
        return None
    outputs = model(torch.rand(2, 3, 16, 16))
    assert torch.isfinite(outputs.loss if pretraining else outputs.logits).all()
    assert all(0 <= mean <= 1 for mean in processor.image_mean)
    assert all(0 < deviation <= 1 for deviation in processor.image_std)
    return model, processor


def changed(model: torch.nn.Module, kind: str) -> set[str]:
    """The weights of a model that are not those of its original; of another head, its own."""
    saved = WEIGHTS[kind]
    return {key for key, value in model.state_dict().items() if not torch.equal(value, saved.get(key, value))}


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(folder: Path, **changes: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class Bomb:
    """A pickle of it makes a folder where it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# Code in a folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json"])
def test_pickle_beside_safetensors_is_not_read_and_one_without_is_refused(folder, tmp_path, name):
    (folder / name).write_bytes(pickle.dumps({"vit.layernorm.weight": Bomb(tmp_path / "marker")}))
    model, _ = load_or_refuse(folder)
    assert not changed(model, "vit")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"found no model\.safetensors.*they can hold code; .*convert"):
        load(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["vit", "made-up"])
def test_python_beside_a_model_is_never_run(folder, tmp_path, kind):
    code = f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code, encoding="utf-8")
    names = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoImageProcessor")}
    edit_json(folder / "config.json", model_type=kind, auto_map=names)
    edit_json(folder / "preprocessor_config.json", image_processor_type="Evil", auto_map=names)
    assert load_or_refuse(folder) is None
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("shard", ["evil.bin", "../vit/model.safetensors", "/etc/model.safetensors", 5, None])
def test_index_that_names_other_files_than_safetensors_beside_it_is_refused(folder, tmp_path, shard):
    keys = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "evil.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    names = dict.fromkeys(keys, "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    assert load_or_refuse(folder)
    index.write_text(json.dumps({"metadata": {}, "weight_map": names | {"a": shard}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.json: found .*, expected names of safetensors files"):
        load(folder)
    assert not (tmp_path / "marker").exists()


def test_shards_of_a_distributed_checkpoint_are_not_read_in_place_of_the_model(folder):
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match=r"shard-\*\.safetensors.*expected model\.safetensors"):
        load(folder)


def test_code_in_a_pickle_in_the_hub_directory_never_runs(folder, tmp_path, monkeypatch):
    # As others push.
    monkeypatch.setattr(local_hub, "files_to_share", lambda folder: sorted(folder.iterdir()))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb(tmp_path / "marker")}))
    local_hub.push(folder, hub_dir=tmp_path / "hub", model_id="lab/model", message="")
    source = {"hub_dir": tmp_path / "hub", "revision": "main"}
    config = load_config("lab/model", expected=("vit",), **source)
    with pytest.raises(UserError, match="model lab/model, revision main: could not be loaded"):
        load_pretrained(ViTForImageClassification, "lab/model", config=config, **source)
    assert not (tmp_path / "marker").exists()


def test_damaged_image_processor_in_the_hub_directory_is_not_replaced(folder, tmp_path):
    (folder / "preprocessor_config.json").write_text("{", encoding="utf-8")
    (folder / "README.md").write_text("A card", encoding="utf-8")
    local_hub.push(folder, hub_dir=tmp_path / "hub", model_id="lab/model", message="")
    with pytest.raises(UserError, match="model lab/model, revision main: could not be loaded"):
        load_image_processor("lab/model", hub_dir=tmp_path / "hub", revision="main", image_size=16)


# Weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_finite_numbers_are_refused(folder, value):
    edit_weights(folder, **{"vit.layernorm.weight": torch.full((8,), value)})
    with pytest.raises(
        UserError, match=r"found NaN or infinite weights, first vit\.layernorm\.weight; expected"
    ):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_weights_of_another_type_are_read_as_their_values(folder, dtype):
    edit_weights(folder, **{"vit.layernorm.weight": torch.arange(8).to(dtype)})
    model, _ = load_or_refuse(folder)
    assert model.vit.layernorm.weight.dtype == torch.float32
    assert model.vit.layernorm.weight.tolist() == list(range(8))


def test_config_of_a_much_larger_model_is_refused_before_it_is_made(folder, monkeypatch):
    edit_json(folder / "config.json", hidden_size=4096)
    monkeypatch.setattr(ViTForImageClassification, "from_pretrained", None)  # it would be called
    with pytest.raises(UserError, match=r"found 2,\d+ parameters, expected the [\d,]+ that its config.json"):
        load(folder)


@pytest.mark.slow
@cases(120)
@given(data=st.data())
def test_damaged_weights_load_as_they_are_or_are_refused(originals, tmp_path, data):
    kind = data.draw(st.sampled_from(sorted(originals)))
    folder = Path(shutil.copytree(originals[kind], tmp_path / "model", dirs_exist_ok=True))
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    how = data.draw(st.sampled_from(["cut", "flip", "length", "longer", "drop", "shape", "value"]))
    if how in ("drop", "shape", "value"):
        weights = load_file(path)
        key = data.draw(st.sampled_from(sorted(weights)))
        if how == "drop":
            del weights[key]
        elif how == "shape":
            shape = data.draw(st.lists(st.integers(0, 9), max_size=4))
            weights[key] = torch.ones(shape)
        elif weights[key].is_floating_point() and weights[key].numel():
            weights[key].view(-1)[0] = data.draw(st.sampled_from([math.nan, math.inf, 0.0, 0.5]))
        save_file(weights, path, metadata={"format": "pt"})
    elif how == "cut":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    elif how == "length":
        length = data.draw(st.sampled_from([0, 1, header, 10**8, 2**63, 2**64 - 1]))
        path.write_bytes(length.to_bytes(8, "little") + whole[8:])
    elif how == "longer":
        path.write_bytes(whole + b"x" * data.draw(st.integers(1, 100)))
    else:
        at = data.draw(st.integers(0, header - 1))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    found = load_or_refuse(folder)
    assert found is None or how not in ("cut", "length", "longer")
    if found:
        # The head may be new, or one tensor that the file has otherwise.
        body = {key for key in changed(found[0], kind) if not key.startswith("classifier.")}
        assert len(body) <= (how in ("flip", "shape", "value"))


# config.json ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 0}, "hidden_size=0, expected greater than 0"),
        ({"hidden_size": "8"}, "hidden_size='8', expected a valid integer"),
        ({"hidden_size": HUGE}, "hidden_size=1000.*, expected less than or equal to 1000000"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers=10000000, expected less than or equal to 1000"),
        ({"num_attention_heads": 3}, "hidden_size=8, expected a multiple of .*num_attention_heads=3"),
        ({"image_size": 15}, "image_size=15, expected a multiple of patch_size=8"),
        ({"image_size": [16, 16]}, r"image_size=\[16, 16\], expected a valid integer"),
        ({"image_size": 800_000}, "takes 298 GiB, expected one that fits"),
        ({"num_channels": 4}, "num_channels=4, expected 3"),
        ({"hidden_act": "made-up"}, "hidden_act='made-up', expected one of gelu"),
        ({"hidden_act": []}, "hidden_act=.*, expected a valid string"),
        ({"hidden_dropout_prob": 7}, "hidden_dropout_prob=7, expected less than 1"),
        ({"attention_probs_dropout_prob": math.nan}, "probs_dropout_prob=nan, expected less than 1"),
        ({"layer_norm_eps": math.inf}, "layer_norm_eps=inf, expected less than 1"),
        ({"qkv_bias": "no"}, "qkv_bias='no', expected a valid boolean"),
        ({"model_type": "resnet", "hidden_sizes": []}, "hidden_sizes=.*at least 1 item"),
        ({"model_type": "resnet", "hidden_sizes": [10**9, 8]}, "hidden_sizes.0=1000000000, expected less"),
        ({"model_type": "resnet", "depths": [10**8, 1]}, "depths.0=100000000, expected less than or equal"),
        ({"model_type": "resnet", "depths": [1]}, "hidden_sizes and depths of different lengths"),
        ({"model_type": "resnet", "layer_type": "made-up"}, "layer_type='made-up', expected 'basic' or"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_value_that_no_model_can_have_is_refused_by_its_name(folder, change, said):
    edit_json(folder / "config.json", **change)
    with pytest.raises(UserError, match=said) as error:
        load(folder)
    assert f"{folder}: config.json: found" in str(error.value)


# What is no part of a network: transformers acts on it, or ends in a trace.
BESIDE = {
    "return_dict": False,
    "output_attentions": True,
    "torchscript": True,
    "attn_implementation": "someone/kernel",
    "quantization_config": {"quant_method": "bitsandbytes_4bit"},
    "transformers_weights": "../other/model.safetensors",
    "fusion_config": 5,
    "id2label": [1, 2],
    "num_labels": "x",
    "label2id": 5,
    "architectures": 5,
    "dtype": "load",
    "per_layer_config": 5,
    "sub_configs": 5,
    "to_dict": 5,
    "problem_type": "made-up",
    "mask_ratio": 7.0,
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("kind", ["vit_mae", "resnet"])
def test_nothing_but_the_network_is_taken_from_a_config(originals, tmp_path, kind, name):
    folder = Path(shutil.copytree(originals[kind], tmp_path / "model"))
    edit_json(folder / "config.json", **{name: BESIDE[name]})
    model, _ = load_or_refuse(folder, pretraining=kind == "vit_mae")
    assert not changed(model, kind)


def test_head_of_other_labels_is_still_known_as_such(folder):
    edit_json(folder / "config.json", id2label={"0": "cat", "1": 5})
    config = load_config(str(folder), expected=("vit",), **LOCAL)
    assert config.architectures == ["ViTForImageClassification"] and config.id2label == {0: "cat", 1: "5"}


@pytest.mark.parametrize("text", ["{", "[]", "5", "null", "", DEEP, '{"a":' * 100_000, '{"a":' + "9" * 5000])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_file_that_is_no_json_object_is_refused(folder, name, text):
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(text, encoding="utf-8")
    assert load_or_refuse(folder) is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 100)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([HUGE, -HUGE, 2**63, 10**9, "x" * 10_000, "\ud800", "../..", "relu", 0.5, 8, 16, 4]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.slow
@cases(200)
@given(data=st.data())
def test_edited_config_loads_as_it_says_or_is_refused(originals, tmp_path, data):
    kind = data.draw(st.sampled_from(sorted(originals)))
    folder = Path(shutil.copytree(originals[kind], tmp_path / "model", dirs_exist_ok=True))
    shutil.copy(originals[kind] / "config.json", folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = data.draw(st.sampled_from(sorted({*content, *architectures.FIELDS[kind].model_fields, *BESIDE})))
    if data.draw(st.booleans()):
        content[name] = data.draw(JSON)
    else:
        content.pop(name, None)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    if found := load_or_refuse(folder, pretraining=kind == "vit_mae" and data.draw(st.booleans())):
        config = found[0].config
        for field in architectures.FIELDS[config.model_type].model_fields.keys() & content.keys():
            assert getattr(config, field) == content[field]
        body = {key for key in changed(found[0], kind) if not key.startswith("classifier.")}
        assert not body


# preprocessor_config.json -----------------------------------------------------------------------------------


MEANS = (5, None, [0.5], ["a", "b", "c"], [math.nan] * 3, [HUGE] * 3)
DEVIATIONS = ([0, 0, 0], [-1, 1, 1], [1e-300] * 3, {"a": 1, "b": 2, "c": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [*(("image_mean", mean) for mean in MEANS), *(("image_std", value) for value in DEVIATIONS)],
    ids=lambda value: str(value)[:40],
)
def test_statistics_that_no_image_has_are_refused(folder, name, value):
    edit_json(folder / "preprocessor_config.json", **{name: value})
    with pytest.raises(UserError, match=rf"r_config.json: found {name}=.*, expected three numbers"):
        load(folder)


@pytest.mark.slow
@cases(60)
@given(
    name=st.sampled_from(["image_mean", "image_std", "image_processor_type", "size", "auto_map"]), value=JSON
)
def test_edited_image_processor_has_the_statistics_it_says_or_is_refused(originals, tmp_path, name, value):
    folder = Path(shutil.copytree(originals["vit"], tmp_path / "model", dirs_exist_ok=True))
    path = folder / "preprocessor_config.json"
    edit_json(path, **{name: value})
    if found := load_or_refuse(folder):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert list(found[1].image_mean) == content["image_mean"]
        assert list(found[1].image_std) == content["image_std"]


# Flags ------------------------------------------------------------------------------------------------------


def test_revision_of_a_local_folder_and_a_file_in_its_place_are_refused(folder, monkeypatch):
    with pytest.raises(UserError, match=r"--model_revision v2: found the local folder .*no revisions; leave"):
        load_config(str(folder), expected=("vit",), hub_dir=None, revision="v2")
    monkeypatch.chdir(folder)
    with pytest.raises(
        UserError, match=r"config\.json: found a file; expected a folder with config\.json and model"
    ):
        load_config("config.json", expected=("vit",), **LOCAL)


NOT_TAKEN = ["return_dict", "num_labels", "model_type", "image_size", "mask_ratio", "to_dict", "no_such_key"]


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_overrides_of_what_is_no_part_of_the_network_are_refused(name):
    with pytest.raises(UserError, match=rf"{name}=5: .*no such key; expected one of hidden_size, num_hid"):
        configs.make_config("vit-mae-tiny", overrides=f"{name}=5", image_size=None)


OUT_OF_RANGE = (
    *("initializer_range=-1", "attention_probs_dropout_prob=-1", "hidden_dropout_prob=1e400", "qkv_bias=x"),
    *("layer_norm_eps=nan", "num_hidden_layers=1000000000", "num_attention_heads=0", "patch_size=-8"),
    *("patch_size=abc", "hidden_size=190", "hidden_size=30", "decoder_hidden_size=18", "hidden_act=foo"),
)
OF_A_RESNET = ("embedding_size=-2", "layer_type=foo", "hidden_act=foo")
CASES = [
    *(("vit-mae-tiny", overrides, None, overrides.split("=")[0]) for overrides in OUT_OF_RANGE),
    *(("resnet-18", overrides, None, overrides.split("=")[0]) for overrides in OF_A_RESNET),
    ("vit-mae-tiny", "hidden_size=393216", None, r"found a model that takes [\d,]+ GiB"),
    ("vit-mae-tiny", None, 800_000, r"found a model that takes [\d,]+ GiB"),
    ("vit-mae-base", None, 100, "--image_size: found image_size=100, expected a multiple of patch_size=16"),
]


@pytest.mark.parametrize(("name", "overrides", "image_size", "said"), CASES)
def test_values_that_no_model_can_have_are_refused_before_it_is_made(name, overrides, image_size, said):
    with pytest.raises(UserError, match=f"--config_overrides.*{said}"):
        configs.make_config(name, overrides=overrides, image_size=image_size)


def test_size_without_end_does_not_overflow_an_estimate():
    tiny = find_architecture("vit-mae-tiny")
    with pytest.raises(UserError, match=r"--config_overrides, .*found hidden_size="):
        architectures.override(tiny, f"hidden_size={HUGE}", image_size=None)
    for image_size in (0, 1e300, HUGE):
        with pytest.raises(UserError, match=r"image_size: found .*, expected a number from 1 to 1,000,000"):
            estimate_gflop(tiny, image_size=image_size, share_seen=0.5)


KEYS = [*architectures.VitMaeFields.model_fields, *architectures.ResnetFields.model_fields, *BESIDE]
TEXTS = ["0", "-1", "1e400", "nan", "true", "1_0", "9" * 400, "9" * 5000, "0.5", "relu", "8"]


@pytest.mark.slow
@cases(200)
@given(
    name=st.sampled_from(["vit-mae-tiny", "resnet-18"]),
    key=st.sampled_from(KEYS) | st.text(max_size=8),
    value=st.sampled_from(TEXTS) | st.integers(0, 2**40).map(str) | st.text(max_size=8),
    image_size=st.sampled_from([None, 15, 32, 10**9]),
)
def test_overrides_are_taken_as_they_are_or_refused(name, key, value, image_size):
    try:
        config = configs.make_config(name, overrides=f"{key}={value}", image_size=image_size)
    except UserError as error:
        assert "--config_overrides" in str(error) and "expected" in str(error)
        return
    taken = getattr(config, key)
    assert taken == (value if isinstance(taken, str) else type(taken)(json.loads(value.replace("_", ""))))


# Run folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    return new_run(tmp_path / "study" / "run")


def new_run(folder: Path, *, seed: int = 0) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return write_run(folder, num_images=12, seed=seed, flags={"seed": 0, "weight_decay": 0.1})


def report_or_refuse(folder: Path, capsys, *, root: Path) -> str | None:
    """Returns the page of a report that is written into `folder` alone, None where a line refuses it."""
    outside = {path for path in root.rglob("*") if not path.is_relative_to(folder / "report")}
    capsys.readouterr()
    try:
        argv = [str(folder), "--output_dir", str(folder / "report"), "--num_resamples", "2"]
        run_script(lambda: report_study.main(argv))
    except SystemExit as ended:
        message = capsys.readouterr().err
        assert ended.code == 2 and message.count("\n") == 1 and str(folder) in message, message
        page = None
    else:
        page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert {path for path in root.rglob("*") if not path.is_relative_to(folder / "report")} == outside
    shutil.rmtree(folder / "report", ignore_errors=True)
    return page


WRONG_VALUES = {
    "task": (None, [], "x" * 3000),
    "view": (5, {}),
    "mask_ratio": (HUGE, [1]),
    "random_erasing_prob": (HUGE, None),
    "num_train_images": (0, True, "64"),
    "seed": (None, -1),
}
AUROCS = (HUGE, math.nan, 1.5, "0.5", True)
RECORDS = [
    *(("results", {name: value}, name) for name, values in WRONG_VALUES.items() for value in values),
    *(("results", {"test": measured(auroc=value)}, "test.auroc") for value in AUROCS),
    ("results", {"augmentation": []}, "augmentation"),
    ("results", {"model": 5}, "model"),
    ("results", {"model": "\ud800"}, ""),  # no JSON
    ("results", {"images_per_step": None}, "images_per_step"),
    ("results", {"test": {"n": 200}}, "test."),
    *(("args", {"weight_decay": value}, "") for value in ("x" * 200_000, "\ud800", "a\nb", "\0")),
    ("args", {"origin": {}}, "origin."),
    ("samples", {"sha256": 5}, "sha256"),
]


@pytest.mark.parametrize(("name", "change", "field"), RECORDS, ids=range(len(RECORDS)))
def test_record_of_other_kinds_is_refused_by_its_field(run, tmp_path, capsys, name, change, field):
    edit_json(run / f"{name}.json", **change)
    said = rf"{name}\.json: not what a run writes: found (no )?{field}"
    with pytest.raises(UserError, match=said) as error:
        report_study.main([str(run)])
    assert len(str(error.value)) < 600
    assert report_or_refuse(run, capsys, root=tmp_path) is None


EPOCH = '{"epoch": 1, "step": 1, "train_loss": LOSS, "eval_loss": 1}'


@pytest.mark.parametrize(
    "line",
    [DEEP, "{}", "[]", "5", "epoch one", EPOCH.replace("LOSS", str(HUGE)), EPOCH.replace("LOSS", "null")],
)
def test_epochs_that_no_run_wrote_are_refused(run, line):
    (run / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: not what a run writes: found "):
        report_study.main([str(run)])


MARKUP = ["<script>alert(1)</script>", "$x_{", "[/red]", "<img src=x>", "../../../x", "{{7*7}}", "a|b`c`"]


@pytest.mark.parametrize("text", MARKUP[:3])
def test_names_with_markup_are_text_in_the_page_and_no_way_out_of_the_folder(tmp_path, capsys, text):
    root = tmp_path / "study"
    for seed, flag in enumerate((text, "plain")):
        run = new_run(root / str(seed), seed=seed)
        edit_json(run / "results.json", model=text, task=text, view=text, augmentation=text)
        edit_json(run / "args.json", **{f"{text}-flag": flag})
    page = report_or_refuse(root, capsys, root=tmp_path)
    assert page and "<script>alert" not in page and "<img src=x" not in page


@pytest.mark.slow
@cases(80)
@given(data=st.data())
def test_edited_records_give_a_report_or_a_line(tmp_path, capsys, data):
    run = new_run(tmp_path / "study" / "run")
    names = ["results.json", "results.json", "args.json", "samples.json", "metrics.jsonl"]
    name = data.draw(st.sampled_from(names))
    whole = (run / name).read_text(encoding="utf-8")
    lines = whole.splitlines() if name.endswith("jsonl") else [whole]
    content = json.loads(lines[0])
    part = content["test"] if "test" in content and data.draw(st.booleans()) else content
    key = data.draw(st.sampled_from(sorted(part)))
    if data.draw(st.booleans()):
        part[key] = data.draw(JSON | st.sampled_from(MARKUP))
    else:
        del part[key]
    lines[0] = json.dumps(content)
    (run / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    page = report_or_refuse(run, capsys, root=tmp_path)
    assert page is None or ("<script>alert" not in page and "<img src=x" not in page)


@pytest.mark.slow
@cases(120)
@given(data=st.data())
def test_damaged_records_give_a_report_or_a_line(tmp_path, capsys, data):
    run = new_run(tmp_path / "study" / "run")
    names = ["results.json", "args.json", "samples.json", "metrics.jsonl", "predictions_test.csv"]
    path = run / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    junk = data.draw(st.binary(max_size=8) | st.sampled_from([b",", b"\n", b'"', b"9" * 5000, DEEP.encode()]))
    rest = data.draw(st.sampled_from([b"", whole[at:], whole[at + 3 :]]))
    path.write_bytes(whole[:at] + junk + rest)
    report_or_refuse(run, capsys, root=tmp_path)
