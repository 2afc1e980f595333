"""Logins: a cookie's value stands for a token until it ends."""

from whence_server.access.logins import LIFETIME_S, MAX_LOGINS, Logins


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_login_stands_for_its_token_until_it_ends() -> None:
    logins = Logins()
    one, other = logins.begin("Bearer a"), logins.begin("Bearer b")
    assert one != other
    assert (logins.find(one), logins.find(other)) == ("Bearer a", "Bearer b")
    logins.end(one)
    logins.end("unknown")
    assert (logins.find(one), logins.find(other)) == ("", "Bearer b")
    assert logins.find("") == ""


def test_a_login_ends_by_itself() -> None:
    clock = Clock()
    logins = Logins(clock)
    value = logins.begin("Bearer a")
    clock.now_s = LIFETIME_S - 1
    assert logins.find(value) == "Bearer a"
    clock.now_s = LIFETIME_S
    assert logins.find(value) == ""


def test_the_oldest_login_gives_way_when_there_are_too_many() -> None:
    logins = Logins()
    values = [logins.begin(f"Bearer {number}") for number in range(MAX_LOGINS + 1)]
    assert logins.find(values[0]) == ""
    assert logins.find(values[1]) == "Bearer 1"
    assert logins.find(values[-1]) == f"Bearer {MAX_LOGINS}"


def test_the_value_tells_nothing_of_the_token() -> None:
    assert "secret" not in Logins().begin("Bearer secret")
