//! `postern login`

use crate::cli::Global;
use crate::failure::Failure;
use crate::profile::{Credentials, Home, Profile};
use crate::{link, out, rpc, when};
use clap::Args;
use postern_api::bootstrap;
use postern_api::v1::{
    EnrollRequest, LoginRequest, UserCredentials, login_service_client::LoginServiceClient,
};
use postern_identity::{CaKind, CaPin, ServiceKeys, TrustBundle, check_cluster_name, tls};
use std::io::{BufRead, IsTerminal, Read};
use std::time::Duration;
use zeroize::Zeroizing;

/// Log in to a cluster, or set your password with an enrolment link
///
/// Your password is sent only after the Auth Service has proved, under the CA pin, that it belongs to the cluster.
/// The pin comes with your enrolment link, or with --ca-pin, and is remembered. Without any, the cluster's CA is
/// fetched once over the proxy's publicly valid HTTPS, which trusts the proxy that once.
///
/// New keys are made at each login. Certificates are valid for as long as your roles allow (12 h by default).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  First time, with the link an administrator gave you (in quotes; it works once):
    postern login 'https://proxy.example.com/enroll?cluster=demo&user=alice&code=…&ca_pin=sha256:…'
  From another computer:
    postern login --proxy proxy.example.com:443 --user alice --ca-pin sha256:…
  Again, to the same cluster:
    postern login
  In a script:
    postern login --password-stdin < /run/secrets/password")]
pub struct LoginArgs {
    /// Enrolment link: asks for a new password, twice
    #[arg(value_name = "LINK", conflicts_with_all = ["proxy", "cluster", "user", "ca_pin"])]
    link: Option<String>,
    /// Address of the cluster's proxy [default: of the last login]
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    /// Name of the cluster [default: as the proxy says]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Your user name in the cluster [default: of the last login, else your local one]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Pin of the cluster's host CA, sha256:…; may be given several times
    #[arg(long = "ca-pin", value_name = "PIN")]
    ca_pin: Vec<CaPin>,
    /// How long the login shall last at most, e.g. 1h
    #[arg(long, value_name = "TIME", value_parser = when::parse_ttl)]
    ttl: Option<Duration>,
    /// Read the password from the first line of standard input
    #[arg(long)]
    password_stdin: bool,
}

/// Where to log in, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    proxy: String,
    cluster: Option<String>,
    user: String,
    pins: Vec<CaPin>,
    /// One-time code: the password is a new one.
    code: Option<String>,
}

pub async fn run(global: &Global, args: LoginArgs) -> Result<(), Failure> {
    let home = Home::locate(global.home.as_deref())?;
    let last = home.load()?;
    let (ttl, password_stdin) = (args.ttl, args.password_stdin);
    let mut plan = plan(args, last.as_ref(), super::ssh::local_user)?;
    let cluster = get_to_know(&mut plan).await?;

    let password = ask_password(&plan, &cluster, password_stdin)?;
    // Generated only now: nothing to throw away when the address was wrong.
    let keys = ServiceKeys::generate();
    let credentials = submit(&plan, &cluster, &password, &keys, ttl).await?;
    let trust = trust_of(&credentials, &cluster, &plan.pins)?;
    let profile = Profile {
        proxy: plan.proxy,
        user: plan.user,
        // With the CAs of today: a rotation must not lock out the next login.
        ca_pins: trust
            .of(CaKind::Host)
            .map(postern_identity::CaPublic::pin)
            .collect(),
        not_after: credentials.not_after_unix,
        roles: credentials.roles.clone(),
        logins: credentials.logins.clone(),
        cluster,
    };
    home.save(
        &profile,
        &Credentials {
            keys: &keys,
            tls_cert_pem: &credentials.tls_cert_pem,
            ssh_cert: &credentials.ssh_cert,
            trust: &trust,
        },
    )?;
    if global.json {
        out::json(&profile)
    } else {
        out::say(&greeting(&profile, when::now()))
    }
}

fn greeting(profile: &Profile, now: i64) -> String {
    let until = format!(
        "{} ({})",
        when::span(profile.not_after - now),
        when::local(profile.not_after)
    );
    format!(
        "Logged in to cluster {} as {} for {until}.\nWhat you may reach: postern ls\n",
        profile.cluster, profile.user
    )
}

/// From what was given, what the link says, and the last login.
fn plan(
    args: LoginArgs,
    last: Option<&Profile>,
    local_user: impl FnOnce() -> String,
) -> Result<Plan, Failure> {
    if let Some(text) = &args.link {
        let link = link::parse(text).map_err(Failure::usage)?;
        check_cluster_name(&link.cluster)?;
        return Ok(Plan {
            proxy: link.proxy,
            cluster: Some(link.cluster),
            user: link.user,
            pins: link.ca_pins,
            code: Some(link.code),
        });
    }
    let proxy = match (&args.proxy, last) {
        (Some(given), _) => link::address(given).map_err(Failure::usage)?,
        (None, Some(last)) => last.proxy.clone(),
        (None, None) => {
            return Err(Failure::usage(
                "which cluster? Run: postern login --proxy HOST:PORT --user NAME, or: postern login 'LINK' with the enrolment link you were given",
            ));
        }
    };
    if let Some(cluster) = &args.cluster {
        check_cluster_name(cluster)?;
    }
    // What was learned about one cluster says nothing about another.
    let same = last.filter(|last| {
        last.proxy == proxy && args.cluster.as_ref().is_none_or(|c| *c == last.cluster)
    });
    Ok(Plan {
        user: args
            .user
            .or_else(|| same.map(|last| last.user.clone()))
            .unwrap_or_else(local_user),
        cluster: args
            .cluster
            .or_else(|| same.map(|last| last.cluster.clone())),
        pins: if args.ca_pin.is_empty() {
            same.map(|last| last.ca_pins.clone()).unwrap_or_default()
        } else {
            args.ca_pin
        },
        code: None,
        proxy,
    })
}

