"""The one exception of the dataset package, and what others say in one line."""


class DatasetError(ValueError):
    """Tables or images that cannot be used; the message says what was found, expected, and what to do."""


def one_line(error: Exception) -> str:
    """The message of an error of a library or of the system, without a file's name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__
