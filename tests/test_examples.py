"""Every example runs quickly, and finds what it claims to find."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
NUMBER = r"([-+0-9.e]+)"
MINIMAL = [sys.executable, str(EXAMPLES / "minimal.py"), "--quick"]


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the examples import what lies beside them."""
    monkeypatch.syspath_prepend(EXAMPLES)


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Run:
    """The output of an example, run with ``--quick`` and these arguments."""

    def __init__(
        self,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        *arguments: str,
    ):
        monkeypatch.setattr(sys, "argv", [name, "--quick", *arguments])
        load(name).main()
        self.output, errors = capsys.readouterr()
        # The first use of the supernodal factor says so.
        assert not [line for line in errors.splitlines() if "Numba compiles" not in line]
        assert "\r" not in self.output

    def numbers(self, pattern: str) -> list[float]:
        """The numbers in the line that the pattern, with NUMBER for each, describes."""
        found = re.search(pattern, self.output)
        assert found is not None, self.output
        return [float(text.replace(",", "")) for text in found.groups()]


def is_picture(file: Path) -> bool:
    return file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000


@pytest.mark.parametrize("n", [10, 40])
def test_minimal_agrees_with_dense_torch(n: int) -> None:
    assert load("minimal").check_against_dense(n) < 1e-12


def test_minimal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("minimal", monkeypatch, capsys)
    assert run.numbers(f"differs from that of dense torch by {NUMBER}")[0] < 1e-12
    first, last = run.numbers(f"loss {NUMBER} -> {NUMBER}")
    assert last < first / 4


def test_minimal_writes_plain_lines_to_a_log() -> None:
    done = subprocess.run(MINIMAL, capture_output=True, text=True, timeout=300, check=True)
    assert not done.stderr  # no bar, and no warning of torch
    assert "\r" not in done.stdout
    first, *steps, last, small, large = done.stdout.splitlines()
    assert small.startswith("random graph, n = 200: ")
    assert large.startswith("random graph, n = 2,000: ")
    assert "dense torch" in first
    assert len(steps) == 10
    assert all(re.match(r"n = 2,000: step \d+ of 20, loss", step) for step in steps)
    assert "->" in last


