"""Messages of an upstream as the front records them: texts divided, tables cut, parts joined."""

import time
from collections.abc import Sequence

from whence_server.domain.decoding import FinishReason
from whence_server.domain.upstream import (
    UpstreamCandidates,
    UpstreamDecision,
    UpstreamPiece,
    UpstreamReport,
)
from whence_server.engines.upstream.exchange import (
    UpstreamCandidate,
    UpstreamChunk,
    UpstreamEnd,
    UpstreamPrompt,
    UpstreamToken,
)
from whence_server.engines.upstream.second import SecondComputer
from whence_server.engines.upstream.tool_calls import CallPieces


class Translator:
    """Translator of one generation's messages.

    Args:
        generation_id: id of the generation.
        num_sequences: number of its sequences.
        num_candidates: number of candidates to record for each step; 0 for none.
        knows_vocabulary: True if ids alone name the tokens.
        computer: computer of the second distribution; None if it is not computed.
    """

    def __init__(
        self,
        generation_id: str,
        *,
        num_sequences: int,
        num_candidates: int,
        knows_vocabulary: bool,
        computer: SecondComputer | None,
    ) -> None:
        self._generation_id = generation_id
        self._num_candidates = num_candidates
        self._knows_vocabulary = knows_vocabulary
        self._computer = computer
        self._calls = [CallPieces() for _ in range(num_sequences)]
        self._unfinished = set(range(num_sequences))
        self._prompt = UpstreamPrompt()

    @property
    def has_finished(self) -> bool:
        """True if every sequence has ended."""
        return not self._unfinished

    def drop(self, sequence_index: int) -> None:
        """Note that the front has ended a sequence."""
        self._unfinished.discard(sequence_index)

    def note_prompt(self, prompt: UpstreamPrompt) -> None:
        """Keep the prompt that the upstream told."""
        self._prompt = prompt

    def translate(self, chunk: UpstreamChunk) -> UpstreamPiece | None:
        """Return a message for the front; None if it concerns no sequence that runs.

        Raises:
            ValueError: its tool calls cannot be read.
        """
        index = chunk.sequence_index
        if index not in self._unfinished:
            return None
        if chunk.tool_calls_json:
            self._calls[index].add(chunk.tool_calls_json)
        tokens = chunk.tokens
        several = len(tokens) if len(tokens) > 1 else None
        decisions = [self._describe(token, several) for token in tokens]
        texts = divide_text(chunk.text, tokens)
        if not tokens and (chunk.text or chunk.reasoning):
            decisions, texts = [UpstreamDecision()], [chunk.text]
        if chunk.reasoning:
            parts = divide_text(chunk.reasoning, tokens) or [chunk.reasoning]
            decisions = _add_reasoning(decisions, parts)
        if chunk.finish is None:
            return UpstreamPiece(self._generation_id, index, time.monotonic_ns(), texts, decisions)
        self._unfinished.discard(index)
        return UpstreamPiece(
            self._generation_id,
            index,
            time.monotonic_ns(),
            texts,
            decisions,
            chunk.finish,
            chunk.stop if chunk.finish is FinishReason.STOP else "",
            self._calls[index].list_calls(),
        )

    def report(self, end: UpstreamEnd, sent_token_ids: Sequence[int]) -> UpstreamReport:
        """Return the upstream's statements about the generation.

        Args:
            end: the end of its answer.
            sent_token_ids: token ids of the prompt that it was sent; empty if it was sent text.
        """
        prompt = self._prompt
        told_ids = prompt.token_ids or ()
        return UpstreamReport(
            model=end.model,
            fingerprint=end.fingerprint,
            num_prompt_tokens=end.num_prompt_tokens,
            num_generated_tokens=end.num_generated_tokens,
            num_cached_prompt_tokens=end.num_cached_prompt_tokens,
            seed=end.seed,
            has_drafted_tokens=end.has_drafted_tokens,
            prompt=prompt.text or "",
            prompt_token_ids=() if told_ids == tuple(sent_token_ids) else told_ids,
        )

    def _describe(self, token: UpstreamToken, num_chunk_tokens: int | None) -> UpstreamDecision:
        shows_text = token.token_id is None or not self._knows_vocabulary
        table = token.candidates
        candidates, sampling_logprob = None, None
        processed = self._compute(table)
        if self._computer is not None and self._computer.is_neutral:
            sampling_logprob = token.logprob
        elif processed is not None and table is not None:
            place = find_token(token, table)
            sampling_logprob = None if place is None else processed[place]
            if sampling_logprob == -float("inf"):
                # The upstream chose what the settings remove: it applies them in another way.
                processed = sampling_logprob = None
        if table is not None and self._num_candidates:
            candidates = self._cut(table, processed or [])
        return UpstreamDecision(
            token.token_id,
            token.text if shows_text else "",
            token.logprob,
            sampling_logprob,
            token.rank,
            candidates,
            num_chunk_tokens,
        )

    def _compute(self, table: tuple[UpstreamCandidate, ...] | None) -> list[float] | None:
        if self._computer is None or not table:
            return None
        return self._computer.compute([entry.logprob for entry in table])

    def _cut(
        self, table: tuple[UpstreamCandidate, ...], processed: list[float]
    ) -> UpstreamCandidates:
        shown = table[: self._num_candidates]
        ids = [entry.token_id for entry in shown if entry.token_id is not None]
        if len(ids) < len(shown):
            ids = []
        texts = [] if ids and self._knows_vocabulary else [entry.text for entry in shown]
        return UpstreamCandidates(
            ids,
            texts if any(texts) else [],
            [entry.logprob for entry in shown],
            processed[: self._num_candidates],
        )


def _add_reasoning(
    decisions: Sequence[UpstreamDecision], parts: Sequence[str]
) -> list[UpstreamDecision]:
    return [
        decision._replace(reasoning_text=part)
        for decision, part in zip(decisions, parts, strict=True)
    ]


def find_token(token: UpstreamToken, table: Sequence[UpstreamCandidate]) -> int | None:
    """Return the place of the chosen token in its table; None if it is not there."""
    for place, entry in enumerate(table):
        if token.token_id is not None and entry.token_id is not None:
            if token.token_id == entry.token_id:
                return place
        elif (token.text, token.logprob) == (entry.text, entry.logprob):
            return place
    return None


def divide_text(text: str, tokens: Sequence[UpstreamToken]) -> list[str]:
    """Return the part of a chunk's text that each of its tokens adds; joined, they are the text.

    A token whose own text does not come next adds none: the rest leaves with the last token.
    """
    if not tokens:
        return []
    parts = []
    for token in tokens[:-1]:
        part = token.text if text.startswith(token.text) else ""
        parts.append(part)
        text = text[len(part) :]
    return [*parts, text]
