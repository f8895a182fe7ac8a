"""Converts a published checkpoint to a model folder that all scripts here and plain transformers load.

    # The encoder of He et al.'s ViT-B, or Medical MAE's; then fine-tune it.
    python scripts/convert_checkpoint.py mae_pretrain_vit_base.pth models/mae-base
    python scripts/convert_checkpoint.py vit-b_CXR_0.5M_mae.pth models/medical-mae-base
    python scripts/run_classification.py --model_name_or_path models/medical-mae-base --output_dir runs/vit

    # A ResNet of timm or torchvision, and a ViT that was trained with other statistics than ImageNet's.
    python scripts/convert_checkpoint.py resnet18.safetensors models/resnet-18
    python scripts/convert_checkpoint.py vit.safetensors models/vit \\
        --image_mean 0.5 0.5 0.5 --image_std 0.5 0.5 0.5

It prints where each tensor went and what it assumed. A tensor that is unknown, missing, NaN or of another
shape is an error, and so is a file that holds code, none of which runs. docs/starting-points.md has the list
of checkpoints.
"""

from cxr.cli import converting as flags

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    flags.parse_args(None, description=__doc__)

import argparse

import transformers
from cxr.errors import run_script
from cxr.models.converting import Conversion
from cxr.models.converting import convert
from cxr.models.pretrained import new_image_processor
from cxr.models.published import Checkpoint
from cxr.models.published import find_statistics
from cxr.models.published import read_checkpoint
from cxr.run_folder.files import new_folder


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return flags.parse_args(argv, description=__doc__)


def print_rows(checkpoint: Checkpoint, conversion: Conversion) -> None:
    """Prints which tensor went where, and what of the file is not used."""
    rows = [("tensor in the file", "in the model", "shape")]
    rows += [(row.source, row.target, str(row.shape)) for row in conversion.rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for source, target, shape in rows:
        print(f"{source:<{widths[0]}}  {target:<{widths[1]}}  {shape}")
    for name, reason in checkpoint.unused.items():
        print(f"not used: {name} ({reason})")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # writing the weights takes seconds
    checkpoint = read_checkpoint(args.file)
    conversion = convert(
        checkpoint, num_heads=args.num_attention_heads, num_decoder_heads=args.decoder_num_attention_heads
    )
    mean, std, source = find_statistics(checkpoint)
    if args.image_mean:
        mean, std, source = args.image_mean, args.image_std, "--image_mean, --image_std"
    processor = new_image_processor(
        mean=mean, std=std, image_size=conversion.image_size, where=f"{args.file}: statistics"
    )
    with new_folder(args.out) as folder:
        conversion.model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print_rows(checkpoint, conversion)
    for note in conversion.notes:
        print(note)
    print(f"mean {tuple(mean)}, standard deviation {tuple(std)}: {source}")
    print(f"{args.out}: a {type(conversion.model).__name__} for {conversion.image_size} pixels")


if __name__ == "__main__":
    run_script(main)
