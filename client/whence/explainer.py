"""The method of the synchronous client that explains."""

from typing import Unpack

from whence.backoff import RetryPolicy
from whence.calls import Calls
from whence.explaining import ExplainOptions, make_explain_stream
from whence.following import Following
from whence.v1 import explain_pb2


class Explainer:
    """Part of the synchronous client that explains."""

    _calls: Calls
    _policy: RetryPolicy

    def explain(
        self, generation_id: str | None = None, **options: Unpack[ExplainOptions]
    ) -> Following[explain_pb2.ExplainResponse]:
        """Stream the explanation of a generation's steps, or of a text; the last item is `result`.

        The call has no timeout; `close`, or the end of the with-block, ends the computation.

        Args:
            generation_id: id of a generation, running or ended; None for a text.
            options: options of `ExplainOptions`.

        Raises:
            TypeError: an unknown option, a value of the wrong type, or options that contradict.
            ValueError: a value that the wire cannot carry, or an unknown name.
        """
        return self._calls.follow(make_explain_stream(generation_id, options, self._policy))
