"""Locks, in one process and across a fork."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sparse_solver._torch.fork_safe_lock import ForkSafeLock


def test_it_excludes_other_threads() -> None:
    lock, found = ForkSafeLock(), []

    def work() -> None:
        found.append(lock.acquire(blocking=False))

    with lock:
        assert not lock.acquire(blocking=False)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [False]
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_reentrant_one_may_be_taken_twice_by_its_holder() -> None:
    lock = ForkSafeLock(reentrant=True)
    with lock, lock:
        assert lock.acquire(blocking=False)
        lock.release()


def test_an_error_releases_it() -> None:
    lock = ForkSafeLock()
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    assert lock.acquire(blocking=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_fork_while_another_thread_holds_it(reentrant: bool) -> None:
    lock, held, release = ForkSafeLock(reentrant), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(blocking=False) else 1)
    release.set()
    thread.join()
    assert wait_for(child) == 0


def wait_for(child: int, seconds: float = 30) -> int:
    """The exit status of a forked child; fail if it hangs."""
    for _ in range(int(10 * seconds)):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")
