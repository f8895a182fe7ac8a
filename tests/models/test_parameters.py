"""Parameters counted without torch are those of the models that torch makes."""

import pytest
from cxr.models import architectures
from cxr.models import configs
from cxr.models.parameters import count_parameters
from transformers import ResNetForImageClassification
from transformers import ViTForImageClassification
from transformers import ViTMAEForPreTraining

SMALL = "hidden_size=96,intermediate_size=99,num_hidden_layers=2,patch_size=8,decoder_hidden_size=64"
SMALL += ",qkv_bias=false"
CASES = [(name, None, None) for name in architectures.CONFIGS]
CASES += [
    ("vit-mae-tiny", SMALL, 64),
    ("resnet-18", "embedding_size=8", 64),
    ("resnet-50", "embedding_size=8", 64),
]


@pytest.mark.parametrize(("name", "overrides", "image_size"), CASES)
def test_counted_parameters_are_those_of_the_model(name, overrides, image_size):
    architecture = architectures.override(architectures.CONFIGS[name], overrides, image_size=image_size)
    config = configs.make_config(name, overrides=overrides, image_size=image_size)
    is_vit = config.model_type == "vit_mae"
    classifier = ViTForImageClassification if is_vit else ResNetForImageClassification
    for labels in (["no", "yes"], [str(number) for number in range(14)]):
        expected = configs.num_parameters(classifier, configs.classifier_config(config, labels))
        assert count_parameters(architecture, num_labels=len(labels)) == expected
    if is_vit:
        expected = configs.num_parameters(ViTMAEForPreTraining, config)
        assert count_parameters(architecture, num_labels=None) == expected
