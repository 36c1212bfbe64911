"""Imports run one way, and heavy packages are imported where they are used."""

import ast
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

PACKAGE = Path(__file__).parents[1] / "tlkit"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

# A part may import itself and everything in the rows above its own; parts in one row don't import each other.
ROWS = (
    ("errors", "files", "system", "terminal"),
    ("recipe",),
    ("data",),
    ("models",),
    ("evaluation",),
    ("explain",),
    ("report",),
    ("deploy",),
    ("training",),
    ("planning", "search", "workflows", "bench"),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
ONLY_IN = {
    "lightning": ("data/datamodule.py", "training/", "planning/", "bench/textbook.py", "bench/adapters.py"),
    "pydantic": ("recipe/",),
}
HEAVY = {"datasets", "pyarrow", "webdataset", "fastapi", "matplotlib", "onnx", "onnxruntime", "onnxscript", "optuna", "uvicorn"}
MOST_ARGUMENTS = 7
VAGUE = {"base", "common", "helpers", "misc", "utils"}


def part(module: str) -> str:
    """`data/sources.py` -> `data`; `cli.py` -> `cli`."""
    return module.split("/")[0].removesuffix(".py")


def imports(tree: ast.AST, *, everywhere: bool) -> Iterator[str]:
    """Dotted names that are imported: everywhere, or only by importing the module itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif everywhere or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types_only(node)):
            yield from imports(node, everywhere=everywhere)


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(module: str, *, everywhere: bool = True) -> set[str]:
    return set(imports(tree_of(module), everywhere=everywhere))


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def test_modules_were_found() -> None:
    assert len(MODULES) >= 20
    assert {part(module) for module in MODULES} <= {part for row in ROWS for part in row}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    own = part(module)
    row = next(index for index, parts in enumerate(ROWS) if own in parts)
    allowed = {own, "__version__"}.union(*ROWS[:row])
    parts = {name.split(".")[1] for name in imported(module) if name.startswith("tlkit.")}
    assert parts <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_lightning_and_pydantic_stay_in_their_place(module: str) -> None:
    packages = {name.split(".")[0].replace("pytorch_lightning", "lightning") for name in imported(module)}
    outside = {package for package, places in ONLY_IN.items() if not module.startswith(places)}
    assert not packages & outside


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_in_functions(module: str) -> None:
    assert not HEAVY & {name.split(".")[0] for name in imported(module, everywhere=False)}


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {f"tlkit.{module.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}": module for module in MODULES}
    graph = {name: {found for dotted in imported(module) if (found := longest(dotted, names))} for name, module in names.items()}
    cycles = [sorted(component) for component in strongly_connected(graph) if len(component) > 1]
    assert not cycles


def longest(dotted: str, names: Collection[str]) -> str:
    """Return the module that `from a.b import c` names: `a.b.c` or `a.b`; empty for other packages."""
    return next((name for name in (dotted, dotted.rpartition(".")[0]) if name in names and name != "tlkit"), "")


def strongly_connected(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """Yield the sets of modules that reach each other: those that each reaches, and that reach it."""
    for component in connected_components(csr_array(adjacency(graph)), connection="strong")[1:]:
        for number in set(component):
            yield {name for name, of in zip(graph, component, strict=True) if of == number}


def adjacency(graph: dict[str, set[str]]) -> list[list[int]]:
    return [[other in imports for other in graph] for imports in graph.values()]


def test_file_names_say_what_is_inside() -> None:
    assert not [module for module in MODULES if Path(module).stem in VAGUE]


def test_no_function_has_more_than_seven_arguments() -> None:
    """What travels together becomes one object. `*args` and `**kwargs`, which go straight into a library, count for nothing."""
    long = {f"{module}: {name}": [argument.arg for argument in arguments] for module, name, arguments in functions()}
    assert not {name: arguments for name, arguments in long.items() if len(arguments) > MOST_ARGUMENTS}


PRIVATE = {
    "training/private_api.py": "all that Lightning, torchmetrics and torch keep private",
    "models/model_folder.py": "timm.models._hub.save_config_for_hf, with which timm's own push_to_hf_hub writes config.json",
    "training/distributed/shutdown.py": "os._exit, which Python's documentation describes",
}
"""Where names that begin with an underscore are taken from others' packages, and which."""
OWN_OBJECT = re.compile(r"self|cls|super\(\)|self\.\w+\(.*\)")
OWN_PRIVATE = {"_places"}
"""Of Recipe, which the package recipe alone fills in."""


def test_private_names_of_others_are_used_in_few_places() -> None:
    assert {module for module in MODULES if any(private_names(tree_of(module)))} == PRIVATE.keys()


def private_names(tree: ast.Module) -> Iterator[str]:
    """Yield imported names with a private part, and private attributes of anything but self, cls, super() and what a method returns."""
    for name in imports(tree, everywhere=True):
        yield from (part for part in name.split(".") if is_private(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not OWN_OBJECT.fullmatch(ast.unparse(node.value)):
            yield node.attr


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in OWN_PRIVATE


WHOLE_RECIPE = {
    "training/scale_lr.py: with_scaled_lr": "resolves it",
    "training/batch_size/find.py: with_batch_size": "resolves it",
    "training/checkpointing/resume.py: recipe_as_begun": "resolves it",
    "training/specs.py: Learning.of": "takes out of it what is handed on",
    "training/specs.py: phase_specs": "takes out of it what is handed on",
    "training/setup.py: prepare": "builds everything of which a section says what it is",
    "training/results.py: measure_shipped": "the report's images are opened with it",
    "training/results.py: run_facts": "the report says what was trained by it",
    "training/results.py: write_results": "the report shows all of it",
}
"""The functions of training that may take a whole recipe; all others take sections of it, or value objects."""
RUNS = ("training/finetune.py:", "training/repeats.py:", "training/run.py:")
"""Where a recipe becomes runs, and a run is read from top to bottom."""


def test_below_the_run_no_function_takes_the_whole_recipe() -> None:
    found = {f"{module}: {name}" for module, name, arguments in functions() if any(map(is_recipe, arguments))}
    training = {name for name in found if name.startswith("training/") and not name.startswith(RUNS)}
    assert training == WHOLE_RECIPE.keys()


def is_recipe(argument: ast.arg) -> bool:
    return argument.annotation is not None and "Recipe" in {node.id for node in ast.walk(argument.annotation) if isinstance(node, ast.Name)}


def functions() -> Iterator[tuple[str, str, list[ast.arg]]]:
    """Yield module, name within it and arguments of every function of the package, without self and cls."""
    for module in MODULES:
        yield from ((module, *found) for found in within(tree_of(module)))


def within(node: ast.AST, above: str = "") -> Iterator[tuple[str, list[ast.arg]]]:
    for inner in ast.iter_child_nodes(node):
        named = isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{above}{inner.name}" if named else above
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            every = (*inner.args.posonlyargs, *inner.args.args, *inner.args.kwonlyargs)
            yield name, [argument for argument in every if argument.arg not in ("self", "cls")]
        yield from within(inner, f"{name}." if named else above)
