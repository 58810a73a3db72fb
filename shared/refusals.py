"""Why RabbitMQ cannot be reached or refuses a call: in the server's words where it gave any, else in ours.

The client libraries keep the server's words in the arguments of their exceptions, in causes, or nowhere: for a
connection that the server refuses at its end (a missing virtual host, a limit) aiormq raises `InvalidFrameError`, and
the server's frame is only in the local variables of the traceback. No text here has a URL or a password.
"""

import errno
import re
import socket
import ssl
import traceback
from typing import TYPE_CHECKING, Final

from aio_pika.exceptions import AMQPError, DeliveryError
from pamqp.commands import Basic, Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_ROUTE: Final = 312
OTHER_ARGUMENTS: Final = "inequivalent arg"
"""A part of the server's words where a queue or an exchange exists with other arguments."""

CLOSED: Final = "the connection was closed"
_REFUSED: Final = "connection refused: nothing listens on this port"
_NO_AMQP: Final = (
    "the server ended the connection instead of speaking AMQP: the port is for TLS (amqps://) or for HTTP, or it stops"
)
_REPLY: Final = re.compile(r"[A-Z]+_[A-Z_]+ - ")
_TLS_WORDS: Final = {
    "WRONG_VERSION_NUMBER": "the port does not speak TLS: amqp:// instead of amqps://, or another port",
    "RECORD_LAYER_FAILURE": "the port does not speak TLS: amqp:// instead of amqps://, or another port",
    "CERTIFICATE_REQUIRED": "the server wants a certificate of the client's: certfile= and keyfile= in the URL",
    "NO_CERTIFICATE_OR_CRL_FOUND": "the file that cafile= names holds no certificate",
}


def words_of(error: BaseException, *, connecting: bool = False) -> str:
    """Why `error` was raised by a client library, in one line; `connecting`: before there was a connection."""
    if connecting and isinstance(error, TimeoutError):
        return "no answer in time: a firewall, a port that is not AMQP's, or a server that hangs"
    for each in _chain(error):
        if words := _words_of_one(each):
            return words
    if connecting and isinstance(error, AMQPError | StopAsyncIteration):
        return _NO_AMQP
    return CLOSED if "closed" in str(error) or isinstance(error, StopAsyncIteration) else type(error).__name__


def is_unroutable(error: BaseException) -> bool:
    """Whether a message came back because no queue is bound to its key, or no queue is there."""
    return (
        isinstance(error, DeliveryError)
        and isinstance(error.frame, Basic.Return)
        and error.frame.reply_code == NO_ROUTE
    )


def _chain(error: BaseException) -> "Iterator[BaseException]":
    """The error, and what it was raised from; the last says most, the first has the server's own words."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _words_of_one(error: BaseException) -> str | None:  # noqa: PLR0911 - a table, in which order matters
    match error:
        case DeliveryError():
            return _of_delivery(error)
        case AMQPError() if reply := _reply_in(error):
            return reply
        case ssl.SSLCertVerificationError():
            return (
                f"the server's certificate is not trusted: {error.verify_message}; name its CA with cafile= in the URL"
            )
        case ssl.SSLError():
            return f"TLS: {_TLS_WORDS.get(error.reason or '') or error.reason or error}"
        case socket.gaierror():
            return f"the host's name cannot be resolved: {error.strerror}"
        case ConnectionRefusedError():
            return _REFUSED
        case TimeoutError():
            return "no answer in time"
        case OSError() if str(error).startswith("Multiple exceptions"):  # asyncio's, for a name with several addresses
            refused = str(error).count("Connect call failed") == str(error).count(f"[Errno {errno.ECONNREFUSED}]")
            return _REFUSED if refused else "connecting failed at each address of the host"
        case OSError() if error.strerror and not isinstance(error, AMQPError):
            return error.strerror
        case _:
            return None


def _reply_in(error: AMQPError) -> str | None:
    """The text that the server closed a channel or the connection with, such as `ACCESS_REFUSED - …`."""
    for argument in error.args:
        if isinstance(argument, str) and _REPLY.match(argument):
            return argument
    for frame, _ in traceback.walk_tb(error.__traceback__):
        match frame.f_locals.get("frame"):
            case Connection.Close(reply_text=str(text)):
                return text
            case _:
                pass
    return None


def _of_delivery(error: DeliveryError) -> str:
    match error.frame:
        case Basic.Return() as returned if returned.reply_code == NO_ROUTE:
            return f"no queue is bound to the key {returned.routing_key!r} of exchange {returned.exchange!r}: NO_ROUTE"
        case Basic.Return() as returned:
            return f"the message came back: {returned.reply_text}"
        case Basic.Nack() | Basic.Reject():
            return "the queue takes no message: it is full (a length limit), or its leader is away"
        case _:
            return "the message was not confirmed"
