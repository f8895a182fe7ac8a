"""Pages that are generated from the code are up to date."""

import make_run_folder_page
import make_study_page
import pytest


@pytest.mark.parametrize("made_by", [make_run_folder_page, make_study_page])
def test_page_is_made_from_the_declarations_in_the_code(made_by):
    said = f"run: python docs/{made_by.__name__}.py"
    assert made_by.PAGE.read_text(encoding="utf-8") == made_by.page(), said
