"""Which objects keep the memory of released factors."""

from __future__ import annotations

import gc

from sparse_solver._engines.idle_memory import RecentlyUsed


class Keeper:
    def __init__(self) -> None:
        self.releases = 0

    def release_idle(self) -> None:
        self.releases += 1


def test_the_keeper_used_longest_ago_releases_its_memory() -> None:
    recent, (first, second, third) = RecentlyUsed(2), (Keeper() for _ in range(3))
    for keeper in (first, second, first, third):
        recent.use(keeper)
    assert [keeper.releases for keeper in (first, second, third)] == [0, 1, 0]
    assert [keeper in recent for keeper in (first, second, third)] == [True, False, True]


def test_all_keepers_release_their_memory_on_request() -> None:
    recent, keepers = RecentlyUsed(3), [Keeper() for _ in range(3)]
    for keeper in keepers:
        recent.use(keeper)
    recent.release()
    recent.release()
    assert [keeper.releases for keeper in keepers] == [1, 1, 1]
    assert keepers[0] not in recent


def test_keepers_are_not_kept_alive() -> None:
    recent, keeper = RecentlyUsed(1), Keeper()
    recent.use(Keeper())
    gc.collect()
    recent.use(keeper)
    recent.release()
    assert keeper.releases == 1
