"""What a program says of itself on its ops port."""

from typing import Any

import aiohttp


class OpsPort:
    def __init__(self, port: int) -> None:
        self._ops = f"http://127.0.0.1:{port}"

    async def readiness(self) -> int:
        """The status of `/readyz`; 0 while no program listens."""
        try:
            return (await self.health())[0]
        except aiohttp.ClientConnectionError:
            return 0

    async def health(self) -> tuple[int, Any]:
        """The status of `/readyz`, and what it says."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._ops}/readyz") as answer:
            return answer.status, await answer.json()

    async def metrics(self, *, accept: str = "*/*") -> str:
        headers = {"Accept": accept}
        async with aiohttp.ClientSession() as session, session.get(f"{self._ops}/metrics", headers=headers) as answer:
            return await answer.text()
