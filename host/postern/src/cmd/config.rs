//! `postern config`

use crate::cli::Global;
use crate::failure::Failure;
use crate::profile::Home;
use crate::{cmd::ssh, openssh, out};

pub fn run(global: &Global) -> Result<(), Failure> {
    let home = Home::locate(global.home.as_deref())?;
    // The block outlives the certificate: an expired one is no reason to refuse.
    let profile = match home.load()? {
        Some(profile) => profile,
        None => home.logged_in()?,
    };
    let program = ssh::program()?;
    if global.json {
        let options = openssh::options(&home, &program, "%h")?;
        let map: serde_json::Map<_, _> = options
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.into()))
            .collect();
        return out::json(
            &serde_json::json!({ "host": format!("*.ssh.{}", profile.cluster), "options": map }),
        );
    }
    out::say(&openssh::block(
        &home,
        &profile,
        &program,
        &ssh::local_user(),
    )?)
}
