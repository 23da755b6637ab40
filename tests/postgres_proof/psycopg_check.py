"""psycopg 3 with the libpq it brings: what a program does with it. The connection stands in PG* variables; DIRECT=1 says that
they lead to Postern without a helper, over TLS."""

import os
import threading
import time

import psycopg
from psycopg import errors, pq

MORE = {}


def connect(**options):
    return psycopg.connect(**MORE, **options)


def check(what, condition):
    if not condition:
        raise SystemExit(f"psycopg: not so: {what}")
    print(f"psycopg: {what}")


def cancelled(how):
    with connect() as conn:
        timer = threading.Timer(0.5, getattr(conn, how))
        timer.start()
        began = time.monotonic()
        try:
            conn.execute("select pg_sleep(30)")
            return False
        except errors.QueryCanceled:
            return time.monotonic() - began < 20
        finally:
            timer.join()


def everything():
    with connect(autocommit=True) as conn:
        check(f"libpq {pq.version()} is let in", conn.execute("select current_user").fetchone() == ("app",))
        conn.execute("drop table if exists pg3")
        conn.execute("create table pg3 (n int primary key, t text, b bytea)")

        rows = [(n, "ä" * (n % 7), os.urandom(n % 50)) for n in range(2000)]
        with conn.cursor() as cur:
            with cur.copy("copy pg3 from stdin") as copy:
                for row in rows:
                    copy.write_row(row)
            with cur.copy("copy pg3 to stdout (format binary)") as copy:
                copy.set_types(["int4", "text", "bytea"])
                check("COPY in and out", sorted(copy.rows()) == rows)
            try:
                with cur.copy("copy pg3 from stdin") as copy:
                    copy.write_row((5000, "x", b""))
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            check("a COPY given up leaves the session usable", cur.execute("select 1").fetchone() == (1,))
            check("and nothing behind", cur.execute("select count(*) from pg3").fetchone() == (2000,))

        with conn.pipeline() as pipe, conn.cursor() as cur:
            cursors = [conn.execute("select %s::int * 2", (n,)) for n in range(300)]
            pipe.sync()
            check("300 queries in a pipeline", [c.fetchone()[0] for c in cursors] == [2 * n for n in range(300)])
        try:
            with conn.pipeline():
                conn.execute("select 1 / 0")
                conn.execute("select 2")
        except errors.DivisionByZero:
            pass
        check("an error in a pipeline ends no session", conn.execute("select 3").fetchone() == (3,))

        for binary in (False, True):
            got = conn.execute("select %s::text, %s::bytea, %s::int8", ("x", b"\0\1", 2**40), binary=binary, prepare=True)
            check(f"prepared, binary={binary}", got.fetchone() == ("x", b"\0\1", 2**40))

        with conn.transaction(), conn.cursor("far") as cur:
            cur.itersize = 100
            cur.execute("select n from pg3 order by n")
            check("a cursor of the server's, in portions", [n for (n,) in cur] == list(range(2000)))
            cur.scroll(0, mode="absolute")
            check("and back", cur.fetchone() == (0,))

        with connect(autocommit=True) as other:
            conn.execute("listen news")
            other.execute("select pg_notify('news', 'good')")
            told = list(conn.notifies(timeout=20, stop_after=1))
            check("LISTEN and NOTIFY", [(t.channel, t.payload) for t in told] == [("news", "good")])

        with conn.transaction():
            content = os.urandom(300_000)
            (oid,) = conn.execute("select lo_from_bytea(0, %s)", (content,)).fetchone()
            check("a large object", conn.execute("select lo_get(%s)", (oid,)).fetchone() == (content,))
            conn.execute("select lo_unlink(%s)", (oid,))

        notices = []
        conn.add_notice_handler(lambda d: notices.append((d.severity, d.message_primary)))
        conn.execute("do $$ begin raise notice 'hear'; end $$")
        check("notices", notices == [("NOTICE", "hear")])
        try:
            conn.execute("insert into pg3 values (1)")
            check("errors are told", False)
        except errors.UniqueViolation as e:
            check("errors as the server words them", e.diag.constraint_name == "pg3_pkey" and e.diag.table_name == "pg3")
        big = "x" * 5_000_000
        check("5 MB there and back", conn.execute("select %s::text", (big,)).fetchone() == (big,))

    try:
        connect(user="other")
        check("another account is refused", False)
    except psycopg.OperationalError as e:
        check("another account is refused with the rule", "no role of alice (dba) allows db user" in str(e))
    check("cancelled by a request in plaintext", cancelled("cancel"))
    check("cancelled by libpq 17's request", cancelled("cancel_safe"))


everything()
if pq.version() >= 180000:
    # The server knows 3.0 alone, and says so.
    MORE = {"max_protocol_version": "latest"}
    check("protocol 3.2 is asked for", connect().execute("select 1").fetchone() == (1,))
if os.environ.get("DIRECT"):
    check("libpq is new enough for direct TLS", pq.version() >= 170000)
    MORE = {"sslnegotiation": "direct"}
    everything()
