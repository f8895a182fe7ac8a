"""Saves tiny untrained classifiers whose answers differ from image to image."""

from pathlib import Path

import torch
from cxr.models.configs import make_config
from cxr.models.pretrained import load_image_processor
from cxr.models.scratch import new_classifier

OVERRIDES = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,patch_size=8"
BINARY = ("No Finding", "Finding")


def save_classifier(folder: Path, *, labels: tuple[str, ...] = BINARY, seed: int = 0, **fields) -> Path:
    """Saves a ViT with random weights, multi-label unless `labels` are two; `fields` go to config.json."""
    config = make_config("vit-mae-tiny", overrides=OVERRIDES, image_size=32)
    torch.manual_seed(seed)
    model = new_classifier(config, list(labels), multi_label=len(labels) != 2)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.config.update({"cache_image_size": 37, **fields})
    model.save_pretrained(folder)
    load_image_processor(None, hub_dir=None, revision="main", image_size=32).save_pretrained(folder)
    return folder
