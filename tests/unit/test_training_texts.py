"""Texts as they are read and cut: every byte accounted for, and nothing read that is no text."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence_server.domain.errors import ConfigurationError
from whence_server.lineage.texts import TextDocument, decode_text, read_texts
from whence_server.training.train.blocks import cut_into_blocks
from whence_server.training.train.tokenizer import train_tokenizer

TEXTS = ["The quick brown fox — naïve 你好 😀.\n\tIndented.  Two blanks", "Short.", "A third. " * 9]


def documents(texts: list[str]) -> list[TextDocument]:
    return [TextDocument(f"/{n}.txt", text.encode()) for n, text in enumerate(texts)]


TOKENIZER = train_tokenizer(documents(TEXTS), 300)


def test_folders_are_read_below_and_in_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/c/d.txt", ".hidden/e.txt", "a/.f"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    single = tmp_path.parent / f"{tmp_path.name}.txt"
    single.write_text("single")
    reading = read_texts([single, tmp_path])
    assert [document.data.decode() for document in reading.documents] == [
        "single",
        "a/c/d.txt",
        "a/z.md",
        "b.txt",
    ]
    first = reading.documents[0]
    assert first.source == str(single)
    assert first.sha256 == hashlib.sha256(b"single").hexdigest()
    assert reading.skipped == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"text\0", "is a binary file: it has a NUL byte at offset 4"),
        ("né".encode("latin-1") + b".", "is not UTF-8: byte 0xe9 at offset 1"),
        (b"cut \xf0\x9f\x98", "is not UTF-8: byte 0xf0 at offset 4"),
    ],
)
def test_unusable_file_is_refused_with_its_offset_or_skipped(
    tmp_path: Path, data: bytes, message: str
) -> None:
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    bad.write_bytes(data)
    good.write_text("good")
    with pytest.raises(ConfigurationError) as raised:
        read_texts([tmp_path])
    assert f"{bad} {message}" in str(raised.value)
    reading = read_texts([tmp_path], "skip")
    assert [document.data for document in reading.documents] == [b"good"]
    assert reading.skipped == [f"{bad} {message}"]
    with pytest.raises(ConfigurationError, match="every file was skipped"):
        read_texts([bad], "skip")
    if "UTF-8" in message:
        assert read_texts([bad], "replace").documents[0].data == data
    else:
        with pytest.raises(ConfigurationError, match=r"bad\.txt is"):
            read_texts([bad], "replace")


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing does not exist"):
        read_texts([tmp_path / "missing"])
    with pytest.raises(ConfigurationError, match="has no files in it"):
        read_texts([tmp_path])
    (tmp_path / "a").write_text("a")
    with pytest.raises(ConfigurationError, match="a is given twice"):
        read_texts([tmp_path, tmp_path / "a"])


@given(st.lists(st.text() | st.binary(max_size=4), max_size=8))
def test_decoding_knows_every_character_s_bytes(parts: list[str | bytes]) -> None:
    data = b"".join(
        part if isinstance(part, bytes) else part.encode("utf-8", "replace") for part in parts
    )
    text, offsets = decode_text(data)
    assert len(offsets) == len(text) + 1
    assert (offsets[0], offsets[-1]) == (0, len(data))
    for character, begin, end in zip(text, offsets[:-1], offsets[1:], strict=True):
        octets = data[begin:end]
        assert octets.decode("utf-8", "replace") == character or (
            character == "\ufffd" and len(octets) == 1
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1),
        min_size=1,
        max_size=6,
    ),
    st.integers(2, 9),
)
def test_pieces_are_the_text_of_their_blocks(texts: list[str], block_size: int) -> None:
    texts = [*texts, "enough text to fill a block"]
    docs = documents(texts)
    blocks, documented, left = cut_into_blocks(docs, TOKENIZER, block_size)
    assert documented.num_tokens == len(blocks) * block_size + left
    assert left < block_size
    covered = dict.fromkeys(range(len(docs)), 0)
    for index, pieces in enumerate(documented.pieces):
        ids = blocks[index]["input_ids"].tolist()
        assert len(ids) == block_size
        octets = b"".join(docs[p.document_index].data[p.begin_byte : p.end_byte] for p in pieces)
        # Decoding is the oracle: whole characters, so at the ends a piece may know more.
        text = TOKENIZER.decode(ids, skip_special_tokens=True)
        assert text.strip("\ufffd") in octets.decode()
        for piece in pieces:
            # No gap: at most the bytes of one character twice.
            end = covered[piece.document_index]
            assert end - 4 <= piece.begin_byte <= end
            covered[piece.document_index] = piece.end_byte
    total = sum(covered.values())
    assert total <= sum(len(d.data) for d in docs)
    if not left:
        assert all(covered[n] == len(d.data) for n, d in enumerate(docs))


def test_a_block_with_the_end_of_one_document_has_two_pieces() -> None:
    docs = documents(["ab", "cdefg"])
    _, documented, _ = cut_into_blocks(docs, train_tokenizer(docs, 257), 4)
    # a b <end> c | d e f g | <end>: the last one fills no block.
    assert documented.pieces == [[(0, 0, 2), (1, 0, 1)], [(1, 1, 5)]]
    assert [d.sha256 for d in documented.documents] == [d.sha256 for d in docs]


def test_text_that_looks_like_a_special_token_is_text() -> None:
    docs = documents(["a<|endoftext|>b"])
    blocks, documented, _ = cut_into_blocks(docs, TOKENIZER, 2)
    ids = [i for n in range(len(blocks)) for i in blocks[n]["input_ids"].tolist()]
    assert TOKENIZER.eos_token_id not in ids[:-1]
    assert documented.documents[0].end_byte == 15


def test_texts_that_fill_no_block_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--block-size 64: the texts have 3 tokens"):
        cut_into_blocks(documents(["ab"]), train_tokenizer(documents(["ab"]), 257), 64)
