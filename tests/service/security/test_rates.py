from service.security.rates import MAX_CALLERS, RateLimits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_the_rate() -> None:
    clock = Clock()
    rates = RateLimits(burst=2.0, clock=clock)
    assert [rates.take("a", 5.0) for _ in range(10)] == [0] * 10
    assert rates.take("a", 5.0) == 1
    assert rates.take("b", 5.0) == 0  # everybody for themselves
    clock.now += 1.0
    assert [rates.take("a", 5.0) for _ in range(6)] == [0] * 5 + [1]


def test_a_slow_rate_says_how_long_to_wait() -> None:
    clock = Clock()
    rates = RateLimits(burst=2.0, clock=clock)
    assert rates.take("a", 0.1) == 0
    seconds = rates.take("a", 0.1)
    assert seconds == 10
    clock.now += seconds
    assert rates.take("a", 0.1) == 0


def test_time_that_stands_still_gives_nothing() -> None:
    rates = RateLimits(burst=1.0, clock=Clock())
    assert [rates.take("a", 1.0) > 0 for _ in range(3)] == [False, True, True]


def test_callers_do_not_pile_up() -> None:
    rates = RateLimits(clock=Clock())
    for number in range(MAX_CALLERS + 10):
        rates.take(str(number), 1.0)
    assert len(rates._buckets) == MAX_CALLERS
