"""Compiled constraints of the engine, which later generations use again."""

from collections import OrderedDict
from collections.abc import Callable

from tokenizers import Tokenizer

from whence_server.constraints.compiler import ConstraintCompiler, Matcher
from whence_server.constraints.errors import ConstraintError
from whence_server.domain.constraints import Constraint
from whence_server.domain.engine import Admit
from whence_server.domain.model import ModelInfo
from whence_server.engines.transformers.inbox import AdmitConstrained
from whence_server.vocabulary import read_text_bytes

MAX_COMPILED = 16
"""Number of compiled constraints that are kept; each holds the states that its texts visited."""


class CompiledConstraints:
    """Cache of the newest compiled constraints, for one thread.

    Args:
        load_compiler: makes the compiler, at the first constraint.
    """

    def __init__(self, load_compiler: Callable[[], ConstraintCompiler]) -> None:
        self._load_compiler = load_compiler
        self._compiler: ConstraintCompiler | None = None
        self._kept: OrderedDict[Constraint, Matcher] = OrderedDict()

    def compile(self, admit: Admit) -> AdmitConstrained:
        """Return the admission of a generation, with its constraint compiled or refused."""
        constraint = admit.decoding.constraint
        if constraint is None:
            raise ValueError("the generation has no constraint")
        try:
            return AdmitConstrained(admit, self._get(constraint))
        except BaseException as error:  # noqa: BLE001 - a panic of compiled code is no Exception
            # The text process has compiled it. An error may quote it, and a failure is on spans.
            why = f"cannot be compiled in the engine: {type(error).__name__}"
            return AdmitConstrained(admit, ConstraintError(why))

    def _get(self, constraint: Constraint) -> Matcher:
        kept = self._kept.pop(constraint, None)
        if kept is None:
            if self._compiler is None:
                self._compiler = self._load_compiler()
            kept = self._compiler.compile(constraint)
        self._kept[constraint] = kept
        if len(self._kept) > MAX_COMPILED:
            self._kept.popitem(last=False)
        return kept


def load_compiler(info: ModelInfo) -> ConstraintCompiler:
    """Return the compiler for a model's vocabulary."""
    tokenizer = Tokenizer.from_str(info.text.tokenizer_json)
    return ConstraintCompiler(*read_text_bytes(tokenizer, info.vocabulary_size))
