"""The served model, which all servicers share; set once it is loaded."""

from collections.abc import AsyncGenerator

from whence_server.domain.entries import Entry
from whence_server.domain.errors import ModelNotFoundError, ModelNotReadyError
from whence_server.domain.model import ModelInfo
from whence_server.generation.readers import Reader
from whence_server.generation.service import Generations
from whence_server.journal.journal import Journal
from whence_server.text.tokenizer import TextTokenizer


class Serving:
    """The served model and its generations.

    Attributes:
        model_name: name of the model, known before it is loaded.
        model: None while the model is loading.
        tokenizer: None while the model is loading.
    """

    def __init__(self, model_name: str, journal: Journal) -> None:
        self.model_name = model_name
        self._journal = journal
        self.model: ModelInfo | None = None
        self.tokenizer: TextTokenizer | None = None
        self._generations: Generations | None = None

    def set_ready(
        self, model: ModelInfo, tokenizer: TextTokenizer, generations: Generations
    ) -> None:
        """Set the loaded model; requests are served from now on."""
        self.model, self.tokenizer, self._generations = model, tokenizer, generations

    def get_generations(self) -> Generations:
        """Return the running generations.

        Raises:
            ModelNotReadyError: the model is loading.
        """
        if self._generations is None:
            raise ModelNotReadyError
        return self._generations

    def follow(
        self, generation_id: str, after_offset: int, reader: Reader
    ) -> AsyncGenerator[list[Entry], None]:
        """Follow a generation's entries after an offset; without a model, only recorded ones.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        if self._generations is None:
            return self._journal.follow(generation_id, after_offset)
        return self._generations.follow(generation_id, after_offset, reader)

    def check_model(self, name: str) -> None:
        """Refuse the name of another model; "" names the served one.

        Raises:
            ModelNotFoundError: another model is served.
        """
        if name not in ("", self.model_name):
            raise ModelNotFoundError(name, self.model_name)
