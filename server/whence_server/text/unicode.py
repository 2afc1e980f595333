"""Check for text that cannot be encoded as UTF-8."""


class LoneSurrogateError(ValueError):
    """Error of a text with half of a UTF-16 surrogate pair, which is not a character.

    Attributes:
        position: index of the surrogate in the text, in characters.
    """

    def __init__(self, text: str, position: int) -> None:
        super().__init__(
            f"has a lone surrogate (U+{ord(text[position]):04X}) at character {position}; "
            "it must be valid Unicode"
        )
        self.position = position


def check_unicode(text: str) -> None:
    """Raise `LoneSurrogateError` where the text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LoneSurrogateError(text, error.start) from None
