"""Printing of a text's emergence: its curve, and details of the largest change."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from whence.cli.exits import UsageError
from whence.cli.plots import format_bar
from whence.cli.render import fit_columns
from whence.client import Client
from whence.errors import FailedPreconditionError, NotFoundError
from whence.summary import escape, quote
from whence.v1 import training_pb2 as pb

_BAR_COLUMNS = 30
_TOKEN_COLUMNS = 20
_GROUP_COLUMNS = 24
_MOST_DOCUMENTS = 10
_MOST_IDS = 8


class Emergence(NamedTuple):
    """Traced emergence of one text."""

    started: pb.EmergenceStarted
    points: list[pb.EmergencePoint]
    intervals: list[pb.EmergenceInterval]

    def find_around(self, step: int) -> tuple[pb.EmergencePoint, pb.EmergencePoint] | None:
        """Return the two points around a step; None if there are none."""
        return next(
            (pair for pair in pairwise(self.points) if pair[0].step < step <= pair[1].step), None
        )

    def find_largest_change(self) -> tuple[pb.EmergencePoint, pb.EmergencePoint] | None:
        """Return the two points between which the logprob changed most."""
        changes = [pair for pair in pairwise(self.points) if math.isfinite(_compute_change(*pair))]
        return max(changes, key=lambda pair: abs(_compute_change(*pair)), default=None)


def gather_responses(answers: Sequence[pb.TraceEmergenceResponse]) -> Emergence:
    """Group the responses of one call by kind."""
    started = next((a.started for a in answers if a.HasField("started")), pb.EmergenceStarted())
    return Emergence(
        started,
        [answer.point for answer in answers if answer.HasField("point")],
        [answer.interval for answer in answers if answer.HasField("interval")],
    )


def format_explanation(
    client: Client,
    run: pb.GetTrainingRunResponse,
    emergence: Emergence,
    *,
    text: str,
    num_examples: int,
    step: int | None = None,
) -> Iterator[str]:
    """Yield the curve over all checkpoints, then tokens, groups and examples of one change.

    Args:
        client: client that fetches the documents.
        run: the training run.
        emergence: traced emergence.
        text: the continuation.
        num_examples: maximum number of examples to look up.
        step: step whose change is explained; None for the largest change.

    Raises:
        UsageError: there are no checkpoints before and after the step.
    """
    yield from _format_curve(emergence.points)
    chosen = emergence.find_largest_change() if step is None else emergence.find_around(step)
    if chosen is None:
        if step is not None:
            raise UsageError(f"there are no checkpoints before and after step {step:,}")
        return
    before, after = chosen
    yield ""
    name = "largest change" if step is None else "change"
    yield (
        f"{name}: {_compute_change(before, after):+.3f} nats "
        f"from step {before.step:,} to step {after.step:,}"
    )
    yield ""
    yield from _format_tokens(emergence.started, before, after)
    for interval in emergence.intervals:
        if (interval.first_step, interval.last_step) == (before.step, after.step):
            yield from _format_groups(run.started.groups, interval)
            yield from _format_examples(
                client,
                run.summary.training_run_id,
                interval,
                text.strip().encode(),
                num_examples,
            )


def _format_curve(points: Sequence[pb.EmergencePoint]) -> Iterator[str]:
    yield f"{'step':>10}  {'log p':>9}  {'change':>8}  {'p':>9}"
    finite = [point.logprob for point in points if math.isfinite(point.logprob)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    for index, point in enumerate(points):
        change = f"{_compute_change(points[index - 1], point):+.3f}" if index else ""
        yield (
            f"{point.step:>10,}  {point.logprob:>9.3f}  {change:>8}  "
            f"{math.exp(min(point.logprob, 0.0)):>9.2e}  "
            f"{format_bar(point.logprob - low, high - low, _BAR_COLUMNS)}"
        ).rstrip()


def _format_tokens(
    started: pb.EmergenceStarted, before: pb.EmergencePoint, after: pb.EmergencePoint
) -> Iterator[str]:
    yield f"{'token':<{_TOKEN_COLUMNS}}  {'before':>9}  {'after':>9}  {'change':>8}"
    told = zip(
        started.continuation_texts, before.token_logprobs, after.token_logprobs, strict=False
    )
    for text, old, new in told:
        shown = fit_columns(quote(text), _TOKEN_COLUMNS)
        yield f"{shown}  {old:>9.3f}  {new:>9.3f}  {new - old:>+8.3f}"


def _format_groups(
    groups: Sequence[pb.ParameterGroup], interval: pb.EmergenceInterval
) -> Iterator[str]:
    if not interval.group_changes:
        return
    named = zip((group.name for group in groups), interval.group_changes, strict=False)
    by_size = sorted(named, key=lambda pair: -abs(pair[1]))
    largest = max(abs(change) for _, change in by_size)
    yield ""
    yield f"{'contributed by':<{_GROUP_COLUMNS}}  {'nats':>8}"
    for name, change in by_size:
        shown = fit_columns(escape(name), _GROUP_COLUMNS)
        yield f"{shown}  {change:>+8.3f}  {format_bar(abs(change), largest, _BAR_COLUMNS)}".rstrip()
    told = f"what {interval.num_gradients} gradients along the line missed"
    yield f"{'gap':<{_GROUP_COLUMNS}}  {interval.gap:>+8.3f}  {told}"


def _format_examples(
    client: Client,
    training_run_id: str,
    interval: pb.EmergenceInterval,
    text: bytes,
    num_examples: int,
) -> Iterator[str]:
    """Yield the documents trained on in the interval, those with the text first."""
    ids = list(dict.fromkeys(interval.example_ids))
    if not ids:
        return
    looked_up = ids[:num_examples]
    yield ""
    yield f"examples trained on in between: {len(ids):,}" + (
        f"; the documents of the first {len(looked_up):,}" if len(ids) > len(looked_up) else ""
    )
    try:
        documents = _fetch_documents(client, training_run_id, looked_up, text)
    except NotFoundError:
        yield "  which documents they were cut from is not on record"
        return
    ordered = sorted(documents.values(), key=lambda document: not document.having)
    for document in ordered[:_MOST_DOCUMENTS]:
        yield from document.format_lines()
    if len(ordered) > _MOST_DOCUMENTS:
        yield f"  and {len(ordered) - _MOST_DOCUMENTS:,} other documents"


class _Document(NamedTuple):
    """A document of the interval, with its examples."""

    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    place: pb.TrainingDocument
    examples: list[int]
    having: list[int]
    """Examples whose piece of the document has the explained text."""

    def format_lines(self) -> Iterator[str]:
        place = self.place
        yield (
            f"  document {self.index}  {escape(place.source)} bytes {place.begin_byte:,} to "
            f"{place.end_byte:,}"
        )
        told = f"examples {_format_ids(self.examples)}"
        yield (
            f"    {told}; {_format_ids(self.having)} with the text"
            if self.having
            else f"    {told}"
        )


def _fetch_documents(
    client: Client, training_run_id: str, example_ids: Sequence[int], text: bytes
) -> dict[int, _Document]:
    """Return the documents of the examples, by index."""
    pieces: dict[int, list[tuple[int, pb.ExamplePiece]]] = {}
    for example_id in example_ids:
        answer = client.training_runs.document(
            training_run_id, example_id=example_id, omit_text=True
        )
        for piece in answer.example_pieces:
            pieces.setdefault(piece.document_index, []).append((example_id, piece))
    return {
        index: _fetch_document(client, training_run_id, index, of_it, text)
        for index, of_it in pieces.items()
    }


def _fetch_document(
    client: Client,
    training_run_id: str,
    index: int,
    pieces: Sequence[tuple[int, pb.ExamplePiece]],
    text: bytes,
) -> _Document:
    place = client.training_runs.document(training_run_id, index=index, omit_text=True).document
    examples = list(dict.fromkeys(example_id for example_id, _ in pieces))
    having: list[int] = []
    if text:
        try:
            cut = _cut_out(client, training_run_id, index, [piece for _, piece in pieces])
        except FailedPreconditionError:  # it was changed since
            cut = []
        found = (it for (it, _), octets in zip(pieces, cut, strict=False) if text in octets)
        having = list(dict.fromkeys(found))
    return _Document(index, place, examples, having)


def _cut_out(
    client: Client, training_run_id: str, index: int, pieces: Sequence[pb.ExamplePiece]
) -> list[bytes]:
    """Return the bytes of pieces of one document, which is read as a stream."""
    first, last = min(p.begin_byte for p in pieces), max(p.end_byte for p in pieces)
    cut = [bytearray() for _ in pieces]
    at = first
    for octets in client.training_runs.read_document(
        training_run_id, index=index, begin_byte=first, end_byte=last
    ):
        for piece, kept in zip(pieces, cut, strict=True):
            kept.extend(octets[max(piece.begin_byte - at, 0) : max(piece.end_byte - at, 0)])
        at += len(octets)
    return list(map(bytes, cut))


def _format_ids(example_ids: Sequence[int]) -> str:
    more = ", ..." if len(example_ids) > _MOST_IDS else ""
    return ", ".join(map(str, example_ids[:_MOST_IDS])) + more


def _compute_change(before: pb.EmergencePoint, after: pb.EmergencePoint) -> float:
    return after.logprob - before.logprob
