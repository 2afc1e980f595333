"""An HTTP/2 peer between a client and a server, which misbehaves on command.

It takes calls from the client by `h2`, makes each of them to the server by gRPC, and hands the
answer on, until a fault is due. A fault ends the call to the server too, as the death of a proxy
does.
"""

import base64
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self
from urllib.parse import quote

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from path_faults import EndWithoutTrailers, Fault, GoAway, PlainHttp, Reset, Status

STREAMS = ("Generate", "ResumeGeneration", "WatchGenerations", "WatchTrainingRun", "GetVocabulary")
"""Methods whose calls faults strike; the others are handed on."""
_TIME_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_NOT_METADATA = ("te", "content-type", "user-agent", "accept-encoding")


class FaultyPeer:
    """Listener on loopback before a server; a context manager.

    Attributes:
        target: address for clients.
        faults: faults of the next streaming calls, one for each in order. A call without one is
            handed on to its end, and so is a call that ends before its fault is due.
        num_struck: number of faults that struck.
        num_messages: number of messages handed on.
        calls: names of the methods called so far.
    """

    def __init__(self, upstream: str, *faults: Fault) -> None:
        self.faults = deque(faults)
        self.num_struck = 0
        self.num_messages = 0
        self.calls: list[str] = []
        self._channel = grpc.insecure_channel(upstream, [("grpc.enable_http_proxy", 0)])
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[_Connection] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()
        self._channel.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                accepted, _ = self._listener.accept()
                connection = _Connection(accepted, self)
                self._connections.append(connection)
                threading.Thread(target=connection.read, daemon=True).start()

    def take_fault(self, method: str) -> Fault | None:
        """Note a call; return the fault that is due in it."""
        self.calls.append(method)
        return self.faults.popleft() if method in STREAMS and self.faults else None

    def start_call(self, path: str, request: bytes, headers: dict[str, str]) -> Any:
        """Make the same call to the server; its responses are bytes."""
        call = self._channel.unary_stream(path)
        return call(request, timeout=_timeout_s(headers), metadata=_metadata(headers))


