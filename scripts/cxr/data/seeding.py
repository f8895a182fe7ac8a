"""Derives seeds from what they are used for, so that no random draw depends on earlier ones."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that depends on all `parts` and on nothing else.

    With one generator for all draws, the augmentation of an image would depend on the number of workers, on
    prefetching and on interruptions; with a seed derived from (seed, epoch, image) it does not.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
