"""Against a real server of the Redis protocol."""

import asyncio
from pathlib import Path

from service.embedded import EmbeddedStore
from service.jobs.roster import Roster, WorkerSite
from service.subnets.store import connect

SITE = WorkerSite(builders=2, bundles=frozenset({"sha256:a", "sha256:b"}))


def test_who_signs_on_counts_until_it_signs_off_or_is_silent(tmp_path: Path) -> None:
    async def main() -> None:
        server = EmbeddedStore(tmp_path)
        await server.start()
        redis = connect(server.url)
        roster = Roster(redis)
        try:
            assert await roster.present() == ()
            for _ in range(2):
                await roster.sign_on("one", SITE)
            await roster.sign_on("two", WorkerSite(builders=1, bundles=frozenset({"sha256:a"})))
            assert sorted(site.builders for site in await roster.present()) == [1, 2]
            assert SITE in await roster.present()
            await roster.sign_off("two")
            assert await roster.present() == (SITE,)

            # Silent for long, or heard of by a clock that was set back since: neither counts.
            seconds = (await redis.time())[0]
            for at in (seconds - 11, seconds + 3600):
                text = (await redis.hget("eqnet:workers", "one")).split(b" ", 1)[1]
                await redis.hset("eqnet:workers", "one", b"%d %s" % (1000 * at, text))
                assert await roster.present() == ()
            await roster.sign_on("three", SITE)
            assert await redis.hkeys("eqnet:workers") == [b"three"]  # nobody else forgets the dead
        finally:
            await redis.aclose()
            await server.stop()

    asyncio.run(main())
