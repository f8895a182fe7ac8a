"""What may not leave the machine of someone with access to the data: ids of images, studies and patients."""

import logging
import re

# The path of an image, the id of one, or the number of a patient (1...) or of a study (5...).
IDS = re.compile(r"\S*/files/p\S+|[0-9a-f]{8}(?:-[0-9a-f]{8}){4}|(?<!\.)\b(?:p?1|s?5)\d{7}\b")


def mask_ids(text: str) -> str:
    return IDS.sub("<id>", text)


class MaskingFormatter(logging.Formatter):
    """Formats a record, with its trace, without the ids in it."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_ids(super().format(record))
