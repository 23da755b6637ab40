//! World `ssh`: decisions about one SSH session. `wit/ssh.wit` explains the events.

use crate::Settings;
use crate::manifest::{Manifest, impl_manifest};
use std::cell::RefCell;
use std::marker::PhantomData;

use bindings::exports::postern::plugin::manifest as generated_manifest;
use bindings::exports::postern::plugin::ssh_service as generated;
pub use generated::{Event, Pty, SshSession, Target, Verdict};
/// Generated; authors need only [`Ssh`] and what this module re-exports.
pub use postern_world_ssh as bindings;

/// One SSH session.
pub trait Ssh: Sized + 'static {
    type Settings: Settings;
    /// Who the plugin is.
    fn manifest() -> Manifest;
    /// A new session; an error refuses it, worded for the user.
    fn open(settings: Self::Settings, session: SshSession) -> Result<Self, String>;
    /// May this happen?
    fn decide(&mut self, channel: u32, event: Event) -> Verdict;
}

/// Exports an [`Ssh`] as this component.
#[macro_export]
macro_rules! export_ssh {
    ($t:ty) => {
        #[cfg(target_family = "wasm")]
        type __PosternSsh = $crate::ssh::Adapter<$t>;
        #[cfg(target_family = "wasm")]
        $crate::ssh::bindings::export_ssh_world!(__PosternSsh with_types_in $crate::ssh::bindings);
    };
}

#[doc(hidden)]
pub struct Adapter<T>(PhantomData<T>);

impl_manifest!(generated_manifest, Adapter, Ssh);

type Decide = Box<dyn FnMut(u32, Event) -> Verdict>;
thread_local! {
    // One instance serves one session, so its state may be the instance's.
    static SESSION: RefCell<Option<Decide>> = const { RefCell::new(None) };
}

impl<T: Ssh> generated::Guest for Adapter<T> {
    fn open(settings: String, session: SshSession) -> Result<(), String> {
        let settings = crate::settings::check(&settings)
            .map_err(|p| format!("settings were not validated: {p:?}"))?;
        let mut session = T::open(settings, session)?;
        SESSION.with_borrow_mut(|s| {
            *s = Some(Box::new(move |channel, event| {
                session.decide(channel, event)
            }))
        });
        Ok(())
    }

    fn decide(channel: u32, event: Event) -> Verdict {
        SESSION.with_borrow_mut(|s| match s {
            Some(decide) => decide(channel, event),
            None => Verdict::Deny("the session was not opened".into()),
        })
    }
}
