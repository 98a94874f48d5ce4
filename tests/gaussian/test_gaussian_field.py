from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from field_cases import full, n, proper, scattered, symmetric_part, without_sums
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent, MultivariateNormal, Normal

import sparse_solver as ss

MEAN = scattered(n)


def reference(P: ss.Pattern, values: torch.Tensor) -> MultivariateNormal:
    return MultivariateNormal(MEAN, precision_matrix=full(P, values))


def test_moments_and_densities_are_those_of_the_dense_distribution() -> None:
    P, values = proper()
    field, dense = ss.GaussianField(P, values, MEAN), reference(P, values)
    x = dense.sample(torch.Size((3, 2)))
    torch.testing.assert_close(field.log_prob(x), dense.log_prob(x))
    torch.testing.assert_close(field.entropy(), dense.entropy())
    torch.testing.assert_close(field.variance, dense.variance)
    torch.testing.assert_close(field.stddev, dense.stddev)
    torch.testing.assert_close(field.covariance_matrix, dense.covariance_matrix)
    assert torch.equal(field.mean, MEAN)
    assert torch.equal(field.mode, MEAN)
    assert torch.equal(field.precision_matrix.to_dense(), full(P, values))
    assert (field.batch_shape, field.event_shape) == ((), (n,))


def test_information_is_the_precision_times_the_mean() -> None:
    P, values = proper()
    field = ss.GaussianField(P, values, information=full(P, values) @ MEAN)
    torch.testing.assert_close(field.mean, MEAN)
    x = scattered(4, n, seed=1)
    torch.testing.assert_close(field.log_prob(x), reference(P, values).log_prob(x))


def test_the_covariance_of_samples() -> None:
    P, values = proper()
    torch.manual_seed(0)
    samples = ss.GaussianField(P, values, MEAN).sample((20000,))
    dense = reference(P, values)
    assert samples.shape == (20000, n)
    errors = (samples.mean(0) - MEAN) / dense.stddev * 20000**0.5
    assert float(errors.abs().max()) < 5
    torch.testing.assert_close(torch.cov(samples.mT), dense.covariance_matrix, atol=0.05, rtol=0)


def test_samples_are_differentiable_in_the_values_and_the_mean() -> None:
    P, values = proper()
    values = values.requires_grad_()

    def sample(values: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return ss.GaussianField(P, symmetric_part(P, values), mean).rsample((2,))

    assert gradcheck(sample, (values, MEAN.clone().requires_grad_()))


def test_the_gradient_of_an_expectation_of_samples() -> None:
    P, values = proper()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(2)
    ss.GaussianField(P, scale * values).rsample((4000,)).square().sum(-1).mean().backward()
    exact = -reference(P, values).variance.sum()  # of tr(Q⁻¹) / scale
    torch.testing.assert_close(scale.grad, exact, rtol=0.1, atol=0)


@pytest.mark.parametrize("form", ["loc", "information"])
def test_derivatives_of_densities(form: str) -> None:
    P, values = proper()
    x = scattered(2, n, seed=1).requires_grad_()

    def log_prob(values: torch.Tensor, center: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ss.GaussianField(P, symmetric_part(P, values), **{form: center}).log_prob(x)

    inputs = values.requires_grad_(), MEAN.clone().requires_grad_(), x
    assert gradcheck(log_prob, inputs)
    assert gradgradcheck(log_prob, inputs)


def test_results_are_differentiated_one_after_the_other() -> None:
    P, values = proper()
    values = values.requires_grad_()
    field = ss.GaussianField(P, values, information=MEAN, constraints=torch.ones(1, n).double())
    for result in (field.variance, field.mean, field.entropy(), field.variance, field.mean):
        (gradient,) = torch.autograd.grad(result.sum(), values)
        assert bool(gradient.isfinite().all())
    with torch.no_grad():
        assert not field.variance.requires_grad
    assert field.variance.requires_grad


def test_batches_of_values_and_means() -> None:
    P, values = proper()
    scales = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)[:, None]
    means = scattered(2, 1, n)
    field = ss.GaussianField(P, scales * values, means)
    dense = MultivariateNormal(means, precision_matrix=full(P, scales * values))
    assert field.batch_shape == (2, 3)
    x = scattered(4, 2, 3, n)
    torch.testing.assert_close(field.log_prob(x), dense.log_prob(x))
    torch.testing.assert_close(field.variance, dense.variance.expand(2, 3, n))
    torch.testing.assert_close(field.entropy(), dense.entropy().expand(2, 3))
    torch.testing.assert_close(field.covariance_matrix, dense.covariance_matrix.expand(2, 3, n, n))
    torch.testing.assert_close(field.precision_matrix.to_dense(), full(P, scales * values))
    assert field.sample((5,)).shape == (5, 2, 3, n)
    assert field.rsample().shape == (2, 3, n)
    scales = scales.requires_grad_()
    assert ss.GaussianField(P, scales * values, means).rsample((5,)).shape == (5, 2, 3, n)


def test_expanded_fields_share_the_factor() -> None:
    P, values = proper()
    field = ss.GaussianField(P, values, MEAN)
    expanded = field.expand((4, 2))
    assert expanded._covariance is field._covariance
    assert (expanded.batch_shape, field.batch_shape) == ((4, 2), ())
    assert expanded.mean.shape == expanded.variance.shape == (4, 2, n)
    assert expanded.entropy().shape == (4, 2)
    x = scattered(4, 2, n)
    torch.testing.assert_close(expanded.log_prob(x), field.log_prob(x))
    assert expanded.sample((3,)).shape == (3, 4, 2, n)
    assert Independent(expanded, 1).log_prob(x).shape == (4,)


def test_a_field_keeps_the_values_that_it_was_made_of() -> None:
    P, values = proper()
    field = ss.GaussianField(P, values)
    variance = reference(P, values).variance
    values.zero_()
    torch.testing.assert_close(field.variance, variance)
    torch.testing.assert_close(field.log_prob(MEAN).exp().log(), field.log_prob(MEAN))


@pytest.mark.parametrize("layout", ["strided", "expanded"])
def test_values_of_any_strides(layout: str) -> None:
    P, values = proper()
    odd = torch.stack((values, values), 1)[:, 0] if layout == "strided" else values.expand(2, -1)
    variance = reference(P, values).variance
    torch.testing.assert_close(
        ss.GaussianField(P, odd).variance, variance.expand(*odd.shape[:-1], n)
    )


def test_single_precision() -> None:
    P, values = proper()
    field = ss.GaussianField(P, values.float(), MEAN.float())
    dense = reference(P, values)
    x = scattered(2, n)
    torch.testing.assert_close(field.log_prob(x.float()), dense.log_prob(x).float())
    torch.testing.assert_close(field.variance, dense.variance.float())
    assert field.sample().dtype == torch.float32
    assert field.rsample().dtype == torch.float32


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy])
def test_fields_are_copied_and_pickled(duplicate: object) -> None:
    P, values = proper()
    constraints = torch.ones(1, n).double()
    field = ss.GaussianField(P, values, MEAN, constraints=constraints)
    variance = field.variance
    other = pickle.loads(pickle.dumps(field)) if duplicate is pickle.dumps else copy.deepcopy(field)
    torch.testing.assert_close(other.variance, variance)
    torch.testing.assert_close(other.mean, field.mean)
    assert repr(other) == repr(field) == f"GaussianField(n={n}, nnz={P.nnz}, constraints=1)"


