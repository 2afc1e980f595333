"""The bound on bytes for each token refuses no text whose tokens would fit."""

import unicodedata
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import FAMILIES, byte_fallback, byte_level
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from whence_server.domain.errors import InvalidRequestError
from whence_server.generation.checks import check_text_size
from whence_server.text.bounds import NORMALIZERS, TextBound, find_text_bound


def with_normalizer(normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizer
    return tokenizer


def llama() -> Tokenizer:
    """Return a tokenizer of Llama 2's form: BPE with a token for every byte."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "▁▁", "a", "▁a"]
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [("▁", "▁"), ("▁", "a")],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return tokenizer


def stripping() -> Tokenizer:
    """Return a tokenizer of Phi-3's form: an added token strips white space beside it."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True, lstrip=True)])
    return tokenizer


def without_bytes(
    unknown: str | None = None, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    """Return a tokenizer of SmolLM2's form: bytes without a token are dropped."""
    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"Ă", "x"})
    tokens = [*letters, *([unknown] if unknown else [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown, fuse_unk=bool(unknown)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


BOUNDED = {
    "byte_level": byte_level,
    "normalized": FAMILIES["byte_level_normalized"],
    "llama": llama,
    "nfc": lambda: with_normalizer(normalizers.NFC()),
    "nfd_lower": lambda: with_normalizer(
        normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    ),
    "stripping": stripping,
    "without_bytes": without_bytes,
    "replace": lambda: with_normalizer(normalizers.Replace("aaaaaaaa", "b")),
}


@cache
def bounded(name: str) -> tuple[Tokenizer, TextBound]:
    tokenizer = BOUNDED[name]()
    bound = find_text_bound(tokenizer)
    assert bound is not None
    return tokenizer, bound


TEXTS = st.text(max_size=60) | st.text(
    "ax \t\n\x02\u3000\u2003\u212a\u1fbe\u0308\u0301\u2126e한ᄀ ", max_size=60
)


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, times=st.integers(1, 30))
def test_text_has_no_more_bytes_than_its_tokens_allow(name: str, text: str, times: int) -> None:
    tokenizer, bound = bounded(name)
    for spelled in (text * times, f"{text} <|user|> {text}<|end|><tool call>{text}" * times):
        num_tokens = len(tokenizer.encode(spelled, add_special_tokens=False).ids)
        assert bound.count_bytes(spelled) <= num_tokens * bound.max_token_bytes
        if not bound.uncounted:
            assert bound.count_bytes(spelled) == len(spelled.encode())
        check_text_size(spelled, "prompt", num_tokens, bound, what="it takes")


def split(behavior: str) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), behavior), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    return tokenizer


UNBOUNDED = {
    "nfkc": (lambda: with_normalizer(normalizers.NFKC()), None),
    "strip": (lambda: with_normalizer(normalizers.Strip()), " " * 10_000),
    "collapse": (
        lambda: with_normalizer(normalizers.Replace(Regex(r"\s+"), " ")),
        "a" + " " * 10_000,
    ),
    "delete": (lambda: with_normalizer(normalizers.Replace("a", "")), "a" * 10_000),
    "removed": (lambda: split("removed"), " " * 10_000),
    "unknown": (lambda: without_bytes("<unk>"), None),
    "normalized_away": (lambda: without_bytes(None, normalizers.NFC()), "x" * 10_000),
    "unigram": (byte_fallback, None),
    "word_piece": (FAMILIES["word_piece"], "x" * 10_000),
    "end_of_word": (FAMILIES["end_of_word"], " " * 10_000),
    "words": (FAMILIES["without_decoder"], "x" * 10_000),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_tokenizers_that_drop_text_have_no_bound(name: str) -> None:
    make, text = UNBOUNDED[name]
    tokenizer = make()
    assert find_text_bound(tokenizer) is None
    if text is not None:  # and so it does
        assert len(tokenizer.encode(text, add_special_tokens=False).ids) <= 2


def test_split_that_keeps_its_separator_has_a_bound() -> None:
    for behavior in ("isolated", "merged_with_previous", "contiguous"):
        assert find_text_bound(split(behavior)) == find_text_bound(byte_level())


def test_normalizers_shorten_text_by_at_most_their_factor() -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    size = {c: len(c.encode()) for c in characters}
    apart = {c: unicodedata.normalize("NFD", c) for c in characters}
    longest: dict[str, int] = {}
    """Return the longest character that decomposes to the given one."""
    for c, parts in apart.items():
        if len(parts) == 1:
            longest[parts] = max(longest.get(parts, 0), size[c])
    composed = (c for c in characters if unicodedata.normalize("NFC", c) == c)
    nfc = max(sum(longest[part] for part in apart[c]) / size[c] for c in composed)
    assert nfc <= NORMALIZERS["NFC"]
    assert max(size[c] / len(apart[c].encode()) for c in characters) <= NORMALIZERS["NFD"]
    assert max(size[c] / len(c.lower().encode()) for c in characters) <= NORMALIZERS["Lowercase"]


def test_what_may_vanish_is_not_counted() -> None:
    assert find_text_bound(stripping()).count_bytes("<|user|>" + " \t\u3000" * 100 + "a") == 9
    assert find_text_bound(without_bytes()).count_bytes("x\x02a" * 10) == 10
    assert without_bytes().encode("x\x02" * 10).ids == []


def test_refusal_of_a_long_text_names_the_bound() -> None:
    check_text_size("é" * 50, "prompt", 10, TextBound(10), what="this server takes")
    check_text_size("x" * 10**6, "prompt", 10, None, what="this server takes")
    with pytest.raises(InvalidRequestError) as caught:
        check_text_size("é" * 51, "prompt", 10, TextBound(10), what="this server takes")
    assert str(caught.value) == (
        "prompt: has 102 bytes; this server takes at most 10 tokens, and a token stands for at "
        "most 10 bytes: 100 in all"
    )
