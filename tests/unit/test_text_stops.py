"""Stop strings in text that arrives in pieces."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from text_oracles import cut

from whence_server.text import stops as text_stops
from whence_server.text.stops import StopSearch

# Few letters, so that stop strings overlap with the text, each other and themselves.
LETTERS = st.text(alphabet="ab", max_size=40)
ANY = st.text(max_size=20)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=5)


def run(text: str, stops: tuple[str, ...], bounds: list[int]) -> tuple[str, str | None]:
    search = StopSearch(stops)
    released = ""
    edges = sorted(min(bound, len(text)) for bound in bounds)
    for begin, end in zip([0, *edges], [*edges, len(text)], strict=True):
        piece, stop = search.feed(text[begin:end])
        released += piece
        expected = cut(text[:end], stops)
        assert expected[0].startswith(released)
        if stop is not None:
            return released, stop
        unclaimed = text[len(released) : end]
        assert not unclaimed or any(s.startswith(unclaimed) for s in stops), "held without need"
    return released + search.flush(), None


@given(text=LETTERS, stops=STOPS, bounds=st.lists(st.integers(0, 40), max_size=20))
@example(text="aab", stops=["ab", "aab"], bounds=[1, 2])
@example(text="aabaaabaaac", stops=["aabaaac"], bounds=[7])
@example(text="abab", stops=["bb", "aba"], bounds=[3])
def test_cuts_before_the_first_completed_stop_however_the_text_arrives(
    text: str, stops: list[str], bounds: list[int]
) -> None:
    assert run(text, tuple(stops), bounds) == cut(text, tuple(stops))


@given(before=ANY, stop=st.text(min_size=1, max_size=8), after=ANY, data=st.data())
def test_stop_string_of_any_unicode_is_found(
    before: str, stop: str, after: str, data: st.DataObject
) -> None:
    text = before + stop + after
    bounds = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
    assert run(text, (stop,), bounds) == cut(text, (stop,))


def test_earliest_of_stops_completed_together_counts() -> None:
    assert StopSearch(["b", "ab", "xab"]).feed("xxab") == ("x", "xab")


def test_the_stop_completed_first_wins_over_one_that_began_before_it() -> None:
    assert StopSearch(["abcd", "c"]).feed("abcd") == ("ab", "c")


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopSearch(["a", ""])


def test_many_long_stops_take_linear_time() -> None:
    """Search 64 almost matching stop strings of 1,024 letters, for minutes if in quadratic time."""
    stops = ["a" * 1023 + chr(ord("b") + i) for i in range(64)]
    search = StopSearch(stops)
    pieces = [search.feed("a" * 10).text for _ in range(1000)]
    assert "".join(pieces) + search.flush() == "a" * 10_000
    assert search.feed("a" * 2000 + "b").stop == stops[0]


@given(
    parts=st.lists(st.tuples(st.text(alphabet="ab", max_size=6), st.booleans()), max_size=8),
    stops=STOPS,
)
@example(parts=[("a", True), ("b", False), ("a", True)], stops=["aba"])
@example(parts=[("aa", True), ("b", False)], stops=["ab"])
def test_text_that_is_not_output_is_searched_and_not_released(
    parts: list[tuple[str, bool]], stops: list[str]
) -> None:
    search = StopSearch(stops)
    released, found = "", None
    for text, output in parts:
        piece, found = search.feed(text, output=output)
        released += piece
        if found is not None:
            break
    released += search.flush()
    before, stop = cut("".join(text for text, _ in parts), tuple(stops))
    flags = [output for text, output in parts for _ in text]
    assert found == stop
    assert released == "".join(c for c, output in zip(before, flags, strict=False) if output)


@pytest.mark.parametrize("stop", ["a" * 1000 + "b", "ab" * 500 + "c", "aab" * 300 + "aac"])
def test_one_character_takes_logarithmic_time(stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One character takes at most log(length) steps, base golden ratio (Knuth, Morris, Pratt)."""
    num_falls = 0
    fall = text_stops._Pattern.fall

    def counted(pattern: text_stops._Pattern, length: int) -> int:
        nonlocal num_falls
        num_falls += 1
        return fall(pattern, length)

    monkeypatch.setattr(text_stops._Pattern, "fall", counted)
    search = StopSearch([stop])
    search.feed(stop[:-1])
    num_falls = 0
    search.feed("x")
    assert 1 <= num_falls <= 15
