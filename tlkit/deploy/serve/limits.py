"""What the server takes, and what it holds at one time: beyond that a client is refused, and memory doesn't grow."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.terminal import counted

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol

RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Limits:
    """upload_bytes, files: of one request. pixels: of one image. read_s: for a request to arrive; answer_s: for its answer to be found.

    held_bytes: of all uploads that are being read or decoded. waiting: images between their upload and their answer.
    """

    upload_bytes: int = 20_000_000
    files: int = 32
    pixels: int = 50_000_000
    read_s: float = 20.0
    answer_s: float = 30.0
    held_bytes: int = 256_000_000
    waiting: int = 256


class Refusal(Exception):  # no fault of the program: an answer
    """A request that isn't answered. status: of HTTP. message: what came, what was expected."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 503:
            return {"Retry-After": str(RETRY_AFTER_S)}
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        # What a slow client still sends is not waited for.
        return {"Connection": "close"} if self.status == 408 else {}


class Room:
    """Counts what is held, and refuses what would be too much."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = self.images = 0

    @contextmanager
    def for_upload(self) -> Iterator[Callable[[int], None]]:
        """Return a function to call with the number of bytes that came. Raises Refusal for too many, alone or with those of others."""
        mine = 0

        def hold(number: int) -> None:
            nonlocal mine
            if mine + number > self.limits.upload_bytes:
                raise too_large(self.limits)
            if self.bytes + number > self.limits.held_bytes:
                raise Refusal(503, f"The server holds {self.bytes / 1e6:.0f} MB of other uploads. Try again in {RETRY_AFTER_S} s.")
            mine += number
            self.bytes += number

        try:
            yield hold
        finally:
            self.bytes -= mine

    @contextmanager
    def for_images(self, number: int) -> Iterator[None]:
        if self.images + number > self.limits.waiting:
            waiting = counted(self.images, "image waits", "images wait")
            raise Refusal(503, f"{waiting} to be answered already. Try again in {RETRY_AFTER_S} s.")
        self.images += number
        try:
            yield
        finally:
            self.images -= number


def too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The upload is larger than {limits.upload_bytes / 1e6:g} MB. Expected less: scale the image down.")


def impatient_protocol(seconds: float) -> "type[H11Protocol]":
    """Create a uvicorn protocol that closes a connection whose request has not arrived completely within so many seconds.

    uvicorn 0.54 waits for the head of a request, and for the rest of a rejected body, as long as the client keeps the connection open.
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
