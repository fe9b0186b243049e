"""Imports point one way, two files import CuPy, and `import fusedopt` imports nothing that it can do without."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusedopt

PACKAGE = Path(fusedopt.__file__).parent

# From the bottom up: a module imports from its own layer and from those below it.
LAYERS = (
    ("version", "misspelling", "rules", "schedules"),
    (
        *("statements", "symbols", "tracing", "traffic", "layout", "arena", "parameter", "sparse_gradient", "plain"),
        *("philox", "spare", "rounding", "eight_bits", "storage", "stored_arrays", "storage_choices"),
    ),
    ("cuda_text", "compiler", "backends", "conversion"),
    (
        *("groups", "scheduled", "state_dict", "optimizer", "checkpoint", "single_step", "rule_functions", "clipping"),
        *("foreign_states", "loaded_state", "procedures", "kept_bytes"),
    ),
    ("optimizers", "functional", "__init__"),
    ("torch", "mindspore", "megengine", "testing", "stubs", "docs", "cli", "__main__"),
)
USERS_OF_CUPY = {"compiler", "backends.cuda"}


def module_name(path: Path) -> str:
    """A file's name as a module of the package; `__init__` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int:
    top = module.partition(".")[0]
    return next((number for number, layer in enumerate(LAYERS) if top in layer), -1)


def statements(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements, but for those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from statements(ast.Module(child.orelse, []), inside_functions=inside_functions)
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif inside_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(child, inside_functions=inside_functions)


def imported(text: str, *, inside_functions: bool = True) -> set[str]:
    """Absolute names of what a module's text imports; `from a import b` may be a module or a name in one."""
    names: set[str] = set()
    for statement in statements(ast.parse(text), inside_functions=inside_functions):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, "imports are absolute"
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return names


def of_the_package(names: set[str]) -> set[str]:
    """The modules of this package among the names, as `FILES` has them."""
    found = set()
    for name in names:
        if name.partition(".")[0] == "fusedopt":
            inner = name.partition(".")[2]
            while inner and inner not in FILES:
                inner = inner.rpartition(".")[0]
            found.add(inner or "__init__")
    return found


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_from_its_layer_and_below(module):
    assert layer(module) >= 0, f"say in LAYERS where {module} belongs"
    upwards = {name for name in of_the_package(imported(FILES[module].read_text())) if layer(name) > layer(module)}
    assert not upwards, f"{module} imports {', '.join(sorted(upwards))} of a layer above it"


def test_modules_do_not_import_each_other_in_a_circle():
    edges = {
        module: of_the_package(imported(path.read_text(), inside_functions=False)) - {module}
        for module, path in FILES.items()
    }
    while edges:
        free = [module for module, needs in edges.items() if not needs & set(edges)]
        assert free, f"a circle among {', '.join(edges)}"
        for module in free:
            del edges[module]


def test_cupy_is_imported_in_two_files_alone():
    users = {
        module
        for module, path in FILES.items()
        if any(name.partition(".")[0] in ("cupy", "cupy_backends", "cupyx") for name in imported(path.read_text()))
    }
    assert users == USERS_OF_CUPY


def test_an_import_for_type_checkers_is_no_arrow_and_every_other_is():
    text = """
import a
from b.c import d
if TYPE_CHECKING:
    import no
else:
    import e
def function():
    import f
"""
    assert imported(text) == {"a", "b.c.d", "e", "f"}
    assert imported(text, inside_functions=False) == {"a", "b.c.d", "e"}


def modules_after(code: str, **environment: str) -> set[str]:
    """Top-level modules that are loaded after a new process has run the code."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    return set(process.stdout.split())


HEAVY = {"cupy", "cupy_backends", "torch", "rich", "matplotlib", "scipy"}


def test_importing_the_library_imports_no_framework():
    modules = modules_after("import fusedopt")
    assert "fusedopt" in modules
    assert not modules & HEAVY


def test_a_step_on_numpy_imports_no_framework():
    code = """
import numpy, fusedopt
parameter = fusedopt.Parameter(numpy.ones(3))
optimizer = fusedopt.Adam([parameter])
parameter.grad = numpy.ones(3)
optimizer.step().clear_grad()
optimizer.load_state_dict(optimizer.state_dict())
"""
    assert not modules_after(code) & HEAVY


def test_asking_for_numpy_imports_no_cupy():
    assert not modules_after("import fusedopt; fusedopt.array_module()", FUSEDOPT_BACKEND="numpy") & HEAVY


def test_the_ecosystems_modules_import_no_framework():
    assert not modules_after("import fusedopt.megengine, fusedopt.mindspore") & HEAVY
