//! An issuer of ID tokens: a real HTTP server on a loopback port, with keys made here.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::Ed25519KeyPair;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::CLUSTER;
use crate::time;

/// A key with its id.
pub struct Key {
    pub id: &'static str,
    signing: EncodingKey,
}

impl Key {
    pub fn new(id: &'static str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
        Key {
            id,
            signing: EncodingKey::from_ed_der(pkcs8.as_ref()),
        }
    }

    pub fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.signing, Algorithm::EdDSA).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = json!(self.id);
        jwk
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = Header {
            kid: Some(self.id.into()),
            ..Header::new(Algorithm::EdDSA)
        };
        encode(&header, claims, &self.signing).unwrap()
    }
}

/// See the module.
pub struct Issuer {
    pub url: String,
    /// What it publishes.
    pub keys: Arc<Mutex<Vec<Value>>>,
    /// What it calls itself in its discovery document; else its URL.
    pub says: Arc<Mutex<Option<String>>>,
    pub fetches: Arc<AtomicUsize>,
    _server: AbortOnDropHandle<()>,
}

impl Issuer {
    pub async fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(keys.iter().map(|k| k.jwk()).collect()));
        let says = Arc::new(Mutex::new(None));
        let fetches = Arc::new(AtomicUsize::new(0));
        let answer = {
            let (url, keys, says, fetches) =
                (url.clone(), keys.clone(), says.clone(), fetches.clone());
            move |request: Request<Incoming>| answer(&request, &url, &keys, &says, &fetches)
        };
        let serve = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                let service = service_fn(move |r| {
                    let answered = answer(r);
                    async move { Ok::<_, Infallible>(answered) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        };
        Issuer {
            url,
            keys,
            says,
            fetches,
            _server: AbortOnDropHandle::new(tokio::spawn(serve)),
        }
    }

    /// Claims of a good token.
    pub fn claims(&self) -> Value {
        json!({
            "iss": self.url, "aud": CLUSTER, "sub": "job:1", "jti": hex::encode(rand::random::<[u8; 8]>()),
            "iat": time::now(), "exp": time::now() + 300,
        })
    }

    pub fn fetched(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

fn answer(
    request: &Request<Incoming>,
    url: &str,
    keys: &Mutex<Vec<Value>>,
    says: &Mutex<Option<String>>,
    fetches: &AtomicUsize,
) -> Response<Full<Bytes>> {
    let body = match request.uri().path() {
        "/.well-known/openid-configuration" => {
            let says = says.lock().unwrap().clone();
            json!({ "issuer": says.as_deref().unwrap_or(url), "jwks_uri": format!("{url}/jwks") })
        }
        "/jwks" => {
            fetches.fetch_add(1, Ordering::SeqCst);
            json!({ "keys": *keys.lock().unwrap() })
        }
        _ => {
            let mut nothing = Response::new(Full::default());
            *nothing.status_mut() = StatusCode::NOT_FOUND;
            return nothing;
        }
    };
    Response::new(Full::from(body.to_string()))
}
