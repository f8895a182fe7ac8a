"""The one exception of the dataset package."""


class DatasetError(ValueError):
    """Tables or images that cannot be used; the message says what was found, expected, and what to do."""
