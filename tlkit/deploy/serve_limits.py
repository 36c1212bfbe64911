"""What the server takes, and what it holds at one time: beyond that a client is refused, and memory doesn't grow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Limits:
    """upload_bytes, files: of one request. pixels: of one picture. read_s: for a request to arrive; answer_s: for its answer to be found.

    held_bytes: of all uploads that are being read or decoded. waiting: pictures between their upload and their answer.
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
        self.bytes = self.pictures = 0

    @contextmanager
    def for_upload(self) -> Iterator[Callable[[int], None]]:
        """Gives what is to be called with the number of bytes that came. Raises Refusal when they are too many, alone or with others'."""
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
    def for_pictures(self, number: int) -> Iterator[None]:
        if self.pictures + number > self.limits.waiting:
            raise Refusal(503, f"{self.pictures} pictures wait for their answers already. Try again in {RETRY_AFTER_S} s.")
        self.pictures += number
        try:
            yield
        finally:
            self.pictures -= number


def too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The upload is larger than {limits.upload_bytes / 1e6:g} MB. Expected less: scale the picture down.")
