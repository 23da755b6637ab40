// An OpenID Connect issuer for tests/join_methods.rs: npm's oidc-provider, with one client that gets signed JWTs by its
// client credentials, as a deployment job would. Prints its issuer URL once it listens.
//
// At /github it answers as the token endpoint of a GitHub Actions job does (GitHub itself can't be reached by tests):
// https://docs.github.com/en/actions/reference/security/oidc
//
//   node provider.mjs <node_modules of oidc-provider> <audience>

import { createRequire } from "node:module";
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import { pathToFileURL } from "node:url";

const [, , modules, audience] = process.argv;
const entry = createRequire(modules + "/").resolve("oidc-provider");
const { Provider } = await import(pathToFileURL(entry));

function key(kid) {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...privateKey.export({ format: "jwk" }), kid, use: "sig", alg: "RS256" };
}

const server = createServer();
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "deploy-job",
      client_secret: "for-tests-on-loopback",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
    },
  ],
  jwks: { keys: [key("first")] },
  cookies: { keys: ["not-used"] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => `urn:postern:${audience}`,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: "",
        audience: resource.replace("urn:postern:", ""),
        accessTokenFormat: "jwt",
        accessTokenTTL: 300,
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
});
const openid = provider.callback();
server.on("request", async (request, response) => {
  const url = new URL(request.url, issuer);
  if (url.pathname !== "/github") return openid(request, response);
  if (request.headers.authorization !== "Bearer job-secret-5ec4e7") return response.writeHead(401).end();
  const answer = await fetch(`${issuer}/token`, {
    method: "POST",
    headers: { authorization: `Basic ${btoa("deploy-job:for-tests-on-loopback")}` },
    body: new URLSearchParams({
      grant_type: "client_credentials",
      resource: `urn:postern:${url.searchParams.get("audience")}`,
    }),
  });
  const { access_token: value } = await answer.json();
  response.setHeader("content-type", "application/json").end(JSON.stringify({ count: value.length, value }));
});
console.log(issuer);
