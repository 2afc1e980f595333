"""Logins: a cookie's value stands for a token until it ends."""

from whence_server.access.logins import LIFETIME_S, MAX_LOGINS, MAX_LOGINS_OF_CALLER, Logins


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_login_stands_for_its_token_until_it_ends() -> None:
    logins = Logins()
    one, other = logins.begin("Bearer a", "ann"), logins.begin("Bearer b", "bob")
    assert one != other
    assert (logins.find(one), logins.find(other)) == ("Bearer a", "Bearer b")
    logins.end(one)
    logins.end("unknown")
    assert (logins.find(one), logins.find(other)) == ("", "Bearer b")
    assert logins.find("") == ""


def test_a_login_ends_by_itself() -> None:
    clock = Clock()
    logins = Logins(clock)
    value = logins.begin("Bearer a", "ann")
    clock.now_s = LIFETIME_S - 1
    assert logins.find(value) == "Bearer a"
    clock.now_s = LIFETIME_S
    assert logins.find(value) == ""


def test_the_oldest_login_gives_way_when_there_are_too_many() -> None:
    logins = Logins()
    values = [logins.begin(f"Bearer {number}", str(number)) for number in range(MAX_LOGINS + 1)]
    assert logins.find(values[0]) == ""
    assert logins.find(values[1]) == "Bearer 1"
    assert logins.find(values[-1]) == f"Bearer {MAX_LOGINS}"


def test_a_caller_ends_its_own_logins_alone() -> None:
    logins = Logins()
    of_ann = logins.begin("Bearer a", "ann")
    of_bob = [logins.begin("Bearer b", "bob") for _ in range(MAX_LOGINS_OF_CALLER + 1)]
    assert logins.find(of_ann) == "Bearer a"
    assert [logins.find(value) for value in of_bob[:2]] == ["", "Bearer b"]
    assert logins.find(of_bob[-1]) == "Bearer b"


def test_the_value_tells_nothing_of_the_token() -> None:
    assert "secret" not in Logins().begin("Bearer secret", "ann")
