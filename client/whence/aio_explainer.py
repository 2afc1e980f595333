"""The method of the asyncio client that explains."""

from typing import Unpack

from whence.aio_calls import AsyncCalls
from whence.aio_following import AsyncFollowing
from whence.backoff import RetryPolicy
from whence.explaining import ExplainOptions, make_explain_stream
from whence.v1 import explain_pb2


class AsyncExplainer:
    """Part of the asyncio client that explains."""

    _calls: AsyncCalls
    _policy: RetryPolicy

    def explain(
        self, generation_id: str | None = None, **options: Unpack[ExplainOptions]
    ) -> AsyncFollowing[explain_pb2.ExplainResponse]:
        """Stream the explanation of a generation's steps, or of a text; as `Client.explain`."""
        return self._calls.follow(make_explain_stream(generation_id, options, self._policy))