def test_one_row_and_none() -> None:
    one = ss.Pattern(torch.tensor([0]), torch.tensor([0]), (1, 1))
    field = ss.GaussianField(one, torch.tensor([4.0]), torch.tensor([1.0]))
    x = torch.tensor([[0.5], [2.0]])
    torch.testing.assert_close(field.log_prob(x), Normal(1.0, 0.5).log_prob(x).squeeze(-1))
    none = torch.empty(0, dtype=torch.int64)
    empty = ss.GaussianField(ss.Pattern(none, none, (0, 0)), torch.empty(0))
    assert float(empty.entropy()) == 0
    assert empty.variance.shape == empty.sample().shape == (0,)


def test_errors_of_arguments() -> None:
    P, values = proper()
    with pytest.raises(ss.OptionError, match="expected a Pattern"):
        ss.GaussianField(full(P, values), values)  # type: ignore[arg-type]
    with pytest.raises(ss.OptionError, match="pass one of them"):
        ss.GaussianField(P, values, MEAN, information=MEAN)
    with pytest.raises(ss.DtypeError, match="expected a real one"):
        ss.GaussianField(P, values.to(torch.complex128))
    with pytest.raises(ss.ShapeError, match=r"loc has shape \(3,\)"):
        ss.GaussianField(P, values, MEAN[:3])
    with pytest.raises(ss.ShapeError, match="do not broadcast"):
        ss.GaussianField(P, values.expand(2, -1), MEAN.expand(3, -1))
    with pytest.raises(ss.DtypeError, match="convert one of them"):
        ss.GaussianField(P, values, MEAN.float())
    with pytest.raises(ValueError, match="loc"):
        ss.GaussianField(P, values, MEAN * torch.nan, validate_args=True)
    with pytest.raises(ValueError, match="event_shape"):
        ss.GaussianField(P, values, validate_args=True).log_prob(MEAN[:4])
    with pytest.raises(ValueError, match="support"):
        ss.GaussianField(P, values, validate_args=True).log_prob(MEAN * torch.nan)


def test_the_dense_covariance_of_a_large_field_is_refused() -> None:
    i = torch.arange(5000)
    field = ss.GaussianField(ss.Pattern(i, i, (5000, 5000)), torch.ones(5000))
    with pytest.raises(ss.OptionError, match="selected_inverse"):
        _ = field.covariance_matrix


