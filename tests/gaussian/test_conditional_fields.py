from __future__ import annotations

import pytest
import torch
from field_cases import dense_field, full, intrinsic, n, proper, scattered
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal, kl_divergence

import sparse_solver as ss
from sparse_solver import _testing

k = 12
MEAN = scattered(n)


def observations() -> tuple[Tensor, Tensor, Tensor]:
    """H with an empty row, y, and the precision of the noise."""
    H = scattered(k, n, seed=1) * (scattered(k, n, seed=9) > 0.8)
    H[4] = 0
    return H, scattered(k, seed=2), scattered(k, seed=3).exp()


@pytest.mark.parametrize("layout", ["dense", "coo", "csr", "csc", "duplicates"])
def test_posteriors(layout: str) -> None:
    P, values = proper()
    H, y, r = observations()
    Q = full(P, values)
    precision = Q + H.mT @ torch.diag(r) @ H
    given = H if layout == "dense" else H.to_sparse()
    if layout in ("csr", "csc"):
        given = getattr(H, f"to_sparse_{layout}")()
    if layout == "duplicates":
        indices = torch.cat((given.indices(), given.indices()), 1)
        given = torch.sparse_coo_tensor(indices, given.values().repeat(2) / 2, H.shape)
    posterior = ss.GaussianField(P, values, MEAN).condition(given, y, r)
    mean = torch.linalg.solve(precision, Q @ MEAN + H.mT @ (r * y))
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.variance, torch.linalg.inv(precision).diagonal())
    torch.testing.assert_close(posterior.precision_matrix.to_dense(), precision)


def test_the_evidence_is_the_density_of_the_observations() -> None:
    P, values = proper()
    H, y, r = observations()
    covariance = H @ torch.linalg.inv(full(P, values)) @ H.mT + torch.diag(1 / r)
    expected = MultivariateNormal(H @ MEAN, covariance).log_prob(y)
    field = ss.GaussianField(P, values, MEAN)
    torch.testing.assert_close(field.log_evidence(H.to_sparse(), y, r), expected)
    batch = torch.stack((y, 2 * y, y - 1))
    expected = MultivariateNormal(H @ MEAN, covariance).log_prob(batch)
    torch.testing.assert_close(field.log_evidence(H.to_sparse(), batch, r), expected)


def test_derivatives_of_the_evidence() -> None:
    P, values = proper()
    H, y, r = observations()
    H = H.to_sparse()
    parts = 1 + 0.1 * scattered(n, seed=4), H.values(), y, r, MEAN

    def evidence(together: Tensor) -> Tensor:
        scales, entries, y, r, mean = together.split([len(part) for part in parts])
        field = ss.GaussianField(P, values * (scales[P.rows] * scales[P.cols]), mean)
        return field.log_evidence(torch.sparse_coo_tensor(H.indices(), entries, H.shape), y, r)

    together = torch.cat(parts).requires_grad_()
    assert gradcheck(evidence, together)
    assert gradgradcheck(evidence, together, fast_mode=True)


def test_posteriors_of_constrained_fields() -> None:
    P, values = intrinsic()
    H, y, r = observations()
    Q, C, d = full(P, values), torch.ones(1, n).double(), torch.tensor([2.0]).double()
    field = ss.GaussianField(P, values, constraints=(C, d))
    posterior = field.condition(H.to_sparse(), y, r)
    precision = Q + H.mT @ torch.diag(r) @ H
    dense = dense_field(precision, H.mT @ (r * y), C, d)
    torch.testing.assert_close(posterior.mean, dense.mean)
    torch.testing.assert_close(posterior.variance, dense.covariance.diagonal())
    prior = dense_field(Q, torch.zeros(n).double(), C, d)
    covariance = H @ prior.covariance @ H.mT + torch.diag(1 / r)
    expected = MultivariateNormal(H @ prior.mean, covariance).log_prob(y)
    torch.testing.assert_close(field.log_evidence(H.to_sparse(), y, r), expected)


