"""What torch is doing to the tensors of a call, and how to compute outside of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparse_solver._torch import modes


def test_tensors_that_are_made_outside_of_transforms_are_ordinary_ones() -> None:
    made = []

    def make(x: Tensor) -> Tensor:
        with modes.outside_transforms():
            made.append(torch.ones(2))
        return x * x

    torch.func.vmap(torch.func.grad(make))(torch.ones(3))
    with torch.inference_mode(), torch.device("meta"):
        make(torch.ones(3))
    for tensor in made:
        assert tensor.device.type == "cpu"
        assert not tensor.is_inference()
        assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        assert torch.equal(tensor, torch.ones(2))
    assert len(made) == 2


def test_transforms_are_noticed() -> None:
    found = []

    def ask(x: Tensor) -> Tensor:
        found.append(modes.is_transformed(x))
        return x.sum()

    one = torch.ones(2)
    ask(one)
    torch.func.grad(ask)(one)
    torch.func.vmap(ask)(torch.ones(2, 2))
    with forward_ad.dual_level():
        ask(one)
    leaf = torch.ones(2, requires_grad=True)
    ask(leaf)
    assert found == [False, True, True, True, False]


def test_the_legacy_vmap_of_autograd_is_noticed() -> None:
    found = []

    class Asking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, x_bar: Tensor) -> Tensor:  # type: ignore[override]
            found.append((modes.is_transformed(x_bar), modes.is_unrecorded(x_bar)))
            return x_bar

    leaf = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Asking.apply(leaf), leaf, torch.ones(3, 2), is_grads_batched=True)
    torch.autograd.grad(Asking.apply(leaf), leaf, torch.ones(2))
    assert found == [(True, False), (False, True)]


def test_what_autograd_records() -> None:
    leaf, constant = torch.ones(2, requires_grad=True), torch.ones(2)
    assert modes.is_recorded(constant, leaf)
    assert not modes.is_recorded(constant)
    assert not modes.is_unrecorded(constant)  # a graph might be recorded elsewhere
    with torch.no_grad():
        assert not modes.is_recorded(leaf)
        assert modes.is_unrecorded(leaf)


def test_materialized_tensors_are_plain() -> None:
    lazy: dict[str, Callable[[Tensor], Tensor]] = {
        "conjugate": lambda t: t.conj(),
        "negative": lambda t: torch._neg_view(t),
        "graph": lambda t: t.clone().requires_grad_() * 2,
    }
    t = torch.randn(3, dtype=torch.complex128)
    for name, make in lazy.items():
        plain = modes.materialize(make(t))
        assert (plain.is_conj(), plain.is_neg(), plain.requires_grad) == (False,) * 3, name
        assert torch.equal(plain, make(t).detach()), name


def test_dtypes_that_torch_differentiates_in() -> None:
    assert modes.is_differentiable(torch.ones(1, dtype=torch.complex64))
    assert modes.is_differentiable(torch.ones(1))
    assert not modes.is_differentiable(torch.ones(1, dtype=torch.int64))
