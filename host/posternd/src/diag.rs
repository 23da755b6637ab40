//! The diagnostic socket: `/healthz`, `/readyz`, `/metrics`, and `/status` for
//! `posternd status`. A Unix socket (0600) by default: nobody has to log in here. What changes something, or reads a
//! file for the caller (`/reload`, `/compare`), is only served there.

use crate::daemon::Parts;
use crate::reload::ConfigState;
use anyhow::Context;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use postern_agent::{AgentStatus, Health, ServiceState};
use postern_config::{Address, Config};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Peers served at once; more wait.
const PEERS: usize = 16;
const REQUEST: Duration = Duration::from_secs(10);
/// A reload compiles plugins.
const RELOAD: Duration = Duration::from_secs(300);
/// Of a request's body: a path.
const MAX_BODY: usize = 4096;

/// What `/status` says, and `posternd status` shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub cluster: String,
    pub pid: u32,
    pub since: String,
    pub config: String,
    pub config_state: ConfigState,
    pub auth: Option<String>,
    pub proxy: Option<String>,
    pub agent: Option<AgentStatus>,
    pub ready: bool,
    pub not_ready: Vec<String>,
}

/// Where the socket is: as configured, or in the data directory.
pub fn address(config: &Config) -> String {
    if config.diag.listen.is_empty() {
        return format!("unix:{}", config.data_dir.join("posternd.sock").display());
    }
    config.diag.listen.clone()
}

/// Its TCP addresses, where it has any.
pub async fn tcp_addresses(config: &Config) -> Vec<SocketAddr> {
    match config.diag.listen.parse() {
        Ok(Address::Tcp { host, port }) => tokio::net::lookup_host((host, port))
            .await
            .map(Iterator::collect)
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Makes this process record metrics.
pub fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .install_recorder()
        .context("metrics")
}

/// The running socket; dropping it closes it and what it serves.
pub struct Diag {
    serving: JoinSet<std::io::Error>,
    /// Removed at the end, where it is a Unix socket.
    path: Option<PathBuf>,
}

impl Diag {
    pub async fn start(
        listen: &str,
        parts: &Arc<Parts>,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<Self> {
        let address: Address = listen
            .parse()
            .with_context(|| format!("diag.listen {listen:?}"))?;
        let (listener, path) = match address {
            Address::Unix(path) => {
                let listener = bind_unix(&path)
                    .with_context(|| format!("diag.listen: cannot listen on {listen}"))?;
                (Listener::Unix(listener), Some(path))
            }
            Address::Tcp { .. } => {
                let listener = TcpListener::bind(listen)
                    .await
                    .with_context(|| format!("diag.listen: cannot listen on {listen}"))?;
                (Listener::Tcp(listener), None)
            }
        };
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, Arc::downgrade(parts), metrics));
        Ok(Diag { serving, path })
    }

    /// Resolves when the socket can't go on.
    pub async fn died(&mut self) -> anyhow::Error {
        match self.serving.join_next().await {
            Some(Ok(e)) => anyhow::Error::new(e).context("diag.listen"),
            Some(Err(e)) => anyhow::Error::new(e).context("diag.listen"),
            None => anyhow::anyhow!("diag.listen: stopped"),
        }
    }
}

