"""The soak in small: what `tools/soak.py` does with many runs."""

from tests.crash.soak import draws, soak

SEED = 5


def test_same_seed_draws_the_same_faults_and_another_seed_others() -> None:
    assert draws(SEED, 200, every=10) == draws(SEED, 200, every=10) != draws(SEED + 1, 200, every=10)
    assert {one.backend for one in draws(SEED, 200, every=10)} == {"autodl", "matrixdc"}


def test_small_soak_leaks_nothing_starts_nothing_twice_and_loses_no_byte() -> None:
    told: list[str] = []
    figures = soak(SEED, 6, every=6, tell=told.append)
    assert told == []
    assert (figures.clean, figures.leaks, figures.double_starts, figures.lost_bytes) == (True, 0, 0, 0)
    assert (figures.runs.total(), figures.states.total()) == (6, 6)
    assert figures.crashes.total() > 0
    assert figures.faults.total() > 0
