"""What the servicers serve: it changes once, when the model has been loaded."""

from collections.abc import AsyncGenerator

from whence_server.domain.entries import Entry
from whence_server.domain.errors import ModelNotFoundError, ModelNotReadyError
from whence_server.domain.model import ModelInfo
from whence_server.generation.service import Generations
from whence_server.journal.journal import Journal
from whence_server.text.tokenizer import TextTokenizer


class Serving:
    """The model and its generations, once there are any.

    Attributes:
        model_name: known from the start.
        model: None while the model is being loaded.
        tokenizer: as `model`.
    """

    def __init__(self, model_name: str, journal: Journal) -> None:
        self.model_name = model_name
        self._journal = journal
        self.model: ModelInfo | None = None
        self.tokenizer: TextTokenizer | None = None
        self._generations: Generations | None = None

    def ready(self, model: ModelInfo, tokenizer: TextTokenizer, generations: Generations) -> None:
        """From now on requests are served."""
        self.model, self.tokenizer, self._generations = model, tokenizer, generations

    def generations(self) -> Generations:
        """The running generations.

        Raises:
            ModelNotReadyError: the model is being loaded.
        """
        if self._generations is None:
            raise ModelNotReadyError
        return self._generations

    def follow(self, generation_id: str, after_offset: int) -> AsyncGenerator[list[Entry], None]:
        """A generation's entries beyond an offset: while no model is loaded, recorded ones.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        followed = self._generations or self._journal
        return followed.follow(generation_id, after_offset)

    def check_model(self, name: str) -> None:
        """Refuse a model's name that is not served; empty is the one that is.

        Raises:
            ModelNotFoundError: another model is served.
        """
        if name not in ("", self.model_name):
            raise ModelNotFoundError(name, self.model_name)