impl Drop for Diag {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The address of the daemon with this configuration, or with this data directory where the file can't be read.
pub fn of(config: &Path, data_dir: Option<&Path>) -> anyhow::Result<String> {
    if let Some(dir) = data_dir {
        return Ok(format!("unix:{}", dir.join("posternd.sock").display()));
    }
    let config = postern_config::load(config).context(
        "the configuration on disk says where the daemon listens, and is not valid; name its data directory with --data-dir",
    )?;
    Ok(address(&config))
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Listener {
    /// Whether only this host's administrator can reach it.
    fn private(&self) -> bool {
        matches!(self, Listener::Unix(_))
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Io>> {
        Ok(match self {
            Listener::Unix(l) => Box::new(l.accept().await?.0),
            Listener::Tcp(l) => Box::new(l.accept().await?.0),
        })
    }
}

async fn accept(
    listener: Listener,
    parts: Weak<Parts>,
    metrics: PrometheusHandle,
) -> std::io::Error {
    let mut peers = JoinSet::new();
    let private = listener.private();
    // Histograms and counters want a regular sweep, or they grow between two scrapes.
    let mut sweep = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            accepted = listener.accept(), if peers.len() < PEERS => match accepted {
                Ok(stream) => {
                    let (parts, metrics) = (parts.clone(), metrics.clone());
                    let served = serve(stream, parts, metrics, private);
                    peers.spawn(tokio::time::timeout(RELOAD, served));
                }
                Err(e) => {
                    // Out of descriptors, most likely: no reason to end what is served.
                    tracing::warn!("diag.listen: cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = peers.join_next() => {}
            _ = sweep.tick() => metrics.run_upkeep(),
        }
    }
}

async fn serve(stream: Box<dyn Io>, parts: Weak<Parts>, metrics: PrometheusHandle, private: bool) {
    let service = service_fn(|request: Request<Incoming>| {
        let (parts, metrics) = (&parts, &metrics);
        async move {
            let answer = if request.method() == Method::POST {
                act(request, parts, private).await
            } else {
                answer(request.uri().path(), parts, metrics)
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(REQUEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        tracing::debug!("diagnostic request: {e}");
    }
}

/// What changes something.
async fn act(
    request: Request<Incoming>,
    parts: &Weak<Parts>,
    private: bool,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if !matches!(path.as_str(), "/reload" | "/compare") {
        return text(
            StatusCode::NOT_FOUND,
            "there are /reload and /compare to post to\n".into(),
        );
    }
    if !private {
        let why = "only served on a Unix socket; send SIGHUP instead, or set diag.listen to one\n";
        return text(StatusCode::FORBIDDEN, why.into());
    }
    let body = http_body_util::Limited::new(request.into_body(), MAX_BODY).collect();
    let Ok(Ok(body)) = tokio::time::timeout(REQUEST, body).await else {
        return text(StatusCode::BAD_REQUEST, "the body did not come\n".into());
    };
    let Some(reload) = parts.upgrade().map(|p| p.reload.clone()) else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
    };
    let outcome = match path.as_str() {
        "/reload" => reload.now().await,
        _ => {
            let file = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            reload.compare(PathBuf::from(file)).await
        }
    };
    match serde_json::to_string(&outcome) {
        Ok(json) => text(StatusCode::OK, json),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

fn answer(path: &str, parts: &Weak<Parts>, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
    let Some(parts) = parts.upgrade() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
    };
    match path {
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => match parts.not_ready() {
            reasons if reasons.is_empty() => text(StatusCode::OK, "ready\n".into()),
            reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
        },
        "/metrics" => {
            count_states(&parts);
            text(
                StatusCode::OK,
                metrics.render() + &resources_healthy(&parts),
            )
        }
        "/status" => match serde_json::to_string(&parts.status()) {
            Ok(json) => text(StatusCode::OK, json),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz, /metrics and /status\n".into(),
        ),
    }
}

/// How many services are in which state: counted when somebody looks.
fn count_states(parts: &Parts) {
    let services = parts.agent.status().map(|a| a.services).unwrap_or_default();
    for state in ServiceState::ALL {
        let n = services.iter().filter(|s| s.state == state).count();
        metrics::gauge!("postern_agent_services", "state" => state.to_string()).set(n as f64);
    }
    let invalid = parts.reload.state().invalid.is_some();
    metrics::gauge!("postern_config_invalid").set(f64::from(u8::from(invalid)));
}

/// Written here and not by the recorder, which would go on showing resources that are gone.
fn resources_healthy(parts: &Parts) -> String {
    let mut out = String::new();
    for service in parts.agent.status().map(|a| a.services).unwrap_or_default() {
        for (resource, health) in &service.health {
            let healthy = match health.state {
                Health::Unknown => continue,
                Health::Healthy => 1,
                Health::Unhealthy => 0,
            };
            if out.is_empty() {
                out += "# TYPE postern_agent_resource_healthy gauge\n";
            }
            // Both are DNS labels: nothing to escape.
            let _ = writeln!(
                out,
                "postern_agent_resource_healthy{{kind=\"{}\",resource=\"{resource}\"}} {healthy}",
                service.kind
            );
        }
    }
    out
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

/// Runs one exchange, for a command.
pub fn blocking<T>(exchange: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(exchange)
}

/// One request, for the commands that ask the daemon.
pub async fn request(
    listen: &str,
    method: Method,
    path: &str,
    body: String,
) -> anyhow::Result<String> {
    let stream: Box<dyn Io> = match listen.parse()? {
        Address::Unix(socket) => Box::new(UnixStream::connect(socket).await?),
        Address::Tcp { .. } => Box::new(TcpStream::connect(listen).await?),
    };
    let limit = if method == Method::POST {
        RELOAD
    } else {
        REQUEST
    };
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "posternd")
            .body(Full::new(Bytes::from(body)))?;
        let fetched = async {
            let body = sender.send_request(request).await?.into_body();
            anyhow::Ok(body.collect().await?.to_bytes())
        };
        let (body, _) = tokio::join!(fetched, connection);
        body
    };
    let body = tokio::time::timeout(limit, exchange).await??;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// A socket file that nobody listens on any more is replaced; a live one is not.
fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
