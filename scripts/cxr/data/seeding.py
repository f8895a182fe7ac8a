"""Seeds that are functions of what they are for, so that no draw depends on what was drawn before it."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that depends on all of `parts` and on nothing else.

    A running generator would make an image's augmentation depend on the number of workers, on prefetching and
    on interruptions; a seed derived from (seed, epoch, image) does not.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
