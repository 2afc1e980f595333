"""The page about the kinds of upstreams is that of the adapters' own data."""

from dataclasses import fields

import pytest
from upstream_tables import PAGE, render_page

from whence_server.domain.decoding import DECODING_OPTIONS, Decoding
from whence_server.engines.upstream.opening import ADAPTERS


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run `make upstream-tables`"


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_option_of_a_kind_is_one_of_the_contract(kind: str) -> None:
    profile = ADAPTERS[kind]().profile
    names = {option.name for option in DECODING_OPTIONS}
    assert set(profile.options) <= names <= {field.name for field in fields(Decoding)}
    assert profile.kind == kind
    # No two options may set one field.
    assert len(set(profile.options.values())) == len(profile.options)
    assert not profile.reserved & set(profile.options.values())
