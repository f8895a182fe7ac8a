"""Checks how a wrong command ends."""

import pytest
from cxr.errors import run_script


def refused(main, argv: list[object], capsys) -> str:
    """Returns the line that `main` ends with; checks exit status 2 and no standard output."""
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: main([*map(str, argv)]))
    out, message = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert message.count("\n") == 1 and ": error: " in message
    return message
