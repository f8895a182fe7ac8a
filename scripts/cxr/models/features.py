"""Computes features of whole images with an encoder that is not trained further, and keeps them in a file."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PretrainedConfig
from transformers import PreTrainedModel

from cxr.data.images import LabelledImages
from cxr.data.images import default_cache_image_size
from cxr.data.loading import whole_image_loader
from cxr.data.transforms import Normalizer
from cxr.data.transforms import evaluation_transform
from cxr.models import configs
from cxr.models import pretrained
from cxr.models.architectures import DEFAULT_IMAGE_SIZE
from cxr.models.architectures import FIELDS
from cxr.models.architectures import VitFields
from cxr.models.architectures import find_architecture
from cxr.models.architectures import is_untrained
from cxr.models.families import FAMILIES
from cxr.models.families import check_input_size
from cxr.models.families import describe_family
from cxr.models.families import family_of
from cxr.models.families import has_patches
from cxr.models.families import new_parameters
from cxr.models.families import own_size
from cxr.models.families import set_input_size
from cxr.models.scratch import new_classifier
from cxr.run_folder.model_fields import ModelFields

logger = logging.getLogger(__name__)
HEAD = ["negative", "positive"]  # the labels of a head that is not used
VERSION = 1  # of what this file computes: raise it when the same model and images give other features


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A network without its head or decoder, and how images are prepared for it."""

    network: PreTrainedModel  # float32, in evaluation mode, on its device
    image_size: int  # side of the square input, in pixels
    shortest_side: int  # pixels; original images are first shrunk to this
    normalize: Normalizer
    pooling: str  # one of POOLINGS
    digest: str  # hash of the weights and of all that decides about the features

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the features (B, D) of prepared uint8 images (B, 1, image_size, image_size)."""
        outputs = self.network(pixel_values=self.normalize(images))
        if "logits" in outputs:  # of a network of timm without its head: what the head would read
            return outputs.logits.float().cpu()
        return pool(outputs.last_hidden_state, self.pooling).float().cpu()


def pool(hidden: torch.Tensor, pooling: str) -> torch.Tensor:
    """Returns (B, D) of a ResNet's last feature map (B, D, H, W) or of a ViT's tokens (B, 1 + L, D).

    The first token is the class token; "mean" is over the others, the patches.
    """
    if hidden.ndim == 4:
        return hidden.mean(dim=(2, 3))
    return hidden[:, 0] if pooling == "class" else hidden[:, 1:].mean(dim=1)


def load_encoder(
    name: str,
    *,
    pooling: str | None,
    image_size: int | None,
    overrides: str | None,
    device: torch.device,
    hub_dir: Path | None,
    revision: str,
) -> Encoder:
    """Loads the encoder of a masked autoencoder or a classifier, by its folder or name.

    The name of a configuration gives random weights, always the same; `overrides` change a ViT's.
    `image_size` is by default the model's own. By default, the `pooling` of a masked autoencoder is "mean":
    nothing in its training asks the class token to describe the image. A classifier's is "class", from which
    its head reads. Raises UserError.
    """
    if is_untrained(name):
        overrides = overrides if isinstance(find_architecture(name), VitFields) else None
        config = configs.make_config(name, overrides=overrides, image_size=image_size)
        size, shortest_side = own_size(config) or image_size or DEFAULT_IMAGE_SIZE, None
        check_input_size(config, image_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = new_classifier(config, HEAD)
        processor = pretrained.load_image_processor(None, hub_dir=None, revision="main", image_size=size)
    else:
        source = {"hub_dir": pretrained.download(name, hub_dir=hub_dir, revision=revision)}
        source["revision"] = revision
        config = pretrained.load_config(name, expected=tuple(FAMILIES), **source)
        stored = own_size(config) or pretrained.stored_input_size(name, **source)
        size, fields = image_size or stored, pretrained.read_config(name, **source)
        if hasattr(config, "image_size"):
            pretrained.check_image_size(config, image_size)
        check_input_size(config, image_size)
        shortest_side = ModelFields.of(fields, where=f"model {name}: config.json").cache_image_size
        shortest_side = shortest_side if size == stored else None
        processor = pretrained.load_image_processor(name, image_size=size, **source)
        model = pretrained.load_pretrained(
            family_of(config).classifier,
            name,
            config=configs.classifier_config(config, HEAD),
            new_head=new_parameters(config),
            image_size=image_size,
            **source,
        )
        set_input_size(model, size)
    network, pooling = _without_head(model, config, pooling)
    network = network.to(device).eval()
    return Encoder(
        network=network,
        image_size=size,
        shortest_side=shortest_side or default_cache_image_size(size),
        normalize=Normalizer(processor.image_mean, processor.image_std, device),
        pooling=pooling,
        digest=_digest(network, VERSION, size, pooling, processor.image_mean, processor.image_std),
    )


def _without_head(
    model: PreTrainedModel, config: PretrainedConfig, pooling: str | None
) -> tuple[PreTrainedModel, str]:
    """Returns the network that computes features, and their pooling.

    Those of timm are what the model's own head reads. A ResNet's are the mean of its last feature map.
    """
    if pooling and config.model_type in ("timm_wrapper", "resnet"):
        logger.warning(
            "--pooling %s has no effect: a %s has its own pooling", pooling, describe_family(config)
        )
    if config.model_type == "timm_wrapper":
        model.timm_model.reset_classifier(0)
        reads_class_token = has_patches(config) and model.timm_model.global_pool == "token"
        return model, "class" if reads_class_token else "mean"
    if config.model_type == "resnet":
        return model.base_model, "mean"
    return model.base_model, pooling or ("mean" if config.model_type == "vit_mae" else "class")


def _digest(network: PreTrainedModel, *others: object) -> str:
    """Returns a hash of the fields that define a network, of its weights, and of `others`."""
    fields = FIELDS[network.config.model_type].model_validate(network.config.to_dict()).model_dump()
    sha256 = hashlib.sha256(repr((fields, others)).encode())
    for key, values in sorted(network.state_dict().items()):
        sha256.update(key.encode())
        sha256.update(values.cpu().contiguous().numpy())
    return sha256.hexdigest()


def digest_of(images: LabelledImages) -> str:
    """Returns a hash of the images' ids and pixels, in their order.

    The pixels themselves, because two collections may have the same ids, and a reader may give others.
    """
    sha256 = hashlib.sha256("\n".join(images["dicom_id"]).encode())
    for of_image in images.hashes():
        sha256.update(of_image)
    return sha256.hexdigest()


def cached_features(
    encoder: Encoder, images: LabelledImages, *, cache_dir: Path, batch_size: int, what: str
) -> np.ndarray:
    """Returns the features (N, D), float32, from the cache if they are there, which they then are.

    `what` names the images on the progress bar. Only the owner can read the file: it is made from patients'
    images.
    """
    key = hashlib.sha256(f"{encoder.digest} {digest_of(images)}".encode()).hexdigest()
    path = cache_dir / f"{key[:32]}.npy"
    if path.is_file():
        return np.load(path)
    features = compute_features(encoder, images, batch_size=batch_size, what=what)
    cache_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch(mode=0o600)
        with temporary.open("wb") as file:
            np.save(file, features)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return features


def compute_features(encoder: Encoder, images: LabelledImages, *, batch_size: int, what: str) -> np.ndarray:
    """Returns the features (N, D), float32, of whole images, prepared as in an evaluation."""
    transform, device = evaluation_transform(encoder.image_size), encoder.network.device
    loader = whole_image_loader(images, transform, batch_size=batch_size, device=device)
    with tqdm(total=len(images), desc=what, unit="image", leave=False) as bar:
        parts = []
        for batch in loader:
            parts.append(encoder(batch["image"]))
            bar.update(len(parts[-1]))
    return torch.cat(parts).numpy()