@pytest.mark.parametrize("result", ["entropy", "variance", "sample", "mean"])
def test_a_precision_without_inverse_is_explained(result: str) -> None:
    P, values = proper()
    field = ss.GaussianField(P, without_sums(P, values), information=MEAN)
    with pytest.raises(
        (ss.SingularMatrixError, ss.NotPositiveDefiniteError), match=r"constraints=torch\.ones"
    ):
        _ = getattr(field, result)() if result in ("entropy", "sample") else getattr(field, result)
    with pytest.raises(ss.NotSymmetricError):
        ss.GaussianField(P, values + (P.rows < P.cols)).entropy()


def test_without_numba_samples_have_no_gradient_in_the_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise ss.EngineUnavailableError("Numba is missing", engine=None, hint=None)

    monkeypatch.setattr("sparse_solver._gaussian.factors.load", refuse)
    P, values = proper()
    assert ss.GaussianField(P, values).sample().shape == (n,)
    field = ss.GaussianField(P, values.requires_grad_(), MEAN)
    assert field.sample().shape == (n,)
    with pytest.raises(ss.EngineUnavailableError):
        field.rsample()


def results_of(field: ss.GaussianField) -> tuple[torch.Tensor, ...]:
    x = MEAN - MEAN.mean()
    known = field.condition(torch.eye(n).double()[::3].to_sparse(), x[::3], 2.0)
    torch.manual_seed(0)
    moments = field.mean, field.variance, field.covariance_matrix, field.expand((2,)).mean
    return *moments, field.entropy(), field.log_prob(x), known.mean, field.rsample((2,))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["free", "constrained", "intrinsic"])
@pytest.mark.parametrize("first", ["sample", "log_prob", "variance", "mean"])
def test_what_was_computed_without_a_gradient_does_not_stand_for_one(
    first: str, kind: str, mode: Callable[[], Any]
) -> None:
    P, values = proper()
    values = without_sums(P, values) if kind == "intrinsic" else values
    constraints = None if kind == "free" else torch.ones(1, n).double()
    gradients = []
    for is_used in (False, True):
        s = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        field = ss.GaussianField(P, s * values, information=MEAN, constraints=constraints)
        if is_used:
            with mode():
                results = {"sample": field.sample, "log_prob": lambda: field.log_prob(0 * MEAN)}  # noqa: B023 # called here
                _ = results[first]() if first in results else getattr(field, first)
        total = [result.square().sum() for result in results_of(field)]
        gradients.append([torch.autograd.grad(each, s, retain_graph=True)[0] for each in total])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_field_of_inference_mode_is_used_in_training() -> None:
    P, values = proper()
    with torch.inference_mode():
        constraints = torch.ones(1, n).double(), torch.zeros(1).double()
        field = ss.GaussianField(P, values, information=MEAN.clone(), constraints=constraints)
        field.sample()
        _ = field.variance
    x = (MEAN - MEAN.mean()).requires_grad_()
    weights = torch.ones(n, dtype=torch.float64, requires_grad=True)
    (field.log_prob(x) + field.variance @ weights + field.rsample() @ weights).backward()
    for gradient in (x.grad, weights.grad):
        assert gradient is not None
        assert bool(gradient.isfinite().all())


def test_expanded_fields_are_conditioned_in_their_batch() -> None:
    P, values = proper()
    field = ss.GaussianField(P, values, MEAN)
    H, y = torch.eye(n).double()[:2].to_sparse(), MEAN[:2]
    for conditioned in (
        field.expand((4,)).condition(H, y, 1.0),
        field.expand((4,)).condition_on(torch.tensor([0, 1]), y),
    ):
        assert conditioned.batch_shape == (4,)
        assert conditioned.sample().shape == (4, *conditioned.event_shape)


@pytest.mark.parametrize("shape", [(), (2,), (2, 1), (3, 2), (-1,)])
def test_a_batch_is_not_expanded_to_another_one(shape: tuple[int, ...]) -> None:
    P, values = proper()
    field = ss.GaussianField(P, values.expand(3, -1), MEAN)
    assert field.expand([2, 3]).batch_shape == (2, 3)
    assert field.expand((0, 3)).sample().shape == (0, 3, n)
    with pytest.raises(ss.ShapeError, match=r"cannot be expanded|do not broadcast"):
        field.expand(shape)


def test_the_default_device_does_not_matter() -> None:
    i = torch.arange(6)
    places = torch.cat((i, i[1:], i[:-1])), torch.cat((i, i[:-1], i[1:]))
    P = ss.Pattern(*places, (6, 6))
    degree = torch.tensor([1.0, 2, 2, 2, 2, 1], dtype=torch.float64)
    values = torch.cat((degree, -torch.ones(10, dtype=torch.float64)))
    sum_to_zero = torch.ones(1, 6, dtype=torch.float64)
    expected = ss.GaussianField(P, values, constraints=sum_to_zero).variance
    with torch.device("meta"):
        field = ss.GaussianField(P, values, constraints=sum_to_zero)
        variance, sample = field.variance, field.sample()
    torch.testing.assert_close(variance, expected)
    assert abs(sample.sum().item()) < 1e-9