def test_minimal_needs_nothing_besides_the_package() -> None:
    hide = "import sys; sys.modules['tqdm'] = None; import runpy; del sys.argv[0]; "
    run = "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], "
    code = f"{hide}{run}run_name='__main__')"
    command = [sys.executable, "-c", code, *MINIMAL[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 20 of 20" in done.stdout


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
def test_minimal_draws_one_bar_on_a_terminal() -> None:
    terminal, child = os.openpty()
    with subprocess.Popen(MINIMAL, stdout=child, stderr=child) as process:
        os.close(child)
        chunks = []
        with suppress(OSError):  # Linux reports the end as an error
            while chunk := os.read(terminal, 4096):
                chunks.append(chunk)
    os.close(terminal)
    assert process.returncode == 0
    first, bar, last, *graphs = b"".join(chunks).decode().strip().split("\r\n")
    assert len(graphs) == 2
    assert "dense torch" in first
    assert "->" in last
    drawn = [text for text in bar.split("\r") if text.strip()]
    assert all(text.startswith("n = 2,000:") for text in drawn)
    assert "20/20" in drawn[-1]


def test_quasi_harmonic_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run(
        "quasi_harmonic_weights", monkeypatch, capsys, "--picture", str(tmp_path / "weights.png")
    )
    before, after = run.numbers(f"energy {NUMBER} -> {NUMBER},")
    assert after <= before / 2
    outside, off_one = run.numbers(
        rf"leave \[0, 1\] by {NUMBER}, their sums differ from one by {NUMBER}"
    )
    assert 0 <= outside <= 1e-9
    assert 0 <= off_one <= 1e-9
    assert is_picture(tmp_path / "weights.png")


def test_cantilever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run("cantilever", monkeypatch, capsys, "--picture", str(tmp_path / "cantilever.png"))
    change = rf"{NUMBER} -> {NUMBER} of the length; relative error of the gradient {NUMBER}"
    before, after, error = run.numbers(f"deflection of the tip: {change}")
    assert after <= before / 2
    assert error < 1e-5
    before, after, error = run.numbers(f"distance from the curve: {change}")
    assert before > 0.1
    assert after <= 0.01
    assert error < 1e-5
    assert run.numbers(rf"stiffnesses use {NUMBER} of the material")[0] == pytest.approx(
        1, abs=1e-5
    )
    assert is_picture(tmp_path / "cantilever.png")
    assert (tmp_path / "cantilever.gif").read_bytes().startswith(b"GIF89a")


def test_neohookean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run("neohookean", monkeypatch, capsys, "--picture", str(tmp_path / "neohookean.png"))
    assert run.numbers(rf"the energy rises by {NUMBER} at most") == [0]
    assert 1.4 < run.numbers(rf"the loss of energy is {NUMBER} times smaller")[0] < 2.1
    assert run.numbers(rf": relative error {NUMBER}")[0] < 0.01
    assert is_picture(tmp_path / "neohookean.png")


def test_conductivity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run("conductivity", monkeypatch, capsys, "--picture", str(tmp_path / "conductivity.png"))
    before, after = run.numbers(f"relative error {NUMBER} -> {NUMBER},")
    assert after <= before / 2
    assert is_picture(tmp_path / "conductivity.png")


def test_matern_field(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run("matern_field", monkeypatch, capsys, "--picture", str(tmp_path / "matern.png"))
    for name in ("range", "standard deviation", "noise"):
        assert run.numbers(f"{name} {NUMBER}, {NUMBER} standard errors from {NUMBER}")[1] < 3
    assert 0.8 < run.numbers(f"posterior mean: {NUMBER} of its standard")[0] < 1.2
    assert is_picture(tmp_path / "matern.png")


def test_disease_map(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run("disease_map", monkeypatch, capsys, "--picture", str(tmp_path / "map.png"))
    assert run.numbers(f"precision {NUMBER}, {NUMBER} standard errors from {NUMBER}")[1] < 3
    assert 90 < run.numbers(f"in the intervals of 95 %: {NUMBER} %")[0] < 99
    before, after = run.numbers(f"error of the risks {NUMBER} -> {NUMBER}")
    assert after < before / 2
    assert is_picture(tmp_path / "map.png")


def test_learn_on_a_mesh(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run("learn_on_a_mesh", monkeypatch, capsys, "--picture", str(tmp_path / "mesh.png"))
    assert run.numbers(f"differ from sums over eigenvectors by {NUMBER}")[0] < 1e-6
    without, with_diffusion = run.numbers(f"{NUMBER} without diffusion, {NUMBER} with")
    assert 0 <= with_diffusion < without / 2
    assert is_picture(tmp_path / "mesh.png")


def test_topology_optimization(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run("topology_optimization", monkeypatch, capsys, "--picture", str(tmp_path / "beam.png"))
    first, last, published = run.numbers(f"{NUMBER} -> {NUMBER} in .* published: {NUMBER}")
    assert last == pytest.approx(published, abs=0.01)
    assert last < first / 4
    assert max(run.numbers(f"of the compliance {NUMBER}, of its gradient {NUMBER}")) < 1e-6
    assert is_picture(tmp_path / "beam.png")


def test_labels_and_movies(tmp_path: Path) -> None:
    drawing = load("drawing")
    with drawing.new_figure(tmp_path / "made" / "lines.png", 1, 2, 2.0) as (_, axes):
        (line,) = axes[0].plot([0, 1], [3, 2])
        drawing.label(axes[0], line, "a line")
        (text,) = axes[0].texts
        assert (text.get_text(), tuple(text.xy)) == ("a line", (1, 2))
        assert text.get_color() == line.get_color()
    assert (tmp_path / "made" / "lines.png").read_bytes().startswith(b"\x89PNG")
    with drawing.new_movie(tmp_path / "moves.gif", 1.0) as (axis, add_frame):
        for number in range(3):
            axis.plot([0, number])
            add_frame()
    with Image.open(tmp_path / "moves.gif") as movie:
        assert movie.n_frames == 3
