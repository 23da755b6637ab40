//! placeholder

use crate::{
    Gate, GuardSource, HostIdentity, SessionContext, SessionSummary, SshdError, SshdOptions,
};
use postern_audit::Emitter;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Serves one SSH connection until it ends.
///
/// `drain`: once cancelled, no new channel opens and the connection ends with its last one. Dropping the future ends it at once:
/// processes get SIGHUP.
#[allow(clippy::too_many_arguments)]
pub async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: HostIdentity,
    opts: Arc<SshdOptions>,
    gate: Arc<dyn Gate>,
    plugin: impl GuardSource,
    audit: Emitter,
    ctx: SessionContext,
    drain: CancellationToken,
) -> Result<SessionSummary, SshdError> {
    let _ = (io, host, opts, gate, plugin, audit, ctx, drain);
    Ok(SessionSummary::default())
}
