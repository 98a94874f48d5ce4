# `make demo` and `make test` need make, git, and Python 3.11 or newer, as the pinned packages do;
# everything else goes into .venv.
PYTHON ?= python3
RUN = .venv/bin/python
MKDOCS = NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs
# Side by side on all cores; each process then has one thread, unless a test asks for more.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist worksteal

.PHONY: demo examples test static lint types tests without-pardiso clusters benchmark format clean
.PHONY: stress dist gpu
.PHONY: clusters-1 clusters-2 clusters-4
.PHONY: docs docs-serve gallery

demo: .venv/installed
	$(RUN) examples/minimal.py

# About four minutes; the pictures are those of the README and of the gallery.
examples: .venv/test-installed
	mkdir -p docs/images
	$(RUN) examples/minimal.py
	$(RUN) examples/quasi_harmonic_weights.py --picture docs/images/quasi_harmonic_weights.png
	$(RUN) examples/conductivity.py --picture docs/images/conductivity.png
	$(RUN) examples/cantilever.py --picture docs/images/cantilever.png
	$(RUN) examples/neohookean.py --picture docs/images/neohookean.png
	$(RUN) examples/matern_field.py --picture docs/images/matern_field.png
	$(RUN) examples/disease_map.py --picture docs/images/disease_map.png
	$(RUN) examples/learn_on_a_mesh.py --picture docs/images/learn_on_a_mesh.png
	$(RUN) examples/topology_optimization.py --picture docs/images/topology_optimization.png
	OMP_NUM_THREADS=1 .venv/bin/mpiexec -n 2 $(RUN) examples/distributed_conductivity.py

# The first two take one core each.
test: .venv/test-installed
	$(MAKE) -j 2 static clusters-1
	$(MAKE) tests without-pardiso clusters-2 clusters-4

static: lint types

lint: .venv/test-installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: .venv/test-installed
	$(RUN) -m mypy

tests: .venv/test-installed
	$(PYTEST)

# As on a machine for which there is no MKL: the tests in which the package chooses the engine. Tests
# that name their engines, or that do not depend on the engine, run above only.
ENGINE_DOES_NOT_MATTER = tests/engines/cg tests/engines/cudss tests/engines/mkl \
	tests/factor/accuracy tests/solve/test_compile.py tests/gaussian/test_half_solve_gradient.py \
	tests/gaussian/test_slogdet_derivatives.py
without-pardiso: .venv/test-installed
	SPARSE_SOLVER_MKL=/nowhere $(PYTEST) $(ENGINE_DOES_NOT_MATTER:%=--ignore=%) tests/engines \
		tests/factor tests/solve tests/quadratic tests/gaussian tests/optimize/test_find_root.py \
		tests/test_documents.py sparse_solver

# The site, in build/site; a link, an anchor or a name that leads nowhere is an error.
docs: .venv/docs-installed
	$(MKDOCS) build --strict

docs-serve: .venv/docs-installed
	$(MKDOCS) serve

# What the examples print, for their pages of the site; some of them can be named in EXAMPLES.
gallery: .venv/test-installed
	OMP_NUM_THREADS=1 $(RUN) docs/hooks/example_files.py $(EXAMPLES)

clusters: clusters-1 clusters-2 clusters-4

# By the number of ranks. Four may be more than there are cores: slow, but right.
clusters-1 clusters-2 clusters-4: clusters-%: .venv/test-installed
	MPIEXEC_TIMEOUT=900 OMP_NUM_THREADS=1 .venv/bin/mpiexec -n $* $(RUN) -m pytest -q tests/mpi \
		sparse_solver/distributed

# On a machine with a GPU, by a Python that has torch for CUDA, cuDSS and pytest: PYTHON names it.
# Nothing is installed; less than ten minutes. `python -m tests.gpu --memcheck` is a test of its own.
LOG ?= build/gpu
gpu:
	$(PYTHON) -m tests.gpu --log $(LOG)

# Ten to twenty minutes; --quick and the names of workloads can be given in ARGUMENTS.
benchmark: .venv/test-installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	$(RUN) -m benchmarks --peers --json benchmark.json --plot benchmark.png $(ARGUMENTS)

# Ten minutes, with a seed of the date; --seed and others can be given in ARGUMENTS.
stress: .venv/test-installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-stress.txt
	$(RUN) -m tests.contract.stress $(ARGUMENTS)

# The wheel and the source distribution, their contents, and the wheel in an empty environment. Its
# packages have the tested versions; torch comes first, since others would take a CUDA build.
dist: .venv/test-installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-release.txt
	rm -rf build dist
	$(RUN) -m build --quiet
	$(RUN) -m twine check --strict dist/*
	$(RUN) -m pytest -q tests/release
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	build/empty/bin/pip install --quiet --disable-pip-version-check -c requirements.txt dist/*.whl
	cd build/empty && bin/python -I -m sparse_solver

format: .venv/test-installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==$$(sed -n 's/^torch==//p' requirements.txt)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/docs-installed: .venv/installed requirements-docs.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

.venv/test-installed: .venv/installed requirements-test.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
