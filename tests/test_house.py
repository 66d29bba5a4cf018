"""Who may import whom, and that every name stands for one thing."""

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up: a layer may import those before it, and itself. The two in one line know nothing of each other.
LAYERS = [
    ["registries/registry.py", "registries/machines.py"],
    ["registries/option.py", "registries/partial_files.py"],
    ["registries", "data_modules"],
    ["lightning_modules"],
    ["studies"],
    ["train.py", "score.py", "report.py"],
]
PACKAGES = ("registries", "data_modules", "lightning_modules", "studies")
FILES = sorted([*ROOT.glob("*.py"), *(file for name in PACKAGES for file in ROOT.glob(f"{name}/**/*.py"))])


def module_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def imported(file):
    """The modules of this project that a file imports anywhere, also within functions and for annotations."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULES}
            yield from submodules
            if names and node.module in MODULES:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & MODULES.keys()


def layer_of(module):
    path = MODULES[module].relative_to(ROOT).as_posix()
    return next((floor, name) for floor, layer in enumerate(LAYERS) for name in layer if path.startswith(name))


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    floor, own = layer_of(module)
    for other in imported(MODULES[module]):
        below, name = layer_of(other)
        assert below < floor or name == own, f"{module} imports {other}"


def test_no_file_imports_itself_through_others():
    graph = {module: set(imported(file)) - {module} for module, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_files_have_names_of_their_own():
    places = defaultdict(list)
    for file in FILES:
        if file.name != "__init__.py":
            places[file.name].append(file.relative_to(ROOT).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_public_classes_and_functions_have_names_of_their_own():
    """Those that users type (`main`, `compose`) and those that packages hand on are left out."""
    places = defaultdict(list)
    for module, file in MODULES.items():
        if module in ("train", "score", "report") or file.name == "__init__.py":
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    places.pop("main", None)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_looking_components_up_imports_nothing_heavy():
    """Every command does it, also one that only tells an error."""
    code = (
        "import sys; from studies.config.groups import GROUPS; from lightning_modules import STAGES; STAGES.names(); "
        "[group.registry.names() for group in GROUPS.values() if group.registry is not None]; "
        "heavy = {'lightning', 'transformers', 'peft', 'mlflow', 'datasets'} & sys.modules.keys(); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_files_are_short():
    lengths = {file.relative_to(ROOT).as_posix(): len(file.read_text().splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 100
