"""How uvicorn speaks HTTP, with two things that it leaves out: a client must finish its request, and a broken one is answered in JSON."""

import asyncio
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol


def impatient_protocol(seconds: float) -> "type[H11Protocol]":
    """A protocol for uvicorn that closes a connection whose request has not arrived whole after so many seconds.

    uvicorn 0.54 waits for the head of a request, and for the rest of a body that was refused, as long as the client likes.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            begun = self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])
            if not begun and self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            elif begun and self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._deadline is not None:
                self._deadline.cancel()

        def send_400_response(self, msg: str) -> None:
            body = json.dumps({"error": f"{msg} Expected HTTP/1.1."}).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()

    return ImpatientProtocol
