"""The flags of convert_checkpoint.py; no torch."""

import argparse
from pathlib import Path

from cxr.cli import command_line

MEAN = command_line.number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
STD = command_line.number(float, "a number from 0.001 to 1", lambda value: 0.001 <= value <= 1)


def parse_args(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(description, usage="FILE OUT [flags]")
    parser.add_argument("file", type=Path, metavar="FILE", help="a published checkpoint")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the model's folder, which must not be there yet"
    )
    add, positive = command_line.add_number, command_line.positive_int
    heads = "(default: 3, 6, 12, 16 or 16, for the usual ViT-Ti, S, B, L and H)"
    add(parser, "--num_attention_heads", positive, f"attention heads of a ViT {heads}")
    heads = "(default: 16, as in all published decoders)"
    add(parser, "--decoder_num_attention_heads", positive, f"attention heads of a decoder {heads}")
    pixels = "of pixels in [0, 1] that the model was trained with, for red, green and blue"
    default = "(default: what the file or a config.json of timm beside it says, else ImageNet's)"
    parser.add_argument("--image_mean", nargs=3, type=MEAN, metavar="X", help=f"mean {pixels} {default}")
    parser.add_argument(
        "--image_std", nargs=3, type=STD, metavar="X", help=f"standard deviation {pixels}; goes with the mean"
    )
    args = parser.parse_args(argv)
    if (args.image_mean is None) != (args.image_std is None):
        parser.error("--image_mean, --image_std: found one of them, expected both or none: add the other")
    if args.out.exists():
        parser.error(f"OUT {args.out}: found something there, expected nothing: remove it, or name another")
    return args
