// node-postgres, which speaks the protocol by itself, with its cursor and COPY packages. The connection stands in PG* variables;
// DIRECT=1 says that they lead to Postern without a helper, over TLS. NODE_MODULES is where npm put the packages.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pipeline } from "node:stream/promises";
import { Readable } from "node:stream";

const require = createRequire(process.env.NODE_MODULES + "/");
const pg = require("pg");
const Cursor = require("pg-cursor");
const { from, to } = require("pg-copy-streams");

function check(what, condition) {
  if (!condition) throw new Error(`node-postgres: not so: ${what}`);
  console.log(`node-postgres: ${what}`);
}

const env = process.env;
let options = { host: env.PGHOST, port: Number(env.PGPORT), ssl: false };
if (env.DIRECT) {
  // It has no hostaddr: the name goes into TLS alone.
  const file = (name) => readFileSync(env[name], "utf8");
  const ssl = {
    servername: env.PGHOST,
    ca: file("PGSSLROOTCERT"),
    cert: file("PGSSLCERT"),
    key: file("PGSSLKEY"),
    checkServerIdentity: (_, cert) => {
      check("the certificate is the resource's", cert.subjectaltname.includes(env.PGHOST));
    },
  };
  options = { ...options, host: env.PGHOSTADDR, ssl };
}

async function everything(options) {
  const client = new pg.Client(options);
  await client.connect();
  const value = async (sql, values) => Object.values((await client.query(sql, values)).rows[0])[0];
  check("is let in", (await value("select current_user")) === "app");
  await client.query("drop table if exists njs; create table njs (n int primary key, t text)");
  await pipeline(
    Readable.from((function* () { for (let n = 0; n < 5000; n++) yield `${n}\tü${n}\n`; })()),
    client.query(from("copy njs from stdin")),
  );
  let lines = 0;
  for await (const chunk of client.query(to("copy njs to stdout"))) lines += chunk.toString("latin1").split("\n").length - 1;
  check("COPY in and out", lines === 5000);
  const named = { name: "by-number", text: "select t from njs where n = $1" };
  for (const n of [1, 2, 3]) {
    const { rows } = await client.query({ ...named, values: [n] });
    check(`prepared, ${n}`, rows[0].t === `ü${n}`);
  }
  const cursor = client.query(new Cursor("select n from njs order by n"));
  let read = 0;
  for (let rows = await cursor.read(700); rows.length > 0; rows = await cursor.read(700)) read += rows.length;
  await cursor.close();
  check("a cursor, in portions", read === 5000);
  const told = new Promise((done) => client.once("notification", done));
  await client.query("listen news");
  const other = new pg.Client(options);
  await other.connect();
  await other.query("select pg_notify('news', 'good')");
  check("LISTEN and NOTIFY", (await told).payload === "good");
  await other.end();
  const both = await client.query("select 1 as a; select 2 as b");
  check("two queries in one", both[0].rows[0].a === 1 && both[1].rows[0].b === 2);
  const code = await client.query("select 1 / 0").then(() => "none", (e) => e.code);
  check("errors with their code", code === "22012" && (await value("select 5")) === 5);
  const big = "x".repeat(3_000_000);
  check("3 MB there and back", (await value("select $1::text", [big])) === big);
  await client.end();

  const pool = new pg.Pool({ ...options, max: 5 });
  const sums = await Promise.all(Array.from({ length: 100 }, (_, n) => pool.query("select $1::int + 1 as s", [n])));
  check("a pool", sums.every((r, n) => r.rows[0].s === n + 1));
  await pool.end();

  const stranger = new pg.Client({ ...options, user: "other" });
  const why = await stranger.connect().then(() => ({}), (e) => e);
  check("another account is refused with the rule", why.code === "28000" && /no role of alice/.test(why.message));
}

await everything(options);
if (env.DIRECT) await everything({ ...options, sslnegotiation: "direct" });