/// Fills in what is still unknown: the CA, over public HTTPS, and the cluster's name.
async fn get_to_know(plan: &mut Plan) -> Result<String, Failure> {
    if plan.pins.is_empty() {
        let trust = bootstrap::fetch_trust(&plan.proxy)
            .await
            .map_err(|e| Failure::new(e.to_string()))?;
        check_cluster_name(&trust.cluster)?;
        if let Some(wanted) = plan.cluster.as_ref().filter(|c| **c != trust.cluster) {
            return Err(Failure::new(format!(
                "the proxy {} belongs to cluster {}, not {wanted}",
                plan.proxy, trust.cluster
            )));
        }
        plan.pins = trust
            .of(CaKind::Host)
            .map(postern_identity::CaPublic::pin)
            .collect();
        if plan.pins.is_empty() {
            return Err(Failure::new(format!(
                "the proxy {} named no host CA; give the pin with --ca-pin",
                plan.proxy
            )));
        }
        let pins: Vec<String> = plan.pins.iter().map(ToString::to_string).collect();
        eprintln!(
            "No CA pin was given, so the proxy {} is trusted this once to say which CA is the cluster's:\n  {}\nTo be sure, compare it with what an administrator tells you. It is remembered, and required from now on.",
            plan.proxy,
            pins.join("\n  ")
        );
        return Ok(trust.cluster);
    }
    match plan.cluster.clone() {
        Some(cluster) => Ok(cluster),
        None => bootstrap::cluster_name(&plan.proxy, &plan.pins)
            .await
            .map_err(|e| Failure::new(e.to_string())),
    }
}

fn ask_password(plan: &Plan, cluster: &str, stdin: bool) -> Result<Zeroizing<String>, Failure> {
    let empty = || Failure::usage("the password is empty");
    if stdin {
        let mut line = Zeroizing::new(String::new());
        let read = std::io::stdin().lock().take(4096).read_line(&mut line);
        read.map_err(|e| {
            Failure::new(format!("cannot read the password from standard input: {e}"))
        })?;
        let password = Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned());
        return if password.is_empty() {
            Err(empty())
        } else {
            Ok(password)
        };
    }
    let prompt = |text: String| {
        rpassword::prompt_password(text)
            .map(Zeroizing::new)
            .map_err(|e| {
                if std::io::stdin().is_terminal() {
                    Failure::new(format!("cannot ask for the password: {e}"))
                } else {
                    Failure::new(
                        "there is no terminal to ask for the password on; use --password-stdin",
                    )
                }
            })
    };
    let who = format!("{}@{cluster}", plan.user);
    let password = prompt(if plan.code.is_some() {
        format!("New password for {who}: ")
    } else {
        format!("Password for {who}: ")
    })?;
    if password.is_empty() {
        return Err(empty());
    }
    if plan.code.is_some() && *prompt("The same again: ".to_owned())? != *password {
        return Err(Failure::new(
            "the two passwords are not the same; the link is still good, run this again",
        ));
    }
    Ok(password)
}

async fn submit(
    plan: &Plan,
    cluster: &str,
    password: &str,
    keys: &ServiceKeys,
    ttl: Option<Duration>,
) -> Result<UserCredentials, Failure> {
    let config =
        tls::client_pinned(&plan.pins, rpc::ALPN).map_err(|e| Failure::new(e.to_string()))?;
    let mut client =
        LoginServiceClient::new(postern_api::connect_lazy(&plan.proxy, cluster, config));
    let via = rpc::via(&plan.proxy);
    let ttl_seconds = ttl.map_or(0, |t| u32::try_from(t.as_secs()).unwrap_or(u32::MAX));
    let (user, spki, ssh_public_key) = (plan.user.clone(), keys.spki(), keys.ssh_public());
    match &plan.code {
        Some(code) => {
            let request = EnrollRequest {
                user,
                code: code.clone(),
                new_password: password.to_owned(),
                spki,
                ssh_public_key,
                ttl_seconds,
            };
            rpc::call(&via, client.enroll(request)).await
        }
        None => {
            rpc::call(
                &via,
                client.login(LoginRequest {
                    user,
                    password: password.to_owned(),
                    spki,
                    ssh_public_key,
                    ttl_seconds,
                }),
            )
            .await
        }
    }
}

/// The CAs that Auth handed out, which must be those of this cluster, one of the pinned among them.
fn trust_of(
    credentials: &UserCredentials,
    cluster: &str,
    pins: &[CaPin],
) -> Result<TrustBundle, Failure> {
    let trust: TrustBundle = serde_json::from_str(&credentials.trust_json).map_err(|e| {
        Failure::new(format!(
            "Auth's answer cannot be read ({e}); is this postern older than the cluster?"
        ))
    })?;
    if trust.cluster != cluster {
        return Err(Failure::new(format!(
            "Auth answered for cluster {}, not {cluster}",
            trust.cluster
        )));
    }
    if !trust.of(CaKind::Host).any(|ca| pins.contains(&ca.pin())) {
        return Err(Failure::new(
            "the CAs that Auth answered with do not include the pinned one; nothing was stored; tell your administrator",
        ));
    }
    Ok(trust)
}

#[cfg(test)]
mod tests;
