"""Refusal of calls of methods that no service has; gRPC's own status has no details."""

from typing import Any, NoReturn

import grpc

from whence_server.domain.errors import MethodNotFoundError
from whence_server.rpc.status import abort


class UnknownMethods(grpc.GenericRpcHandler):
    """Handler of every method; the last one of a server, as the first that answers is used."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return a handler that ends the call with UNIMPLEMENTED."""
        method: Any = handler_call_details.method

        async def refuse(
            _messages: object, context: "grpc.aio.ServicerContext[Any, Any]"
        ) -> NoReturn:
            await abort(context, MethodNotFoundError(str(method)))

        return grpc.stream_stream_rpc_method_handler(refuse)
