"""Inbox of the engine's loop: constraints are compiled beside it."""

import threading

from constraint_texts import make_compiler, regex

from whence_server.constraints.compiler import ConstraintCompiler
from whence_server.constraints.errors import ConstraintError
from whence_server.domain.constraints import Constraint
from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.engine import Admit, StopGeneration
from whence_server.engines.transformers.compiled_constraints import (
    MAX_COMPILED,
    CompiledConstraints,
)
from whence_server.engines.transformers.inbox import AdmitConstrained, Inbox


def admit(generation_id: str, constraint: Constraint | None = None) -> Admit:
    decoding = Decoding(Strategy.GREEDY, 8, constraint=constraint)
    return Admit(generation_id, [1], decoding, TraceOptions())


class Compiling:
    """Compilation that ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, message: Admit) -> AdmitConstrained:
        self.begun.set()
        assert self.may_end.wait(30)
        return AdmitConstrained(message, ConstraintError("none"))


def test_other_messages_do_not_wait_for_a_compilation() -> None:
    inbox, compiling = Inbox(), Compiling()
    inbox.compile_constraint = compiling
    inbox.put(admit("slow", regex("a")))
    inbox.put(admit("plain"))
    assert compiling.begun.wait(30)
    assert inbox.get() == admit("plain")
    assert inbox.is_empty()
    compiling.may_end.set()
    compiled = inbox.get()
    assert isinstance(compiled, AdmitConstrained)
    assert compiled.admit.generation_id == "slow"


def test_a_generation_that_is_stopped_meanwhile_is_never_admitted() -> None:
    inbox, compiling = Inbox(), Compiling()
    inbox.compile_constraint = compiling
    inbox.put(admit("stopped", regex("a")))
    assert compiling.begun.wait(30)
    inbox.put(StopGeneration("stopped"))
    inbox.put(admit("next", regex("b")))
    compiling.may_end.set()
    first = inbox.get()
    assert isinstance(first, AdmitConstrained)
    assert first.admit.generation_id == "next"
    inbox.put(StopGeneration("next"))
    assert inbox.get() == StopGeneration("next")


class CountingCompiler:
    """Compiler that counts."""

    def __init__(self) -> None:
        self.compiler, self.num_compiled = make_compiler(), 0

    def compile(self, constraint: Constraint) -> object:
        self.num_compiled += 1
        return self.compiler.compile(constraint)


def test_equal_constraints_are_compiled_once_and_the_oldest_is_dropped() -> None:
    counting = CountingCompiler()
    compiled = CompiledConstraints(lambda: counting)  # type: ignore[arg-type,return-value]
    first = compiled.compile(admit("1", regex("a")))
    assert compiled.compile(admit("2", regex("a"))).compiled is first.compiled
    assert counting.num_compiled == 1
    for number in range(MAX_COMPILED):
        compiled.compile(admit("3", regex(f"b{number}")))
    compiled.compile(admit("4", regex("a")))
    assert counting.num_compiled == MAX_COMPILED + 2


def test_a_constraint_that_cannot_be_compiled_fails_its_generation() -> None:
    refused = CompiledConstraints(make_compiler).compile(admit("1", regex("(")))
    assert isinstance(refused.compiled, ConstraintError)
    assert "(" not in refused.compiled.message

    def load() -> ConstraintCompiler:
        raise OSError("no file")

    broken = CompiledConstraints(load).compile(admit("1", regex("a")))
    assert isinstance(broken.compiled, ConstraintError)
    assert "cannot be compiled in the engine: OSError" in broken.compiled.message
