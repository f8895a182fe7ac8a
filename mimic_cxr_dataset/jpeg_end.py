"""Where a JPEG ends: a cut file, filled up with zeros, decodes without an error, to a partly flat image."""

import re

from .errors import DatasetError

# The start of a JPEG segment. Within pixel data, 0xff is followed by a stuffed zero or a restart marker.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
END_OF_IMAGE = b"\xff\xd9"
PADDING = b"\x00\xff\r\n "  # what some writers put behind the end


def check_end(content: bytes) -> None:
    """Raises DatasetError if a JPEG has no end marker. What follows the marker does not matter."""
    if not content[-4096:].rstrip(PADDING).endswith(END_OF_IMAGE) and not leads_to_end(content):
        raise DatasetError("no end-of-image marker: the file is cut off")


def leads_to_end(content: bytes) -> bool:
    """Returns whether the segments of a JPEG lead to its end marker.

    A damaged segment may claim to end behind the marker. Pillow reads such a file, torchvision does not.
    """
    position = 2
    while marker := JPEG_MARKER.search(content, position):
        if marker[0] == END_OF_IMAGE:
            return True
        length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length
    return False
