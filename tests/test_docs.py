"""Pages that are made from the code are what the code says."""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_on_the_run_folder_is_made_from_the_declarations():
    code = "import make_run_folder_page as made; print(made.page() == made.PAGE.read_text(encoding='utf-8'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=DOCS, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", "python docs/make_run_folder_page.py"
