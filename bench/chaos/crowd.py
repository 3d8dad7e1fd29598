"""Two hundred who ask at once: scrapers, and clients that hold a stream of events open."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from bench.chaos.alarms import Alarms, options
from bench.chaos.row import Row, Size
from bench.chaos.stand import Stand
from sidecar.publish.live.feed import MAX_CLIENTS

SCRAPE_SECONDS: Final = 3.0  # pause of each scraper; all together stay within 100 requests a second


def crowd(folder: Path, size: Size) -> Row:
    """All of them at once, and an alarm in the midst."""
    num_listeners = min(MAX_CLIENTS, size.num_clients // 3)
    with Stand(folder, size.num_ranks, options(folder)) as stand:
        alarms = Alarms(stand)
        alarms.canary()
        asking = _Crowd(stand, size.num_clients - num_listeners, num_listeners)
        asking.start()
        stand.wait("all listen", lambda: asking.num_listening == num_listeners)
        time.sleep(size.seconds / 2)
        alarms.overflow()
        time.sleep(size.seconds / 2)
        stand.wait("all were told of the alarm", lambda: asking.num_told == num_listeners)
        asking.stop()
        alarms.check()
        alarms.close()
        account = stand.account()
    p50, p99 = np.percentile(asking.seconds, (50, 99)).tolist()
    return Row(
        f"{asking.num_scrapers} scrapers and {num_listeners} listeners to events at once, "
        f"{size.seconds:g} s",
        account,
        asking.num_failed,
        alarms.num_raised,
        alarms.num_lost + num_listeners - asking.num_told,
        (),
        f"nothing stopped; failed would be a scrape without a 200 or a stream that broke off; each "
        f"listener had to be told of the alarm; {len(asking.seconds):,} scrapes took {p50:.2f} s "
        f"(median) and {p99:.2f} s (99 of 100)",
        {"scrapes": len(asking.seconds), "scrape_seconds": {"p50": p50, "p99": p99}},
    )


class _Crowd:
    """Clients on one event loop, in a thread of their own."""

    def __init__(self, stand: Stand, num_scrapers: int, num_listeners: int) -> None:
        self.num_scrapers = num_scrapers
        self.num_failed = self.num_listening = self.num_told = 0
        self.seconds: list[float] = []
        self._num_listeners = num_listeners
        self._metrics = f"{stand.metrics_url}/metrics"
        self._events = f"{stand.api_url}/v1/events"
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way is waited for."""
        self._over.set()
        self._thread.join()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
            scrapers = [self._scrape(client, number) for number in range(self.num_scrapers)]
            listeners = [
                asyncio.create_task(self._listen(client)) for _ in range(self._num_listeners)
            ]
            await asyncio.gather(*scrapers)
            for listener in listeners:
                listener.cancel()
            await asyncio.gather(*listeners, return_exceptions=True)

    async def _scrape(self, client: httpx.AsyncClient, number: int) -> None:
        await asyncio.sleep(SCRAPE_SECONDS * number / self.num_scrapers)
        while not self._over.is_set():
            began = time.perf_counter()
            try:
                (await client.get(self._metrics)).raise_for_status()
            except httpx.HTTPError:
                self.num_failed += 1
            self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(SCRAPE_SECONDS)

    async def _listen(self, client: httpx.AsyncClient) -> None:
        try:
            async with client.stream("GET", self._events) as reply:
                reply.raise_for_status()
                self.num_listening += 1
                await self._follow(reply)
            self.num_failed += 1  # the stream ended by itself
        except httpx.HTTPError:
            self.num_failed += 1

    async def _follow(self, reply: httpx.Response) -> None:
        is_told = is_drift = False
        async for line in reply.aiter_lines():
            is_drift = line == "event: drift" if line.startswith("event:") else is_drift
            if is_drift and line.startswith("data:") and "integrity" in line and not is_told:
                is_told = True
                self.num_told += 1
