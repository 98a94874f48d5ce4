"""The layers, and what importing the package may cost."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparse_solver
from sparse_solver._engines import registry as _engines

ROOT = Path(sparse_solver.__file__).parent
# From the bottom to the top: a module imports only from those before it.
LAYERS = [
    "_version",
    "_sync",
    "_untraced",
    "_plain",
    "errors",
    "_cache",
    "_structure",
    "_blocks",
    "_layout",
    "_matrix",
    "_engines._protocol",
    "_engines._select",
    "_engines._idle",
    "_engines._loading",
    "_engines._mkl",
    "_engines._settings",
    "_engines._handle",
    "_engines._cudss",
    "_engines._workspace",
    *(f"_engines.{name}" for name in _engines.engine_names()),
    "_engines",
    "_rules",
    "_kinds",
    "_products",
    "_trust",
    "_numeric",
    "_deferred",
    "_inertia",
    "_dependence",
    "_saddle",
    "_factors",
    "_function",
    "_ops",
    "_solve",
    "_tensors",
    "_factorization",
    "_pattern",
    "_quadratic",
    "_projection",
    "_stencil",
    "_derivatives",
    "_terms",
    "_energy",
    "_indexed_sum",
    "_report",
    "_newton",
    "_implicit",
    "_directions",
    "_descent",
    "_minimize",
    "_find_root",
    "_functional",
    "_legacy",
    "",
    "__main__",
    "distributed._mpi",
    "distributed._collective",
    "distributed._rows",
    "distributed._cluster",
    "distributed._numeric",
    "distributed._sums",
    "distributed._solve",
    "distributed._pattern",
    "distributed",
]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    .removesuffix("__init__")
    .removesuffix("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imports_of(module: str) -> set[str]:
    """The modules of this package that a module imports, at its top or inside of a function."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "sparse_solver" for alias in node.names), (
                "import relatively"
            )
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            name = ".".join(base + (node.module.split(".") if node.module else []))
            for alias in node.names:
                inner = f"{name}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else name)
    return found


def test_every_module_has_its_layer() -> None:
    assert sorted(LAYERS) == sorted(MODULES)


@pytest.mark.parametrize("module", LAYERS)
def test_imports_go_up_the_list(module: str) -> None:
    for imported in imports_of(module):
        assert LAYERS.index(imported) < LAYERS.index(module), f"{module} imports {imported}"


def test_nothing_outside_of_the_engines_folder_knows_an_engine() -> None:
    """The one for clusters, which does not share their protocol, shares oneMKL with PARDISO."""
    for module, path in MODULES.items():
        if not module.startswith("_engines") and module != "distributed._cluster":
            strings = {
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not strings & set(_engines.engine_names()), module
            assert not any("_engines." in imported for imported in imports_of(module)), module


def test_files_stay_short() -> None:
    for path in MODULES.values():
        assert len(path.read_text().splitlines()) <= 420, f"{path.name} wants to be two files"


def test_the_import_loads_no_engine_and_no_compiler() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import sparse_solver; after = set(sys.modules) - before;"
        "print(sorted(m for m in after if m.split('.')[0] in ('scipy', 'qdldl', 'mkl', 'mpi4py') or m == 'torch._dynamo'));"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''; print('libmkl_rt' in maps or 'libmpi' in maps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["[]", "False"]


def test_without_mpi_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from sparse_solver.errors import EngineUnavailableError\n"
        "try: import sparse_solver.distributed\n"
        "except EngineUnavailableError as error: print(error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert "sparse-solver[mpi]" in done.stdout


def public() -> Iterator[tuple[str, object]]:
    yield from (
        (name, getattr(sparse_solver, name))
        for name in sparse_solver.__all__
        if name != "__version__"
    )
    if importlib.util.find_spec("mpi4py"):
        distributed = importlib.import_module("sparse_solver.distributed")
        yield from (
            (f"distributed.{name}", getattr(distributed, name)) for name in distributed.__all__
        )


def test_everything_public_is_documented() -> None:
    for name, item in public():
        assert item.__doc__, name
        for attribute, member in vars(item).items() if isinstance(item, type) else ():
            if not attribute.startswith("_") and callable(member):
                assert member.__doc__, f"{name}.{attribute}"
