"""Interface between the shared client and the adapter of one kind of upstream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from whence_server.domain.observation import Distribution, Observation
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.profile import Profile
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.events import Event, EventReader


class Call(NamedTuple):
    """A request over HTTP whose answer is a stream."""

    route: str
    body: Mapping[str, Any]
    make_event_reader: Callable[[int], EventReader]
    """Makes the reader of the answer's pieces, from their largest size in bytes."""


@dataclass(frozen=True, slots=True)
class Found:
    """Facts about the upstream that were found by asking it."""

    description: UpstreamDescription
    distribution: Distribution
    """Distribution behind its logprobs; NONE if it gives none."""


class Answer(Protocol):
    """Reader of one answer."""

    def read(self, event: Event) -> list[UpstreamEvent]:
        """Return the parts of the answer that one piece of the stream has.

        Raises:
            UpstreamError: it is an error, or cannot be read.
        """

    def finish(self) -> list[UpstreamEvent]:
        """Return what is left when the stream has ended: at least the end.

        Raises:
            UpstreamUnfinishedError: a sequence has not ended.
        """


class Adapter(Protocol):
    """Adapter of one kind of upstream: requests out, answers in."""

    @property
    def profile(self) -> Profile:
        """Abilities of the kind."""

    @property
    def health_route(self) -> str:
        """Route that answers with success if the upstream can generate."""

    async def describe(self, connection: Connection, model: str) -> UpstreamDescription:
        """Ask the upstream what it is.

        Args:
            connection: the connections to it.
            model: name of the model to ask for; "" for the only one, or the first.

        Raises:
            UpstreamError: it does not answer as this kind.
        """

    async def ask_process(self, connection: Connection) -> str:
        """Ask for a text that changes when the upstream is started anew; "" if it tells none.

        Raises:
            UpstreamError: it does not answer.
        """

    def make_call(self, request: UpstreamRequest, found: Found) -> Call:
        """Return the request as this kind takes it."""

    def make_answer(self, request: UpstreamRequest, found: Found, name: str) -> Answer:
        """Return the reader of the answer.

        Args:
            request: the generation as it was asked for.
            found: facts about the upstream.
            name: the upstream, for errors.
        """

    def grade(self, request: UpstreamRequest, found: Found) -> Observation:
        """Return the grades of the generation that the request asks for."""

    async def ask_prompt(
        self, connection: Connection, request: UpstreamRequest
    ) -> UpstreamPrompt | None:
        """Ask for the prompt's text and ids, where the answer itself does not have them.

        Raises:
            UpstreamError: it does not answer.
        """
