//! `postern status`

use crate::cli::Global;
use crate::failure::Failure;
use crate::profile::{Home, Profile};
use crate::{out, rpc, when};
use postern_api::v1::{StatusRequest, StatusResponse, user_service_client::UserServiceClient};
use serde::Serialize;

#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    profile: &'a Profile,
    valid: bool,
    /// Whether Auth answered just now.
    auth_reachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_error: Option<String>,
}

pub async fn run(global: &Global) -> Result<(), Failure> {
    let home = Home::locate(global.home.as_deref())?;
    let Some(mut profile) = home.load()? else {
        return home.logged_in().map(|_| ());
    };
    let now = when::now();
    let valid = profile.check_valid(now);
    let auth = match &valid {
        Ok(()) => ask(&home, &profile).await,
        Err(why) => Err(why.clone()),
    };
    if let Ok(answer) = &auth {
        // Roles may have changed since the login.
        profile.roles.clone_from(&answer.roles);
    }
    if global.json {
        let auth_error = auth.as_ref().err().map(ToString::to_string);
        out::json(&Status {
            profile: &profile,
            valid: valid.is_ok(),
            auth_reachable: auth.is_ok(),
            auth_error,
        })?;
    } else {
        out::say(&text(&profile, &home, now, auth.as_ref().err()))?;
    }
    // For scripts: `postern status && …`
    valid
}

async fn ask(home: &Home, profile: &Profile) -> Result<StatusResponse, Failure> {
    let mut client = UserServiceClient::new(rpc::user_channel(home, profile)?);
    rpc::call(&rpc::via(&profile.proxy), client.status(StatusRequest {})).await
}

fn text(profile: &Profile, home: &Home, now: i64, auth: Option<&Failure>) -> String {
    let valid = profile.not_after > now;
    let certificate = match profile.not_after {
        0 => "none (logged out)".to_owned(),
        t if valid => format!(
            "valid for {}, until {}",
            when::span(t - now),
            when::local(t)
        ),
        t => format!("expired {} ({})", when::relative(now, t), when::local(t)),
    };
    let mut facts = vec![
        ("Cluster", profile.cluster.clone()),
        ("Proxy", profile.proxy.clone()),
        ("User", profile.user.clone()),
        ("Roles", out::list(&profile.roles)),
        ("Logins", out::list(&profile.logins)),
        ("Certificate", certificate),
        (
            "CA pin",
            out::list(
                &profile
                    .ca_pins
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
            ),
        ),
        ("Profile", home.dir().display().to_string()),
    ];
    if valid {
        facts.push((
            "Auth",
            auth.map_or_else(|| "answers".to_owned(), ToString::to_string),
        ));
    }
    out::facts(&facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_status_reads_well() {
        let home = Home::locate(Some(Path::new("/h/.postern"))).unwrap();
        let profile = Profile {
            cluster: "demo".into(),
            proxy: "p:443".into(),
            user: "alice".into(),
            ca_pins: vec![],
            not_after: 1000 + 3600 * 11,
            roles: vec!["access".into(), "dba".into()],
            logins: vec![],
        };
        let shown = text(
            &profile,
            &home,
            1000,
            Some(&Failure::new("cannot reach Auth")),
        );
        let valid = format!(
            "Certificate  valid for 11 h, until {}",
            when::local(profile.not_after)
        );
        let want = [
            "Cluster      demo",
            "Proxy        p:443",
            "User         alice",
            "Roles        access, dba",
            "Logins       -",
            &valid,
            "CA pin       -",
            "Profile      /h/.postern",
            "Auth         cannot reach Auth",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), want);
        let later = text(&profile, &home, profile.not_after + 7200, None);
        assert!(
            later.contains("Certificate  expired 2 h ago (") && !later.contains("Auth  "),
            "{later}"
        );
    }
}