class _Connection:
    """One connection of a client, with a thread for each of its calls."""

    def __init__(self, accepted: socket.socket, peer: FaultyPeer) -> None:
        self._socket = accepted
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._changed = threading.Condition()
        self._calls: dict[int, _Call] = {}
        self._is_open = True

    def read(self) -> None:
        """Read frames until the connection ends."""
        with contextlib.suppress(OSError, ProtocolError):
            with self._changed:
                self._http.initiate_connection()
                self._flush()
            while data := self._socket.recv(65_536):
                with self._changed:
                    for event in self._http.receive_data(data):
                        self._handle(event)
                    self._flush()
                    self._changed.notify_all()
        self.close()

    def _handle(self, event: Any) -> None:
        match event:
            case RequestReceived():
                self._calls[event.stream_id] = _Call(event.stream_id, dict(event.headers), self)
            case DataReceived():
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._calls[event.stream_id].body += event.data
            case StreamEnded():
                serving = self._calls[event.stream_id].serve
                threading.Thread(target=serving, args=(self._peer,), daemon=True).start()
            case StreamReset():
                if event.stream_id in self._calls:
                    self._calls[event.stream_id].stop()
            case ConnectionTerminated():
                self._is_open = False
            case WindowUpdated() | RemoteSettingsChanged():
                pass  # calls that wait for room are woken after every read

    def send(self, act: Callable[[H2Connection], None]) -> None:
        """Have h2 write something, and send it; nothing if the connection has ended."""
        with self._changed, contextlib.suppress(OSError, ProtocolError):
            act(self._http)
            self._flush()

    def send_data(self, stream_id: int, data: bytes) -> bool:
        """Send data as the client's windows allow; return False if the stream has ended."""
        with contextlib.suppress(OSError, ProtocolError), self._changed:
            while data:
                size = min(
                    self._http.local_flow_control_window(stream_id),
                    self._http.max_outbound_frame_size,
                    len(data),
                )
                if size > 0:
                    self._http.send_data(stream_id, data[:size])
                    self._flush()
                    data = data[size:]
                elif not self._is_open:
                    return False
                else:
                    self._changed.wait()
            return True
        return False

    def _flush(self) -> None:
        self._socket.sendall(self._http.data_to_send())

    def close(self) -> None:
        """End the connection and the calls on it."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
            calls = list(self._calls.values())
        for call in calls:
            call.stop()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class _Call:
    """One call of a client, and the same call to the server."""

    def __init__(self, stream_id: int, headers: dict[str, str], connection: _Connection) -> None:
        self.body = b""
        self._id = stream_id
        self._headers = headers
        self._connection = connection
        self._upstream: Any = None
        self._has_begun = False
        self._is_stopped = False

    def stop(self) -> None:
        """End the call to the server."""
        self._is_stopped = True
        if self._upstream is not None:
            self._upstream.cancel()

    def serve(self, peer: FaultyPeer) -> None:
        """Hand on the server's answer until it ends or a fault is due."""
        path = self._headers[":path"]
        fault = peer.take_fault(path.rpartition("/")[2])
        if isinstance(fault, PlainHttp):
            self._strike(fault, peer)
            return
        self._upstream = peer.start_call(path, self.body[5:], self._headers)
        if self._is_stopped:
            self._upstream.cancel()
        num_sent = 0
        try:
            for message in self._messages(fault):
                self._begin()
                frame = b"\0" + len(message).to_bytes(4) + message
                if not self._connection.send_data(self._id, frame):
                    return
                num_sent += 1
                peer.num_messages += 1
        except grpc.RpcError:
            pass  # the status is read from the call
        if fault is not None and num_sent == fault.after:
            self._upstream.cancel()
            self._strike(fault, peer)
        else:
            self._end(_trailers(self._upstream))

    def _messages(self, fault: Fault | None) -> Iterator[bytes]:
        if fault is not None and fault.after == 0:
            return
        for number, message in enumerate(self._upstream, 1):
            yield message
            if fault is not None and number == fault.after:
                return

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            headers = [(":status", "200"), ("content-type", "application/grpc")]
            self._connection.send(lambda http: http.send_headers(self._id, headers))

    def _end(self, trailers: list[tuple[str, str]]) -> None:
        self._begin()
        self._connection.send(lambda http: http.send_headers(self._id, trailers, end_stream=True))

    def _strike(self, fault: Fault, peer: FaultyPeer) -> None:
        peer.num_struck += 1
        match fault:
            case Reset(code=code):
                self._connection.send(lambda http: http.reset_stream(self._id, code))
            case EndWithoutTrailers():
                self._begin()
                self._connection.send(lambda http: http.end_stream(self._id))
            case Status(code=code, message=message):
                self._end([("grpc-status", str(code.value[0])), ("grpc-message", quote(message))])
            case PlainHttp(status=status):
                self._connection.send(lambda http: self._answer(http, status))
            case GoAway(code=code):
                self._connection.send(lambda http: http.close_connection(code))
                self._connection.close()

    def _answer(self, http: H2Connection, status: int) -> None:
        headers = [(":status", str(status)), ("content-type", "text/html")]
        http.send_headers(self._id, headers)
        http.send_data(self._id, b"<html>made by the path</html>", end_stream=True)


def _timeout_s(headers: dict[str, str]) -> float | None:
    given = headers.get("grpc-timeout")
    return None if given is None else int(given[:-1]) * _TIME_UNITS_S[given[-1]]


def _metadata(headers: dict[str, str]) -> list[tuple[str, str | bytes]]:
    return [
        (name, _from_base64(value) if name.endswith("-bin") else value)
        for name, value in headers.items()
        if not name.startswith((":", "grpc-")) and name not in _NOT_METADATA
    ]


def _from_base64(value: str) -> bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4))


def _trailers(call: Any) -> list[tuple[str, str]]:
    """Return the trailers with which the server ended a call."""
    trailers = [
        ("grpc-status", str(call.code().value[0])),
        ("grpc-message", quote(call.details() or "")),
    ]
    for name, value in call.trailing_metadata() or ():
        text = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        trailers.append((name, text))
    return trailers
