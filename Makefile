# `make demo` and `make test` need Python (3.10 or newer), make and git; everything else goes into .venv.
PYTHON ?= python3
RUN = .venv/bin/python
# Side by side on all cores; each process then has one thread, unless a test asks for more.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist worksteal

.PHONY: demo examples test static lint types tests without-pardiso clusters benchmark format clean
.PHONY: stress dist
.PHONY: clusters-1 clusters-2 clusters-4

demo: .venv/installed
	$(RUN) examples/minimal.py

# About three minutes; the pictures are those of the README.
examples: .venv/test-installed
	mkdir -p docs/images
	$(RUN) examples/minimal.py
	$(RUN) examples/quasi_harmonic_weights.py --picture docs/images/quasi_harmonic_weights.png
	$(RUN) examples/conductivity.py --picture docs/images/conductivity.png
	$(RUN) examples/cantilever.py --picture docs/images/cantilever.png
	$(RUN) examples/neohookean.py --picture docs/images/neohookean.png
	$(RUN) examples/matern_field.py --picture docs/images/matern_field.png
	$(RUN) examples/disease_map.py --picture docs/images/disease_map.png
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

# As on a machine for which there is no MKL: the tests in which the package chooses the engine. The
# contract of each engine is tested above.
without-pardiso: .venv/test-installed
	SPARSE_SOLVER_MKL=/nowhere $(PYTEST) tests/engines tests/factor tests/solve tests/quadratic \
		tests/gaussian tests/optimize/test_find_root.py tests/test_documents.py sparse_solver

clusters: clusters-1 clusters-2 clusters-4

# By the number of ranks. Four may be more than there are cores: slow, but right.
clusters-1 clusters-2 clusters-4: clusters-%: .venv/test-installed
	MPIEXEC_TIMEOUT=900 OMP_NUM_THREADS=1 .venv/bin/mpiexec -n $* $(RUN) -m pytest -q tests/mpi \
		sparse_solver/distributed

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

.venv/test-installed: .venv/installed requirements-test.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
