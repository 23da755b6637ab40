//! Accounts made for users: read `wit/accounts.wit`. A codec that can do it implements [`Codec::on_task`], announces the
//! endpoint `admin`, and says `export_accounts!()` beside `export_codec!`.
//!
//! [`Codec::on_task`]: crate::codec::Codec::on_task

use std::cell::RefCell;

use bindings::exports::postern::plugin::accounts_service as generated;
pub use generated::{Account, Administrator, Afterwards, Departure, Task};
/// Generated; authors need only what this module re-exports.
pub use postern_world_accounts as bindings;

thread_local! {
    // An instance has one connection, and a task comes before its machine is made.
    static BEGUN: RefCell<Option<(Administrator, Task)>> = const { RefCell::new(None) };
}

/// What this instance is for, if it is for a task.
pub(crate) fn begun() -> Option<(Administrator, Task)> {
    BEGUN.take()
}

/// Exports `accounts-service` of this component.
#[macro_export]
macro_rules! export_accounts {
    () => {
        #[cfg(target_family = "wasm")]
        $crate::accounts::bindings::export_accounts_world!(__PosternAccounts with_types_in $crate::accounts::bindings);
        #[cfg(target_family = "wasm")]
        type __PosternAccounts = $crate::accounts::Adapter;
    };
}

#[doc(hidden)]
pub struct Adapter;

impl generated::Guest for Adapter {
    fn begin(admin: Administrator, what: Task) {
        BEGUN.set(Some((admin, what)));
    }
}
