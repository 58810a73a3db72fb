"""The one kind of response that this API gives: bytes that are ready, and no `Server` banner."""

from collections.abc import Mapping

from aiohttp import hdrs, web


class Unbranded:
    """A response, mixed in before an aiohttp one, that does not say what software made it.

    aiohttp puts its name into every response just before the headers go out, and offers no setting for it; a signal
    (`on_response_prepare`) could take it out again, at a cost to every request.
    """

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()  # type: ignore[misc] # the aiohttp class that this is mixed into
        self._headers.popall(hdrs.SERVER, None)  # type: ignore[attr-defined] # likewise


class Answer(Unbranded, web.Response):
    """A whole body, encoded before, with its headers."""

    def __init__(
        self,
        body: bytes | None,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(body=body, status=status, headers=headers)
        if body is not None:
            self.headers[hdrs.CONTENT_TYPE] = content_type
