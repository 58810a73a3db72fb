"""A collector of traces that takes every batch and does nothing with it."""

from aiohttp import web

from bench.comparators.serving import serve


def main() -> None:
    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    serve(app)


if __name__ == "__main__":
    main()
