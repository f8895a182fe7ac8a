"""Saves models that are small enough to save many of them."""

from pathlib import Path

import torch
from cxr.models.pretrained import load_image_processor
from transformers import ViTConfig
from transformers import ViTForImageClassification


def make_model(folder: Path, *, bias: float) -> Path:
    """Saves a tiny classifier with a card; two of them differ only in their weights."""
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    torch.nn.init.constant_(model.classifier.bias, bias)
    model.save_pretrained(folder)
    load_image_processor(None, hub_dir=None, revision="main", image_size=16).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n", encoding="utf-8")
    return folder
