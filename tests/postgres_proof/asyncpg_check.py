"""asyncpg, which speaks the protocol by itself: binary, pipelined, all statements prepared. The connection stands in PG*
variables; DIRECT=1 says that they lead to Postern without a helper, over TLS."""

import asyncio
import os

import asyncpg

if os.environ.get("DIRECT"):
    # What a line in /etc/hosts would do: asyncpg has no hostaddr.
    name, address = os.environ["PGHOST"], os.environ["PGHOSTADDR"]
    lookup = asyncio.BaseEventLoop.getaddrinfo

    async def getaddrinfo(self, host, port, **more):
        return await lookup(self, address if host == name else host, port, **more)

    asyncio.BaseEventLoop.getaddrinfo = getaddrinfo


def check(what, condition):
    if not condition:
        raise SystemExit(f"asyncpg: not so: {what}")
    print(f"asyncpg: {what}")


async def main():
    conn = await asyncpg.connect()
    check("is let in", await conn.fetchval("select current_user") == "app")
    await conn.execute("drop table if exists apg; create table apg (n int primary key, t text, a int[])")
    rows = [(n, "ö" * (n % 9), [n, None]) for n in range(3000)]
    check("COPY in", await conn.copy_records_to_table("apg", records=rows) == "COPY 3000")
    got = []

    async def take(data):
        got.append(data)

    check("COPY out", await conn.copy_from_query("select n from apg", output=take) == "COPY 3000")
    check("all of it", sum(chunk.count(b"\n") for chunk in got) == 3000)
    check("arrays, nulls", [tuple(r) for r in await conn.fetch("select * from apg order by n")] == rows)
    statement = await conn.prepare("select n from apg where n = any($1::int[]) order by n")
    check("prepared", [r["n"] for r in await statement.fetch([5, 7])] == [5, 7])
    await conn.executemany("update apg set t = $2 where n = $1", [(n, str(n)) for n in range(500)])
    check("executemany", await conn.fetchval("select count(*) from apg where t = n::text") == 500)
    async with conn.transaction():
        found = [r["n"] async for r in conn.cursor("select n from apg order by n", prefetch=50)]
        check("a cursor, in portions", found == list(range(3000)))
    try:
        async with conn.transaction():
            await conn.execute("delete from apg")
            await conn.execute("insert into nowhere values (1)")
    except asyncpg.UndefinedTableError:
        check("an error rolls back", await conn.fetchval("select count(*) from apg") == 3000)
    heard = asyncio.get_running_loop().create_future()
    await conn.add_listener("news", lambda *told: heard.done() or heard.set_result(told[3]))
    other = await asyncpg.connect()
    await other.execute("notify news, 'good'")
    check("LISTEN and NOTIFY", await asyncio.wait_for(heard, 20) == "good")
    await other.close()
    try:
        await conn.execute("select pg_sleep(30)", timeout=0.5)
        check("a timeout ends a query", False)
    except asyncio.TimeoutError:
        # It has sent a cancel request, and waited until the server was done.
        check("a timeout cancels the query", await asyncio.wait_for(conn.fetchval("select 1"), 10) == 1)
    await conn.close()
    async with asyncpg.create_pool(min_size=5, max_size=10) as pool:
        sums = await asyncio.gather(*(pool.fetchval("select $1::int + 1", n) for n in range(200)))
        check("a pool", sums == list(range(1, 201)))
    try:
        await asyncpg.connect(database="postgres")
        check("another database is refused", False)
    except asyncpg.InvalidAuthorizationSpecificationError as e:
        check("another database is refused with the rule", "db name" in str(e) or "database" in str(e))


asyncio.run(main())
