"""Caches whose keys are compared entry by entry."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

import sparse_solver as ss
from sparse_solver._torch.tensor_cache import TensorCache


class Result:
    def __init__(self, *indices: Tensor):
        self.indices = indices


def test_it_is_bounded_and_can_be_cleared() -> None:
    cache: TensorCache[Result] = TensorCache(capacity=3)
    made = []

    def build(index: Tensor) -> Result:
        made.append(int(index))
        return Result(index)

    def find(k: int) -> Result:
        return cache.find("key", (torch.tensor([k]),), build)

    for k in (0, 1, 2, 0, 3):  # 0 is used again, so that 1 is dropped
        find(k)
    assert len(cache) == 3
    find(0), find(2), find(3)
    assert made == [0, 1, 2, 3]
    find(1)
    assert made == [0, 1, 2, 3, 1]
    alive = weakref.ref(find(1))
    cache.clear()
    gc.collect()
    assert alive() is None


def test_keys_are_the_entries_their_dtypes_and_the_key() -> None:
    cache: TensorCache[Result] = TensorCache(capacity=9)
    indices = torch.tensor([3, 4])
    first = cache.find("key", (indices,), Result)
    assert cache.find("key", (indices.clone(),), Result) is first
    assert cache.find("other", (indices,), Result) is not first
    assert cache.find("key", (indices.int(),), Result) is not first
    assert cache.find("key", (indices.flip(0),), Result) is not first
    assert cache.find("key", (indices, indices), Result) is not first
    wide = torch.tensor([[3, 0], [4, 0]])
    assert cache.find("key", (wide[:, 0],), Result) is first


def test_what_is_built_has_private_copies_of_the_indices() -> None:
    cache: TensorCache[Result] = TensorCache(capacity=9)
    wide = torch.tensor([[3, 0], [4, 0]])
    found = cache.find((), (wide[:, 0],), Result)
    wide.zero_()
    assert found.indices[0].tolist() == [3, 4]
    assert found.indices[0].is_contiguous()
    with torch.inference_mode(), torch.device("meta"):
        found = cache.find((), (torch.tensor([5], device="cpu"),), Result)
    assert not found.indices[0].is_inference()


def test_indices_that_are_refused_are_not_kept() -> None:
    cache: TensorCache[Result] = TensorCache(capacity=9)
    checked = []

    def check(index: Tensor) -> None:
        checked.append(int(index))
        if index < 0:
            raise ss.IndexRangeError("negative")

    for _ in range(2):
        cache.find((), (torch.tensor([1]),), Result, check)
        with pytest.raises(ss.IndexRangeError):
            cache.find((), (torch.tensor([-1]),), Result, check)
    assert checked == [1, -1, -1]
    assert len(cache) == 1


def test_clear_cache_empties_all_of_them() -> None:
    caches: list[TensorCache[Result]] = [TensorCache(capacity=2) for _ in "ab"]
    for cache in caches:
        cache.find((), (torch.tensor([0]),), Result)
    ss.clear_cache()
    assert [len(cache) for cache in caches] == [0, 0]
