//! `postern db certs sign`: what a database needs to be met by agents.

use crate::admin::{self, AdminArgs, VIA};
use crate::cli::Global;
use crate::failure::Failure;
use crate::{out, rpc, when};
use clap::Args;
use postern_api::v1::SignDbServerRequest;
use postern_identity::{ServiceKeys, store};
use std::path::{Path, PathBuf};

/// Make key and certificate for a database server
///
/// Writes server.key, server.crt (of the cluster's db-server CA, which agents trust) and ca.crt (the db-client CA,
/// whose certificates agents show for accounts). For PostgreSQL, in postgresql.conf: ssl = on, ssl_key_file,
/// ssl_cert_file, and ssl_ca_file = ca.crt; in pg_hba.conf: hostssl all all ADDRESS cert
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  postern db certs sign --host db.internal,10.0.0.5 --out /etc/postgresql/tls"
)]
pub struct SignArgs {
    /// Names and addresses by which agents dial the server
    #[arg(long, value_name = "HOST", required = true, value_delimiter = ',')]
    host: Vec<String>,
    /// Directory for the three files; made where it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the certificate lives
    #[arg(long, value_name = "DURATION", default_value = "90days")]
    ttl: humantime::Duration,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

pub async fn sign(global: &Global, admin: &AdminArgs, args: SignArgs) -> Result<(), Failure> {
    let paths = ["server.key", "server.crt", "ca.crt"].map(|name| args.out.join(name));
    if let Some(there) = paths.iter().find(|p| p.exists()).filter(|_| !args.force) {
        return Err(Failure::new(format!(
            "{} is there already; replace it with --force, or choose another directory",
            there.display()
        )));
    }
    let mut client = admin::connect(admin)?;
    let keys = ServiceKeys::generate();
    let request = SignDbServerRequest {
        spki: keys.spki(),
        names: args.host.clone(),
        ttl_seconds: args.ttl.as_secs(),
    };
    let signed = rpc::call(VIA, client.sign_db_server(request)).await?;
    std::fs::create_dir_all(&args.out).map_err(|e| cannot(&args.out, &e))?;
    let [key, certificate, ca] = &paths;
    store::write_secret(key, keys.x509_key_pem.as_bytes())?;
    for (path, pem) in [
        (certificate, &signed.certificate_pem),
        (ca, &signed.client_ca_pem),
    ] {
        std::fs::write(path, pem).map_err(|e| cannot(path, &e))?;
    }
    if global.json {
        return out::json(&serde_json::json!({
            "key": key, "certificate": certificate, "client_ca": ca, "not_after": signed.not_after_unix,
        }));
    }
    out::say(&format!(
        "Wrote {}, {} and {}. The certificate is good until {}. The key must belong to the user that the database runs as: chown postgres {}",
        key.display(),
        certificate.display(),
        ca.display(),
        when::local(signed.not_after_unix),
        key.display()
    ))
}

fn cannot(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {e}", path.display()))
}
