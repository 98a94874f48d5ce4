"""The order of the rooms, what importing the package may cost, and the docstrings."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sparse_solver
from sparse_solver._engines import registry

ROOT = Path(sparse_solver.__file__).parent
# The one rule: a room imports from the rooms below it, and from those below them.
BELOW = {
    "errors": (),
    "_torch": (),
    "_sparse": ("errors", "_torch"),
    "_engines": ("_sparse",),
    "_factor": ("_engines",),
    "_solve": ("_factor",),
    "_quadratic": ("_solve",),
    "_energy": ("_solve",),
    "_optimize": ("_energy",),
    "_gaussian": ("_solve",),
    "distributed": ("_solve",),
}
# These may import anything: the package itself, its command line, and the instruments of tests.
ABOVE = ("", "__main__", "_testing")
# The solver for clusters does not have the protocol of engines, and shares oneMKL with PARDISO.
CLUSTER = "distributed._mkl_cluster"
# Nothing but the supernodal factor has selected inverses and derivatives of half solves.
INVERSES = "_gaussian.factors"
MAX_LINES = 400
MAX_FUNCTION_LINES = 50  # without the docstring
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    .removesuffix("__init__")
    .removesuffix("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room_of(module: str) -> str:
    return module.split(".")[0]


def rooms_below(room: str) -> set[str]:
    return {lower for direct in BELOW[room] for lower in (direct, *rooms_below(direct))}


def imports_of(module: str) -> set[str]:
    """The modules of this package that a module imports, at its top or inside of a function."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
            assert "sparse_solver" not in names, f"{module}: import relatively"
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            name = ".".join(base + (node.module.split(".") if node.module else []))
            for alias in node.names:
                inner = f"{name}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else name)
    return found


def test_there_are_at_most_ten_rooms() -> None:
    assert {room_of(module) for module in MODULES} == {*BELOW, *ABOVE}
    assert len([room for room in BELOW if (ROOT / room).is_dir()]) <= 10


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) not in ABOVE])
def test_a_room_imports_from_those_below(module: str) -> None:
    room = room_of(module)
    for imported in imports_of(module):
        allowed = {room, *rooms_below(room)}
        assert room_of(imported) in allowed, f"{module} imports {imported}"


def test_no_module_imports_the_instruments_of_the_tests() -> None:
    for module in MODULES:
        assert "_testing" not in imports_of(module), module


def test_the_files_of_a_room_import_each_other_without_circles() -> None:
    inside = {
        module: {i for i in imports_of(module) if room_of(i) == room_of(module)}
        for module in MODULES
    }
    while inside:  # take away the files that import none of those that are left
        free = {module for module, imported in inside.items() if not imported & inside.keys()}
        assert free, f"these files import each other in a circle, or lead to one: {sorted(inside)}"
        inside = {module: imported for module, imported in inside.items() if module not in free}


def test_no_module_outside_of_the_engines_has_the_name_of_one() -> None:
    names = set(registry.engine_names())
    # An engine is a module, and its folder, if it has one beside the modules that are shared.
    modules = {type(registry.engine_named(name)).__module__ for name in names}
    own = {".".join(module.split(".")[1:3]) for module in modules}
    for module, path in MODULES.items():
        if room_of(module) == "_engines":
            continue
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        constants = {node.value for node in nodes if isinstance(node, ast.Constant)}
        assert not names & constants, module
        imported = {".".join(name.split(".")[:2]) for name in imports_of(module)}
        allowed = {CLUSTER: {"_engines.mkl"}, INVERSES: {"_engines.supernodal"}}
        assert imported & own <= allowed.get(module, set()), module


def test_files_stay_short() -> None:
    for module, path in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{module} has {lines} lines"


def test_functions_stay_short() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) is not None else None
                lines = node.end_lineno - node.lineno + 1
                lines -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
                assert lines <= MAX_FUNCTION_LINES, f"{module}.{node.name} has {lines} lines"


def test_what_the_type_checker_ignores_has_a_reason() -> None:
    for module, path in MODULES.items():
        for line in path.read_text(encoding="utf-8").splitlines():
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[\w, -]+\]\s+# \w", line), f"{module}: {line}"


@pytest.mark.parametrize("room", [room for room in BELOW if (ROOT / room).is_dir()])
def test_a_room_says_what_lives_in_it(room: str) -> None:
    for path in (ROOT / room).rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstring = ast.get_docstring(tree) or ""
        assert re.search(r"\w+ .*\w\.(\s|$)", docstring, re.DOTALL), f"{path}: no sentence"
        if room != "distributed":  # which is public, and exports its names
            assert len(tree.body) == 1, f"{path}: code beside the docstring"