def test_the_merged_pattern_is_analysed_once() -> None:
    P, values = proper()
    H, y, r = observations()
    first = ss.GaussianField(P, values).condition(H.to_sparse(), y, r)
    again = ss.GaussianField(P, 2 * values).condition(2 * H.to_sparse(), y + 1, 3.0)
    assert first.pattern._structure is again.pattern._structure


def test_batches_of_observations() -> None:
    P, values = proper()
    H, y, r = observations()
    field = ss.GaussianField(P, values, MEAN)
    ys = torch.stack((y, y - 1))
    posterior = field.condition(H.to_sparse(), ys, torch.stack((r, 2 * r)))
    assert posterior.batch_shape == (2,)
    for number in range(2):
        one = field.condition(H.to_sparse(), ys[number], (number + 1) * r)
        torch.testing.assert_close(posterior.mean[number], one.mean)
        torch.testing.assert_close(posterior.variance[number], one.variance)
    shared = field.condition(H.to_sparse(), ys, 2.0)
    assert shared.batch_shape == (2,)
    assert shared.values.dim() == 1  # one factor serves both


@pytest.mark.parametrize("form", ["loc", "information"])
@pytest.mark.parametrize("as_mask", [False, True])
def test_known_entries(form: str, as_mask: bool) -> None:
    P, values = proper()
    Q = full(P, values)
    index = torch.tensor([3, 7, 20]) if as_mask else torch.tensor([7, 3, 20], dtype=torch.int32)
    rest = torch.tensor([i for i in range(n) if i not in (3, 7, 20)])
    y, center = scattered(3, seed=6), scattered(n, seed=7)
    field = ss.GaussianField(P, values, **{form: center})
    mask = torch.zeros(n, dtype=torch.bool).index_fill(0, index.long(), True)
    found = field.condition_on(mask if as_mask else index, y)
    S, known = torch.linalg.inv(Q), index.long()
    gain = S[rest][:, known] @ torch.linalg.inv(S[known][:, known])
    mean = field.mean[rest] + gain @ (y - field.mean[known])
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.covariance_matrix, S[rest][:, rest] - gain @ S[known][:, rest])


def test_known_entries_of_a_constrained_field() -> None:
    P, values = intrinsic()
    C = torch.ones(1, n).double()
    field = ss.GaussianField(P, values, constraints=C)
    found = field.condition_on(torch.tensor([0]), torch.tensor([5.0]).double())
    both = torch.cat((C, torch.eye(n).double()[:1]))
    d = torch.tensor([0.0, 5.0]).double()
    dense = dense_field(full(P, values), torch.zeros(n).double(), both, d)
    torch.testing.assert_close(found.mean, dense.mean[1:])
    torch.testing.assert_close(found.variance, dense.covariance.diagonal()[1:])


def test_observations_that_do_not_fit() -> None:
    P, values = proper()
    H, y, r = observations()
    field = ss.GaussianField(P, values)
    with pytest.raises(ss.ShapeError, match=r"expected \(k, 30\)"):
        field.condition(H[:, 1:], y, r)
    with pytest.raises(ss.ShapeError, match=r"expected \(\.\.\., 12\)"):
        field.condition(H, y[1:], r)
    with pytest.raises(ss.ShapeError, match="noise_precision has shape"):
        field.condition(H, y, r[1:])
    with pytest.raises(ss.OptionError, match="not positive"):
        field.condition(H, y, -1.0)
    with pytest.raises(ss.OptionError, match="expected a number"):
        field.condition(H, y, "1")  # type: ignore[arg-type]
    with pytest.raises(ss.DtypeError):
        field.condition(H.float(), y, r)
    with pytest.raises(ss.NonFiniteError, match="y"):
        field.condition(H, y * torch.nan, r)
    with pytest.raises(ss.LayoutError):
        field.condition(H.numpy(), y, r)  # type: ignore[arg-type]
    with pytest.raises(ss.IndexRangeError):
        field.condition_on(torch.tensor([n]), y[:1])
    with pytest.raises(ss.IndexRangeError, match="twice"):
        field.condition_on(torch.tensor([1, 1]), y[:2])
    with pytest.raises(ss.ShapeError):
        field.condition_on(torch.tensor([1]), y[:2])


