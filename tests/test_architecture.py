"""Which module may import which, read from the source, so that the scripts stay standalone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "scripts"
SCRIPT_NAMES = {path.stem for path in SCRIPTS.glob("*.py")}
MODULES = {path.stem for path in (SCRIPTS / "cxr").glob("*.py")} - {"__init__"}
OURS = {"cxr", "mimic_cxr_dataset", "chest_xray_metrics", *SCRIPT_NAMES}
FOLDERS = ("scripts", "tests", "mimic_cxr_dataset", "chest_xray_metrics")
SOURCES = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*.py"))]

# What a module of cxr may import of cxr, for those that must stay near the bottom; the rest may import them.
LEAVES = {
    "architectures": {"records"},
    "command_line": set(),
    "grid": {"architectures", "records"},
    "intervals": set(),
    "metrics": set(),
    "model_configs": {"architectures"},
    "plots": set(),
    "progress": {"records"},
    "radiographs": {"sources"},
    "records": set(),
    "samples": {"seeding"},
    "seeding": set(),
    "sources": set(),
    "study_plots": {"intervals", "plots"},
    "transforms": set(),
}
WITHOUT_TORCH = ("describe_dataset", "hub", "make_sample_data", "report_study", "run_study")


def imports(path: Path) -> set[str]:
    """The modules that `path` imports anywhere in it, `cxr` ones as "cxr.name"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"cxr.{alias.name}" for alias in node.names} if node.module == "cxr" else {node.module}
            found |= {name for name in names if name}
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def imported_modules_of_cxr(name: str) -> set[str]:
    """The modules of cxr that module `name` of cxr imports."""
    return {
        found.split(".")[1] for found in imports(SCRIPTS / "cxr" / f"{name}.py") if found.startswith("cxr.")
    }


@pytest.mark.parametrize("name", sorted(MODULES))
def test_cxr_never_imports_a_script(name):
    assert not packages(SCRIPTS / "cxr" / f"{name}.py") & SCRIPT_NAMES
    assert imported_modules_of_cxr(name) <= MODULES


@pytest.mark.parametrize("name", sorted(SCRIPT_NAMES))
def test_scripts_never_import_each_other(name):
    assert not packages(SCRIPTS / f"{name}.py") & (SCRIPT_NAMES - {name})


@pytest.mark.parametrize(
    "path", ["mimic_cxr_dataset/mimic_cxr_dataset.py", "chest_xray_metrics/chest_xray_metrics.py"]
)
def test_dataset_and_metric_modules_import_nothing_of_ours(path):
    assert not packages(REPOSITORY / path) & (OURS - {Path(path).stem})


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_leaves_import_only_leaves(name):
    assert imported_modules_of_cxr(name) <= LEAVES[name]


def test_modules_of_cxr_do_not_import_in_circles():
    remaining = {name: imported_modules_of_cxr(name) for name in MODULES}
    while ready := {name for name, needed in remaining.items() if not needed & remaining.keys()}:
        for name in ready:
            del remaining[name]
    assert not remaining


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_script_never_imports_torch(name):
    reached, waiting = set(), [SCRIPTS / f"{name}.py"]
    while waiting:
        for found in imports(waiting.pop()) - reached:
            reached.add(found)
            if found.startswith("cxr."):
                waiting.append(SCRIPTS / "cxr" / f"{found.split('.')[1]}.py")
    assert not {found.split(".")[0] for found in reached} & {
        "torch",
        "torchvision",
        "transformers",
        "accelerate",
    }


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_importing_the_script_does_not_load_torch(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, check=True)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_one_import_per_line(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert len(node.names) == 1, f"line {node.lineno}"


def test_no_module_is_named_like_a_library():
    shadowed = set(sys.stdlib_module_names) | {"accelerate", "datasets", "evaluate", "torch", "transformers"}
    assert not SCRIPT_NAMES & shadowed


@pytest.mark.parametrize("name", sorted(SCRIPT_NAMES))
def test_nothing_happens_when_a_script_is_imported(name):
    statements = ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8")).body
    calls = [node for node in statements if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert not calls
    assert isinstance(statements[-1], ast.If) and ast.unparse(statements[-1].test) == "__name__ == '__main__'"


def test_the_study_and_the_scripts_offer_the_same_choices():
    from cxr import arguments
    from cxr import grid
    from cxr import transforms
    from cxr.sources import dataset_module

    choices = dataset_module().CHOICES
    assert choices["task"] == grid.TASKS
    assert grid.VIEWS == arguments.VIEWS == choices["view"]
    assert (choices["labeler"], choices["uncertain"]) == (arguments.LABELERS, arguments.UNCERTAIN)
    assert set(grid.AUGMENTATIONS) == set(transforms.AUGMENTATIONS)
