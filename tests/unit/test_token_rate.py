"""Rate of tokens: an average over whole seconds that are over."""

from whence_server.generation.token_rate import WINDOW_S, TokenRate


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_rate_is_that_of_the_last_whole_seconds() -> None:
    clock = Clock()
    rate = TokenRate(clock)
    assert rate.per_second == 0
    for tenth in range(10 * WINDOW_S):
        clock.now_s = tenth / 10
        rate.add(2)
    clock.now_s = WINDOW_S
    assert rate.per_second == 20
    clock.now_s = WINDOW_S + 1.5
    rate.add(1_000)
    assert rate.per_second == 20 * (WINDOW_S - 1) / WINDOW_S
    clock.now_s = 3 * WINDOW_S
    assert rate.per_second == 0
