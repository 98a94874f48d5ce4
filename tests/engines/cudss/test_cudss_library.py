"""The binding of cuDSS, compared with its header where that is installed."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import problem, rhs
from simulated_cudss import Cudss

import sparse_solver as ss
from sparse_solver._engines.cudss import library as native
from sparse_solver._engines.cudss.library import Phase


def read_headers() -> str:
    """The installed headers, without comments."""
    folders = [os.environ.get("SPARSE_SOLVER_CUDSS_INCLUDE", "")]
    for package in ("nvidia-cudss-cu12", "nvidia-cudss-cu13"):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        headers = [file for file in files if file.name == "cudss.h"]
        folders += [str(Path(str(file.locate())).parent) for file in headers]
    found = [folder for folder in folders if folder and Path(folder, "cudss.h").exists()]
    if not found:
        pytest.skip("the header of cuDSS is not installed")
    text = "\n".join(path.read_text() for path in sorted(Path(found[0]).glob("cudss*.h")))
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def test_constants_are_those_of_the_header() -> None:
    known: dict[str, int] = {}
    for body in re.findall(r"enum[^{;]*\{([^}]*)\}", read_headers()):
        value = -1
        for name, expression in re.findall(r"(\w+)\s*(?:=([^,]*))?(?:,|$)", body.strip()):
            value = eval(expression, {}, known) if expression else value + 1
            known[name] = value
    for prefix, members in (("PHASE", Phase), ("CONFIG", native.Config), ("DATA", native.Data)):
        for member in members:
            assert known[f"CUDSS_{prefix}_{member.name}"] == member.value
    for number, name in enumerate(native.STATUSES):
        assert known[f"CUDSS_STATUS_{name}"] == number
    for name, number in native.MATRIX_TYPES.items():
        assert known[f"CUDSS_MTYPE_{name.upper()}"] == number
    assert known["CUDSS_MVIEW_FULL"] == native.VIEW_FULL
    assert known["CUDSS_MVIEW_UPPER"] == native.VIEW_UPPER
    assert known["CUDSS_BASE_ZERO"] == native.BASE_ZERO
    assert known["CUDSS_LAYOUT_COL_MAJOR"] == native.COLUMN_MAJOR
    assert known["CUDSS_MATCHING_ALG_NONE"] == native.MATCHING_NONE
    assert known["CUDSS_MATCHING_ALG_MAX_DIAG_PRODUCT"] == native.MATCHING_MAX_DIAG_PRODUCT
    assert known["CUDSS_SOLVE_MODE_NORMAL"] == native.SOLVE_NORMAL
    assert known["CUDSS_SOLVE_MODE_TRANSPOSE"] == native.SOLVE_TRANSPOSE


def test_signatures_are_those_of_the_header() -> None:
    text = read_headers()
    sizes = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "size_t": ctypes.c_size_t}
    opaque = {f"cudss{name}_t" for name in ("Handle", "Config", "Data", "Matrix")}
    for name, arguments in native.SIGNATURES.items():
        declared = re.search(rf"\bcudss{name}\s*\(([^)]*)\)", text)
        assert declared is not None, name
        expected = []
        for argument in declared[1].split(","):
            words = argument.replace("const", "").replace("*", " * ").split()
            is_pointer = "*" in words or words[0] in opaque | {"cudaStream_t"}
            expected.append(ctypes.c_void_p if is_pointer else sizes.get(words[0], ctypes.c_int))
        assert [ctypes.sizeof(a) for a in arguments] == [ctypes.sizeof(e) for e in expected], name
        is_number = [one in sizes.values() for one in expected]
        assert [one in sizes.values() for one in arguments] == is_number, name
    assert re.search(r"ALLOCATOR_NAME_LEN\s+64", text)
    assert ctypes.sizeof(native.DeviceMemHandler) == 3 * 8 + 64


def test_statuses_have_names() -> None:
    error = native.error_of(6, "Execute")
    assert isinstance(error, ss.EngineError)
    assert str(error) == "cuDSS failed in cudssExecute with status 6 (INTERNAL_ERROR)"
    assert error.code == 6
    assert "unknown status" in str(native.error_of(99, "Execute"))
    assert isinstance(native.error_of(native.NOT_SUPPORTED, "ConfigSet"), ss.EngineUnsupportedError)


def test_another_major_version_is_refused() -> None:
    with pytest.raises(OSError, match=r"version 0\.8\.0, and 1\.x is needed"):
        native.Library(Cudss(version=(0, 8, 0)))


def test_the_reason_says_what_is_missing() -> None:
    if torch.version.cuda is None:
        assert native.library() == "this torch was built without CUDA"
    library, problems = native.load(["/nowhere/libcudss.so.1"])
    assert library is None
    assert "cannot open" in problems[0]


def opener(opened: list[str], missing: tuple[str, ...]) -> Callable[[str], Any]:
    """`ctypes.CDLL` for files that do not exist; it fails for those whose paths begin so."""

    def open_library(path: str) -> Any:
        if path.startswith(missing):
            raise OSError(f"{path}: cannot open shared object file")
        opened.append(path)
        return Cudss() if "libcudss.so" in path else object()

    return open_library


@pytest.mark.parametrize(("major", "suffix"), [("12", "-cu12"), ("13", "")])
def test_the_libraries_of_cuda_may_be_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, major: str, suffix: str
) -> None:
    """cuDSS searches beside itself, and the packages of torch may be elsewhere."""
    names = {"libcublas": "nvidia-cublas", "libnvrtc": "nvidia-cuda-nvrtc"}
    for library, package in names.items():
        project = f"{package}{suffix}"
        info = tmp_path / f"{project.replace('-', '_')}-{major}.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {project}\nVersion: {major}.0\n")
        (info / "RECORD").write_text(f"nvidia/{library}-builtins.so.{major},,\n")
        with (info / "RECORD").open("a") as record:
            record.write(f"nvidia/{library}.so.{major},,\n")
    monkeypatch.syspath_prepend(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", opener(opened, missing=("lib",)))
    native._load_needed(major)
    assert opened == [str(tmp_path / f"nvidia/{library}.so.{major}") for library in names]
    opened.clear()
    monkeypatch.setattr(ctypes, "CDLL", opener(opened, missing=()))
    native._load_needed(major)  # rather what is loaded already
    assert opened == [f"{library}.so.{major}" for library in names]


def test_the_threading_layer_is_kept_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDSS closes it whenever a handle is destroyed, even while its threads run."""
    path, layer = "/somewhere/libcudss.so.1", "/somewhere/libcudss_mtlayer_gomp.so.1"
    opened: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", opener(opened, missing=()))
    library, _ = native.load([path])
    assert library is not None
    assert (library.threading_layer, sorted(opened)) == (layer, [path, layer])
    monkeypatch.setattr(ctypes, "CDLL", opener(opened, missing=(layer,)))
    library, _ = native.load([path])  # OpenMP may be missing
    assert library is not None
    assert library.threading_layer is None


def test_a_matrix_on_the_cpu_is_refused() -> None:
    p = problem("spd", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64)
    with pytest.raises(ss.EngineUnsupportedError, match="solves on cuda, and the matrix is on cpu"):
        P.solve(p.values, b, engine="cudss")
