"""Checks in the source which package imports which, so that the scripts stay standalone and small."""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPTS, CXR = REPOSITORY / "scripts", REPOSITORY / "scripts" / "cxr"
FOLDERS = ("scripts", "benchmarks", "tests", "mimic_cxr_dataset", "chest_xray_metrics")
SOURCES = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*.py"))]
PRODUCT = [path for path in SOURCES if REPOSITORY / "tests" not in path.parents]
OF_CXR = [path for path in PRODUCT if CXR in path.parents and path != CXR / "__init__.py"]
SCRIPT_NAMES = {path.stem for path in SCRIPTS.glob("*.py")}

# From the lowest: of this repository, a package imports only packages of lower layers.
LAYERS = (
    {"mimic_cxr_dataset"},
    {"choices", "errors", "version"},
    {"evaluation", "run_folder", "synthetic"},
    {"data"},
    {"sharing", "importing"},
    {"models"},
    {"training"},
    {"cli", "inference"},
    {"study"},
    {"external"},
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
WITHOUT_TORCH = (
    "demo",
    "describe_dataset",
    "hub",
    "import_dataset",
    "make_sample_data",
    "report_study",
    "run_study",
)
LIBRARIES_WITH_TORCH = {"torch", "torchvision", "transformers", "accelerate", "captum"}
# Slow to import, and needed by a part of a run only: `--help` and a wrong flag do not wait for them.
SLOW_LIBRARIES = {"captum", "gradio", "matplotlib", "sklearn", "scipy.stats"}


@functools.cache
def imports(path: Path) -> set[str]:
    """Returns the modules that `path` imports anywhere; `from cxr.data import x` counts as "cxr.data.x"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"{path.parent.name}.{node.module}")
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package(module: str) -> str | None:
    """Returns the package of a dotted module name, None for other libraries."""
    parts = module.split(".")
    if parts[0] == "cxr":
        return parts[1]
    return parts[0] if parts[0] == "mimic_cxr_dataset" else None


def package_of(path: Path) -> str:
    return path.parent.name if path.parent != CXR else path.stem


def of(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(REPOSITORY).as_posix())


@of(OF_CXR)
def test_a_package_imports_lower_layers_only(path):
    mine = package_of(path)
    others = {package(module) for module in imports(path)} - {None, mine}
    assert all(LAYER_OF[other] < LAYER_OF[mine] for other in others), (mine, others)
    assert not {module.split(".")[0] for module in imports(path)} & SCRIPT_NAMES


@of(sorted(SCRIPTS.glob("*.py")))
def test_scripts_never_import_each_other(path):
    assert not {module.split(".")[0] for module in imports(path)} & (SCRIPT_NAMES - {path.stem})


@of(
    sorted((REPOSITORY / "mimic_cxr_dataset").glob("*.py"))
    + sorted((REPOSITORY / "chest_xray_metrics").glob("*.py"))
)
def test_dataset_and_metric_modules_import_nothing_of_the_repository_but_siblings(path):
    packages = {module.split(".")[0] for module in imports(path)}
    assert not packages & (
        {"cxr", *SCRIPT_NAMES} | ({"mimic_cxr_dataset", "chest_xray_metrics"} - {path.parent.name})
    )


def test_the_loading_script_names_all_its_siblings():
    """`load_dataset` copies only files that the main script itself imports."""
    folder = REPOSITORY / "mimic_cxr_dataset"
    main = (folder / "mimic_cxr_dataset.py").read_text(encoding="utf-8")
    siblings = {path.stem for path in folder.glob("*.py")} - {"__init__", "mimic_cxr_dataset"}
    siblings -= {"pixels"}  # a builder of its own, which only our scripts use
    assert set(re.findall(r"^from \.(\w+) import", main, flags=re.MULTILINE)) == siblings


def test_modules_of_cxr_do_not_import_in_circles():
    names = {".".join(path.relative_to(SCRIPTS).with_suffix("").parts): path for path in OF_CXR}
    remaining = {
        name: {other for other in names for found in imports(path) if f"{found}.".startswith(f"{other}.")}
        - {name}
        for name, path in names.items()
    }
    while ready := {name for name, needed in remaining.items() if not needed & remaining.keys()}:
        for name in ready:
            del remaining[name]
    assert not remaining


def loaded_by(names: Iterable[str], libraries: set[str]) -> dict[str, list[str]]:
    """Returns, by script, which of the libraries its import loads first, when one process imports all."""
    code = (
        "import importlib, json, sys\n"
        "scripts, libraries = map(json.loads, sys.argv[1:])\n"
        "found = {}\n"
        "for name in scripts:\n"
        "    importlib.import_module(name)\n"
        "    new = sorted((sys.modules.keys() & set(libraries)) - set(sum(found.values(), [])))\n"
        "    found |= {name: new} if new else {}\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(sorted(names)), json.dumps(sorted(libraries))]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_a_script_does_not_load_what_draws_and_compares():
    assert loaded_by(SCRIPT_NAMES, SLOW_LIBRARIES) == {}


def test_importing_a_script_that_trains_nothing_does_not_load_torch():
    assert loaded_by(WITHOUT_TORCH, LIBRARIES_WITH_TORCH) == {}


@of(SOURCES)
def test_one_import_per_line(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert len(node.names) == 1, f"line {node.lineno}"


def test_no_module_is_named_like_a_library():
    shadowed = set(sys.stdlib_module_names) | {"accelerate", "datasets", "evaluate", "torch", "transformers"}
    assert not SCRIPT_NAMES & shadowed


@of(sorted(SCRIPTS.glob("*.py")))
def test_nothing_happens_when_a_script_is_imported(path):
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    calls = [node for node in statements if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert not calls
    assert isinstance(statements[-1], ast.If) and ast.unparse(statements[-1].test) == "__name__ == '__main__'"


@of(PRODUCT)
def test_no_file_has_more_than_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@of(PRODUCT)
def test_no_function_has_more_than_60_lines(path):
    for function in functions(path):
        assert function.end_lineno - function.lineno < 60, function.name


@of(PRODUCT)
def test_no_function_takes_more_than_7_parameters(path):
    for function in functions(path):
        arguments = function.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        assert len([name for name in names if name not in ("self", "cls")]) <= 7, function.name


def depth(node: ast.AST) -> int:
    """Returns how deep the blocks of a statement are nested."""
    blocks = (ast.For, ast.While, ast.If, ast.With, ast.Try)
    return max((depth(child) + isinstance(child, blocks) for child in ast.iter_child_nodes(node)), default=0)


@of(sorted(SCRIPTS.glob("*.py")))
def test_mains_and_loops_read_at_a_glance(path):
    for function in functions(path):
        if function.name in ("main", "train"):
            assert function.end_lineno - function.lineno < 35, function.name
            assert depth(function) <= 3, function.name
