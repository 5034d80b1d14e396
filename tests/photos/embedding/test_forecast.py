"""The time that a run takes, said after its first pictures."""

import pytest

from mgkit.photos.embedding import forecast as module
from mgkit.photos.embedding.forecast import Forecast, in_words, seconds_to_search


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_time_is_that_of_the_second_pictures_times_all(clock):
    said = []
    forecast = Forecast(beside=800, search=lambda: 60.0, say=said.append)
    clock[0] += 30  # processes start
    forecast(256, 20_000)
    assert not said
    clock[0] += 25.6
    forecast(512, 20_000)
    total = 55.6 + 0.1 * (20_000 - 512 + 800) + 60
    assert said == [f"about {total / 60:.0f} minutes for 20,000 pictures on this machine, to the end"]
    forecast(768, 20_000)
    assert len(said) == 1


def test_nothing_is_said_of_few_pictures(clock):
    said = []
    forecast = Forecast(say=said.append)
    forecast(256, 300)
    clock[0] += 1
    forecast(300, 300)
    assert not said


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 seconds"), (99, "99 seconds"), (150, "2 minutes"), (7200, "2.0 hours")]
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


def test_the_search_takes_as_long_as_its_pairs(monkeypatch):
    times = iter([0.0, 0.5] * 3)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    short, long, large = (seconds_to_search(count, 4) for count in (10_000, 20_000, 200_000))
    assert short == pytest.approx(0.5 * 10_000**2 / (256 * 8192))
    assert long == pytest.approx(4 * short) and large == pytest.approx(100 * short)
