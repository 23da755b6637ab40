//! What OpenSSH is told: the options that make it go through us, use the user's certificate, and
//! trust the cluster's host CA and nothing else. `postern ssh` passes them as `-o`, `postern
//! config` prints them as a block.

use crate::failure::Failure;
use crate::profile::{Home, Profile};
use std::path::Path;

/// Keyword and value, as in ssh_config(5).
pub type Options = Vec<(&'static str, String)>;

/// Options for one host (`target` is its full name), or for all of the cluster (`%h`).
/// `program` is this executable; `home` is named on its command line unless it is the default.
pub fn options(home: &Home, program: &Path, target: &str) -> Result<Options, Failure> {
    let mut command = shell_word(path_text(program)?);
    // Without this, `ssh` started from an environment without POSTERN_HOME would use another profile.
    if Home::locate(None).as_ref() != Ok(home) {
        command.push_str(" --home ");
        command.push_str(&shell_word(path_text(home.dir())?));
    }
    // In ProxyCommand, `%` begins a token.
    let command = format!("{} proxy --stdio {target}", command.replace('%', "%%"));
    Ok(vec![
        ("ProxyCommand", command),
        ("IdentityFile", config_path(&home.ssh_key())?),
        ("CertificateFile", config_path(&home.ssh_cert())?),
        ("IdentitiesOnly", "yes".into()),
        ("PreferredAuthentications", "publickey".into()),
        ("UserKnownHostsFile", config_path(&home.known_hosts())?),
        ("GlobalKnownHostsFile", "/dev/null".into()),
        ("StrictHostKeyChecking", "yes".into()),
        // Certificates only: a bare host key is never trusted, nor asked about.
        (
            "HostKeyAlgorithms",
            "ssh-ed25519-cert-v01@openssh.com".into(),
        ),
        ("UpdateHostKeys", "no".into()),
        ("CheckHostIP", "no".into()),
        // OpenSSH would choose ChaCha20 first, which is slower wherever the processor has AES.
        (
            "Ciphers",
            "^aes256-gcm@openssh.com,aes128-gcm@openssh.com".into(),
        ),
    ])
}

/// A block for `~/.ssh/config`.
pub fn block(
    home: &Home,
    profile: &Profile,
    program: &Path,
    local_user: &str,
) -> Result<String, Failure> {
    let mut text = format!(
        "# Postern, cluster {}. Printed by: postern config\nHost *.ssh.{}\n",
        profile.cluster, profile.cluster
    );
    if let Login::Is(login) = default_login(&profile.logins, local_user) {
        text.push_str(&format!("    User {login}\n"));
    }
    for (key, value) in options(home, program, "%h")? {
        text.push_str(&format!("    {key} {value}\n"));
    }
    Ok(text)
}

/// As whom to log in where the user did not say.
#[derive(Debug, PartialEq, Eq)]
pub enum Login<'a> {
    /// OpenSSH's own choice (the local user, or what its configuration says) is good.
    Own,
    /// The only login there is.
    Is(&'a str),
    /// Several, none of them the local user's name.
    Ambiguous,
}

/// `logins`: what the user's certificate is good for.
pub fn default_login<'a>(logins: &'a [String], local_user: &str) -> Login<'a> {
    match logins {
        _ if logins.iter().any(|l| l == local_user) => Login::Own,
        [] => Login::Own,
        [only] => Login::Is(only),
        _ => Login::Ambiguous,
    }
}

fn path_text(path: &Path) -> Result<&str, Failure> {
    match path.to_str() {
        Some(text) if !text.chars().any(|c| c.is_control() || c == '"') => Ok(text),
        _ => Err(Failure::new(format!(
            "OpenSSH cannot be told about the path {path:?}: it has a quote or a control character; choose another place with POSTERN_HOME"
        ))),
    }
}

/// A file name in ssh_config: quoted, `%` doubled (it begins a token).
fn config_path(path: &Path) -> Result<String, Failure> {
    let text = path_text(path)?;
    if text.contains("${") {
        return Err(Failure::new(format!(
            "OpenSSH would expand the variable in the path {text}; choose another place with POSTERN_HOME"
        )));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// One word for the shell that runs ProxyCommand.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;
