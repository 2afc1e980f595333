"""Tokenizers of every decoding family, and simple reference implementations of their text."""

import json
import re
from itertools import groupby

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It's 0123456789.",
    "naïve café — “quotes”, 你好世界, 😀😃👩‍👩‍👧, ЖЗИ नमस्ते \n\t {}[]()<>",
    "def generate(prompt): return model(prompt)",
]
PADDING = 7
"""Number of ids that the model has beyond its tokenizer."""


def byte_level() -> Tokenizer:
    """GPT-2's family, with a beginning-of-sequence token added by a post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # As text, as text in the byte alphabet's own letters, and in letters that look like it.
    tokenizer.add_tokens(["<tool call>", "Ġtool", "hé", "日本"])
    tokenizer.add_special_tokens([AddedToken("<|end|>")])
    _begin_with(tokenizer, "<s>")
    return tokenizer


def byte_level_normalized() -> Tokenizer:
    """A normalizer changes added tokens too, and what it changed is special no more."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Prepend("é")
    tokenizer.add_tokens(["<plain>"])
    tokenizer.add_special_tokens([AddedToken("<odd>", special=True, normalized=True)])
    return tokenizer


def byte_level_and_replace() -> Tokenizer:
    """ByteLevel as one part of a decoder among others."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Replace("q", "k")]
    )
    return tokenizer


def byte_fallback(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """Llama 2's family: metaspace, byte tokens for what the vocabulary lacks."""
    special = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", "▁▁", "▁the", "▁The", "ing", "▁I", "é", "▁é", "你", "qu", "▁qu", "\ufffd", "'s"]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789.,?!\n<>()"))
    tokens = list(dict.fromkeys([*special, *raw, *words, *letters]))
    tokenizer = Tokenizer(
        models.Unigram([(t, -float(i)) for i, t in enumerate(tokens)], 0, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoder or decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(["<tool call>"])
    _begin_with(tokenizer, "<s>")
    return tokenizer


def byte_fallback_bpe() -> Tokenizer:
    """Gemma's family: a BPE with byte tokens, whose decoder strips nothing."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        # Nothing of other scripts: they come as bytes.
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Trained as special tokens, to have their ids; byte tokens are ordinary ones.
    added = json.loads(tokenizer.to_str())
    added["added_tokens"] = added["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(added))


def strip_three() -> Tokenizer:
    """Llama 2's family, with more spaces to strip than the first token may have."""
    return byte_fallback(
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 3, 0),
            ]
        )
    )


def metaspace() -> Tokenizer:
    """T5's family: the Metaspace decoder, and no byte tokens."""
    return byte_fallback(decoders.Metaspace())


def word_piece() -> Tokenizer:
    """BERT's family."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200,
        special_tokens=["[UNK]", "[CLS]", "[SEP]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool call>", "n't", "do not"])
    _begin_with(tokenizer, "[CLS]")
    return tokenizer


def end_of_word() -> Tokenizer:
    """GPT-1's family: a suffix marks the end of a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def without_decoder() -> Tokenizer:
    """Words joined by spaces, as `tokenizers` does where there is no decoder at all."""
    words = ["<unk>", "the", "quick", "fox", "é", ""]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


FAMILIES = {
    function.__name__: function
    for function in (
        byte_level,
        byte_level_normalized,
        byte_level_and_replace,
        byte_fallback,
        byte_fallback_bpe,
        strip_three,
        metaspace,
        word_piece,
        end_of_word,
        without_decoder,
    )
}


def _begin_with(tokenizer: Tokenizer, token: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the tokenizer's own decode, with valid characters kept in malformed byte runs.

    The run's other bytes are one U+FFFD each, as `tokenizers` has it for all of them.
    """
    whole: str = tokenizer.decode(ids, skip_special_tokens=True)
    if "ByteFallback" not in str(tokenizer.decoder):
        return whole
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    tokens = [t for i in ids if i not in special and (t := tokenizer.id_to_token(i)) is not None]
    repaired: list[str] = []
    for are_bytes, run in groupby(tokens, lambda t: re.fullmatch("<0x..>", t) is not None):
        if are_bytes:
            text = bytes(int(t[3:5], 16) for t in run).decode(errors="surrogateescape")
            for character in text:
                malformed = "\udc80" <= character <= "\udcff"
                repaired += (
                    ["\ufffd"] if malformed else [f"<0x{byte:02X}>" for byte in character.encode()]
                )
        else:
            repaired += run
    return tokenizer.decoder.decode(repaired)


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """Return the text before the stop string that is completed first, and that string."""
    for end in range(1, len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            stop = max(completed, key=len)
            return text[: end - len(stop)], stop
    return text, None


def stopped(
    tokenizer: Tokenizer, ids: list[int], pieces: list[str], stops: tuple[str, ...]
) -> tuple[int, str, str | None]:
    """Return tokens, output and stop string of a sequence, by a search of all text each time.

    Args:
        tokenizer: the sequence's.
        ids: its tokens.
        pieces: what each of them adds to the output where nothing stops it.
        stops: stop strings, found in the text with special tokens.
    """
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    special -= {i for i in special if not _is_silent(tokenizer, i)}
    parts: list[tuple[str, bool]] = []
    held_at = 0
    for n, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
        if token_id in special:
            # What is held back, which is output where the sequence ends here.
            held = decoded(tokenizer, ids[:n])[len("".join(pieces[:n])) :]
            name = (_inside(tokenizer, token_id), False)
            after_special = n > 0 and ids[n - 1] in special
            if not after_special:
                held_at = len(parts)
                parts.append((held, False))
            parts.append(name)
            ended = [*parts]
            ended[held_at] = (held, True)
            found = _cut(ended, stops)
        else:
            inside = _inside(tokenizer, token_id)
            stripped = not any(pieces[:n]) and "\ufffd" not in inside and inside.endswith(piece)
            before = inside.removesuffix(piece) if stripped else ""
            held = parts[held_at][0] if n > 0 and ids[n - 1] in special else ""
            if held and piece.startswith(held):
                # It has been searched before the special token.
                parts[held_at] = (held, True)
            else:
                held = ""
            parts += [(before, False), (piece.removeprefix(held), True)]
            found = _cut(parts, stops)
        if found is not None:
            return n + 1, *found
    return len(ids), "".join(pieces), None


def _cut(parts: list[tuple[str, bool]], stops: tuple[str, ...]) -> tuple[str, str] | None:
    before, stop = cut("".join(text for text, _ in parts), stops)
    if stop is None:
        return None
    flags = [output for text, output in parts for _ in text]
    return "".join(c for c, output in zip(before, flags, strict=False) if output), stop


def _inside(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token's text after another one that is not a byte token."""
    before = tokenizer.encode("a", add_special_tokens=False).ids
    text: str = tokenizer.decode([*before, token_id], skip_special_tokens=False)
    return text[len(tokenizer.decode(before, skip_special_tokens=False)) :]


def _is_silent(tokenizer: Tokenizer, token_id: int) -> bool:
    return tokenizer.decode([token_id], skip_special_tokens=True) == ""
