"""Pages that are made from the code are what the code says."""

from make_run_folder_page import PAGE
from make_run_folder_page import page


def test_the_page_on_the_run_folder_is_made_from_the_declarations():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/make_run_folder_page.py"
