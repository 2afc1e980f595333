"""One job of explanation: from a question and a model to messages, in phases with progress."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from whence.v1 import explain_pb2, explanation_pb2
from whence_server.domain.errors import ExplanationTooLargeError, NotOfferedError
from whence_server.domain.explanations import ExplainQuestion
from whence_server.domain.model import ModelInfo
from whence_server.explain.dividing import divide_context
from whence_server.explain.messages import TargetTexts, make_explanation, make_trust
from whence_server.explain.methods import METHODS, Method
from whence_server.explain.operators import Operator
from whence_server.explain.resolving import resolve_target
from whence_server.explain.scores import MAX_TOKENS_READ, Progress, Scores
from whence_server.explain.segments import Segment
from whence_server.explain.target import Target
from whence_server.explain.trust import Trust, measure_trust
from whence_server.text.tokenizer import TextTokenizer

MIN_INTERVAL_S: Final = 0.1
"""Time between two messages of progress."""

Send = Callable[[explain_pb2.ExplainResponse], None]


def run_job(
    question: ExplainQuestion, model: Any, info: ModelInfo, tokenizer: TextTokenizer, send: Send
) -> None:
    """Explain, and send progress, the first scores and the result.

    Args:
        question: what to explain.
        model: transformers' model, with the adapter that the record names.
        info: its description.
        tokenizer: its tokenizer.
        send: takes each response.

    Raises:
        InvalidRequestError: the question does not fit the model.
        NotOfferedError: the method, or a part of the model that it needs, is missing.
        ExplanationTooLargeError: it would take more work than one explanation may.
    """
    method = find_method(question)
    target = resolve_target(question, tokenizer, info.vocabulary_size, info.max_context_length)
    segments = divide_context(question, target, tokenizer)
    started = time.monotonic()
    report = Reporter(send, explain_pb2.EXPLAIN_PHASE_SCORES).report
    scores = method.run(model, target, segments, question.options, report)
    texts = TargetTexts(tokenizer, target)
    made = make_explanation(question, target, segments, texts, scores)
    made.method = explanation_pb2.ExplainMethod.ValueType(question.method.value)
    made.method_version = method.version
    made.weights_digest = info.weights_digest
    made.elapsed_seconds = time.monotonic() - started
    # A method without scores of segments predicts nothing that could be measured.
    if question.measures_trust and scores.values:
        made.is_partial = True
        send(explain_pb2.ExplainResponse(partial=made))
        made.is_partial = False
        report = Reporter(send, explain_pb2.EXPLAIN_PHASE_TRUST).report
        trust = _measure_trust(model, target, segments, scores, question, report=report)
        made.trust.CopyFrom(make_trust(trust))
        made.elapsed_seconds = time.monotonic() - started
    send(explain_pb2.ExplainResponse(result=made))


def _measure_trust(
    model: Any,
    target: Target,
    segments: Sequence[Segment],
    scores: Scores,
    question: ExplainQuestion,
    *,
    report: Progress,
) -> Trust:
    operator = scores.parameters.get("operator")
    seed = question.options.get("seed", 0)
    return measure_trust(
        model,
        target,
        segments,
        scores.values,
        report,
        fitted=None if operator is None else Operator(operator),
        seed=seed if isinstance(seed, int) else 0,
        fitted_rows=scores.fitted_rows,
    )


def find_method(question: ExplainQuestion) -> Method:
    """Return the question's method.

    Raises:
        NotOfferedError: this server has no such method.
    """
    method = METHODS.get(question.method)
    if method is None:
        working = ", ".join(each.spelling for each in METHODS)
        raise NotOfferedError(
            f"this server has no method {question.method.spelling}; it has {working}"
        )
    return method


class Reporter:
    """Sender of a phase's progress, at a bounded rate, and bound of its work.

    Args:
        send: takes each response.
        phase: the phase.
    """

    def __init__(self, send: Send, phase: explain_pb2.ExplainPhase.ValueType) -> None:
        self._send = send
        self._phase = phase
        self._sent_s = 0.0

    def report(self, done: int, total: int) -> None:
        """Send the progress, unless it has been sent just now.

        Raises:
            ExplanationTooLargeError: the whole work is more than one explanation may need.
        """
        if total > MAX_TOKENS_READ:
            raise ExplanationTooLargeError(
                f"the model would have to read {total:,} tokens, and {MAX_TOKENS_READ:,} is the "
                "most for one explanation: ask for larger segments, fewer ablations, or a "
                "shorter context",
                num_tokens=str(total),
                max_tokens=str(MAX_TOKENS_READ),
            )
        now = time.monotonic()
        if now - self._sent_s < MIN_INTERVAL_S and done < total:
            return
        self._sent_s = now
        progress = explain_pb2.ExplainProgress(phase=self._phase, done=done, total=total)
        self._send(explain_pb2.ExplainResponse(progress=progress))