def test_divergences() -> None:
    P, values = proper()
    other, more = ss.Pattern(torch.arange(n), torch.arange(n), (n, n)), scattered(n, seed=8).exp()
    fields = ss.GaussianField(P, values, MEAN), ss.GaussianField(other, more, -MEAN)
    third = ss.GaussianField(P, 2 * values)
    dense = [
        MultivariateNormal(field.mean, precision_matrix=field.precision_matrix.to_dense())
        for field in (*fields, third)
    ]
    every = (*fields, third)
    for i in range(3):
        for j in range(3):
            expected = kl_divergence(dense[i], dense[j])
            torch.testing.assert_close(
                kl_divergence(every[i], every[j]), expected, atol=1e-12, rtol=1e-9
            )


def test_divergences_of_constrained_fields() -> None:
    P, values = intrinsic()
    C = torch.ones(1, n).double()
    p = ss.GaussianField(P, values, constraints=C)
    q = ss.GaussianField(P, 3 * values, information=MEAN, constraints=C)
    Q = full(P, values)
    first = dense_field(Q, torch.zeros(n).double(), C, torch.zeros(1).double())
    second = dense_field(3 * Q, MEAN, C, torch.zeros(1).double())
    shift = first.mean - second.mean
    expected = (3 * Q * first.covariance).sum() + shift @ (3 * Q) @ shift
    expected = (expected - (n - 1) + first.logdet - second.logdet) / 2
    torch.testing.assert_close(kl_divergence(p, q), expected)
    with pytest.raises(ss.OptionError, match="infinite"):
        kl_divergence(p, ss.GaussianField(P, values + (P.rows == P.cols)))
    with pytest.raises(ss.OptionError, match="different constraints"):
        kl_divergence(p, ss.GaussianField(P, values, constraints=2 * C))


def test_a_step_of_maximum_likelihood_factors_as_often_as_it_must() -> None:
    P, values = proper()
    H, y, _ = observations()
    H = H.to_sparse()
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    with _testing.count_calls() as counts:
        field = ss.GaussianField(P, theta[0].exp() * values)
        field.log_evidence(H, y, theta[1].exp()).backward()
    assert counts["factor"] == 1  # of the posterior mean; log-determinants have their own factors


def test_known_entries_that_constraints_have_determined() -> None:
    P, values = intrinsic()
    C = torch.ones(2, n).double()
    C[1, 3:] = 0  # the sums of all entries and of the first three
    field = ss.GaussianField(P, values, constraints=(C, torch.tensor([0.0, 0.3]).double()))
    x, index = field.sample((2,)), torch.arange(3)
    found = field.condition_on(index, x[:, :3])
    left = C[:1, 3:]
    Q = full(P, values)
    for number in range(2):
        force = -Q[3:, :3] @ x[number, :3]
        dense = dense_field(Q[3:, 3:], force, left, -x[number, :3].sum().unsqueeze(0))
        torch.testing.assert_close(found.mean[number], dense.mean)
        torch.testing.assert_close(found.variance[number], dense.covariance.diagonal())
    everything = field.condition_on(torch.arange(n), x[0])
    assert everything.sample().shape == (0,)
    free = field.condition_on(torch.arange(n - 1), x[0, :-1])  # the last entry is determined
    torch.testing.assert_close(free.mean, x[0, -1:])
    torch.testing.assert_close(free.variance, torch.zeros(1).double())
    with pytest.raises(ss.InfeasibleConstraintsError, match=r"y contradicts .* \(row 1 of C\)"):
        field.condition_on(index, x[0, :3] + 1)


def test_batches_that_do_not_fit() -> None:
    P, values = proper()
    H, y, r = observations()
    field = ss.GaussianField(P, values, scattered(2, n))
    for call in (
        lambda: field.condition(H, y.expand(3, -1), r),
        lambda: field.log_evidence(H, y, r.expand(3, -1)),
        lambda: field.condition_on(torch.tensor([1]), y[:1].expand(3, -1)),
    ):
        with pytest.raises(ss.ShapeError, match="do not broadcast"):
            call()
