//! `posternd join-key`: the key pair by which a host joins again after its data directory was lost.

use crate::args::JoinKeyArgs;
use postern_identity::HostKey;

pub fn run(args: &JoinKeyArgs) -> anyhow::Result<()> {
    // The same form, and the same care about who can read it, as the host's own key.
    println!("{}", HostKey::load_or_create(&args.file)?.openssh_public());
    Ok(())
}
