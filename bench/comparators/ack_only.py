"""A bare aio-pika consumer that acknowledges and does nothing else: the ceiling for consumers on this library.

BENCH_QUEUE names the queue, BENCH_PREFETCH how many messages may be on the way. After BENCH_MESSAGES of them it makes
the file BENCH_DONE.
"""

import asyncio
import os
from pathlib import Path

import aio_pika
import uvloop


async def consume() -> None:
    done = Path(os.environ["BENCH_DONE"])
    left = int(os.environ["BENCH_MESSAGES"])
    all_acknowledged = asyncio.Event()

    async def acknowledge(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        nonlocal left
        await message.ack()
        left -= 1
        if left == 0:
            all_acknowledged.set()

    connection = await aio_pika.connect(os.environ["BENCH_AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=int(os.environ["BENCH_PREFETCH"]))
        queue = await channel.get_queue(os.environ["BENCH_QUEUE"])
        await queue.consume(acknowledge)
        await all_acknowledged.wait()
        done.touch()  # noqa: ASYNC240 - the measurement is over
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(consume())