def test_the_import_loads_no_engine_and_no_compiler(run_python: Callable[..., str]) -> None:
    script = """
import sys, torch
before = set(sys.modules)
import sparse_solver
loaded = {m for m in set(sys.modules) - before}
heavy = ("scipy", "qdldl", "mkl", "mpi4py", "numba")
print(sorted(m for m in loaded if m.split(".")[0] in heavy or m == "torch._dynamo"))
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print("libmkl_rt" in maps or "libmpi" in maps)
"""
    assert run_python(script).split() == ["[]", "False"]


def test_without_mpi_the_error_says_what_to_install(run_python: Callable[..., str]) -> None:
    script = """
import sys; sys.modules["mpi4py"] = None
from sparse_solver.errors import EngineUnavailableError
try: import sparse_solver.distributed
except EngineUnavailableError as error: print(error.hint)
"""
    assert "sparse-solver[mpi]" in run_python(script)


# Docstrings in numpydoc form.


def public_items() -> dict[str, Any]:
    """What the package and `distributed` export, by name."""
    names = [name for name in sparse_solver.__all__ if name != "__version__"]
    found = {name: getattr(sparse_solver, name) for name in names}
    if importlib.util.find_spec("mpi4py"):
        distributed = importlib.import_module("sparse_solver.distributed")
        for name in distributed.__all__:
            found[f"distributed.{name}"] = getattr(distributed, name)
    return found


PUBLIC = public_items()


def is_error(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, Exception)


def public_callables() -> Iterator[tuple[str, Any]]:
    """The public functions, and the public methods of the public classes."""
    for name, item in PUBLIC.items():
        if not isinstance(item, type):
            yield name, item
            continue
        for attribute, member in vars(item).items():
            function = getattr(member, "__func__", member)  # of static and class methods
            if not attribute.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{attribute}", function


CALLABLES = dict(public_callables())


def sections_of(item: Any) -> dict[str, str]:
    """The sections of a docstring by their titles; the text before them is ""."""
    parts = re.split(r"^(\w[\w ]*)\n-+$", inspect.cleandoc(item.__doc__ or ""), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def names_in(section: str) -> set[str]:
    """The names that a section lists, as in "rows, cols : Tensor", with their stars."""
    lines = (line for line in section.splitlines() if re.match(r"\*{0,2}\w", line))
    return {name.strip() for line in lines for name in line.split(" : ")[0].split(",")}


def parameters_of(function: Any) -> set[str]:
    """The parameters of a function or constructor that a caller passes."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(function).parameters.values()
    return {stars.get(p.kind, "") + p.name for p in found} - {"self", "cls"}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_has_a_summary_and_an_example(name: str) -> None:
    item = PUBLIC[name]
    sections = sections_of(item)
    assert sections[""].strip(), "no summary"
    if not is_error(item) and not hasattr(item, "_fields"):  # nor NamedTuples
        assert ">>> " in sections.get("Examples", ""), "no Examples"


@pytest.mark.parametrize("name", CALLABLES)
def test_functions_and_methods_document_parameters_and_results(name: str) -> None:
    function = CALLABLES[name]
    sections = sections_of(function)
    assert sections[""].strip(), "no summary"
    assert names_in(sections.get("Parameters", "")) == parameters_of(function)
    returns = inspect.signature(function).return_annotation not in (None, "None")
    assert returns == bool({"Returns", "Yields"} & sections.keys()), "Returns"


@pytest.mark.parametrize("name", [n for n, c in PUBLIC.items() if isinstance(c, type)])
def test_classes_document_their_constructors_and_properties(name: str) -> None:
    """Objects that only the package makes list their attributes instead of parameters."""
    cls = PUBLIC[name]
    for attribute, member in vars(cls).items():
        if not attribute.startswith("_") and isinstance(member, property):
            assert (member.__doc__ or "").strip(), attribute
    is_constructed = "__init__" in vars(cls) or hasattr(cls, "_fields")
    if is_error(cls) or not is_constructed or getattr(cls, "_is_protocol", False):
        return
    sections = sections_of(cls)
    if "Parameters" in sections or "Attributes" not in sections:
        assert names_in(sections.get("Parameters", "")) == parameters_of(cls)
