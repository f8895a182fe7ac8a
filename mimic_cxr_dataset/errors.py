"""The exceptions of the dataset package, and the messages of other exceptions in one line."""


class DatasetError(ValueError):
    """A table or an image cannot be used; the message says what was found, what was expected, what to do."""


class NoGoodImage(DatasetError):
    """All images that were asked for are missing or damaged."""


def one_line(error: BaseException) -> str:
    """Returns the message of an error of a library or the system, without the name of a file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__
