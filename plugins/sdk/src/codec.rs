//! World `codec`: the bytes of one connection. Read `wit/codec.wit` for what each step does and the three rules.

use crate::accounts::{self, Administrator, Task};
use crate::manifest::{Manifest, impl_manifest};
use crate::{Settings, Side};
use std::cell::RefCell;
use std::marker::PhantomData;

use bindings::exports::postern::plugin::codec_service as generated;
use bindings::exports::postern::plugin::manifest as generated_manifest;
pub use generated::{Challenge, SecretMessage, Step, StepResult, TemplatePart};
/// Generated; authors need only [`Codec`] and what this module re-exports.
pub use postern_world_codec as bindings;

/// One connection of a protocol.
pub trait Codec: Sized + 'static {
    type Settings: Settings;
    /// Who the plugin is.
    fn manifest() -> Manifest;
    /// A new connection.
    fn new(settings: Self::Settings) -> Self;
    /// It is there.
    fn on_open(&mut self) -> Vec<Step> {
        Vec::new()
    }
    /// In the place of [`Codec::on_open`], where there is no connection but a task (see [`crate::accounts`]).
    fn on_task(&mut self, admin: Administrator, task: Task) -> Vec<Step> {
        let _ = (admin, task);
        vec![Step::Close(Some("this plugin makes no accounts".into()))]
    }
    /// All bytes of this side that are not consumed yet.
    fn on_input(&mut self, side: Side, data: &[u8]) -> Vec<Step>;
    /// The answer to the last question.
    fn on_result(&mut self, result: StepResult) -> Vec<Step>;
    /// This side will send nothing more.
    fn on_close(&mut self, side: Side) -> Vec<Step> {
        let _ = side;
        Vec::new()
    }
}

/// Exports a [`Codec`] as this component.
#[macro_export]
macro_rules! export_codec {
    ($t:ty) => {
        #[cfg(target_family = "wasm")]
        type __PosternCodec = $crate::codec::Adapter<$t>;
        #[cfg(target_family = "wasm")]
        $crate::codec::bindings::export_codec_world!(__PosternCodec with_types_in $crate::codec::bindings);
    };
}

#[doc(hidden)]
pub struct Adapter<T>(PhantomData<T>);
#[doc(hidden)]
pub struct Machine<T>(RefCell<T>);

impl_manifest!(generated_manifest, Adapter, Codec);

impl<T: Codec> generated::Guest for Adapter<T> {
    type Machine = Machine<T>;
}

impl<T: Codec> generated::GuestMachine for Machine<T> {
    fn new(settings: String) -> Self {
        match crate::settings::check(&settings) {
            Ok(s) => Machine(RefCell::new(T::new(s))),
            // The host has validated them; a host that has not gets a trap with words.
            Err(p) => panic!("settings were not validated: {p:?}"),
        }
    }
    fn on_open(&self) -> Vec<Step> {
        let mut codec = self.0.borrow_mut();
        match accounts::begun() {
            Some((admin, task)) => codec.on_task(admin, task),
            None => codec.on_open(),
        }
    }
    fn on_input(&self, s: Side, data: Vec<u8>) -> Vec<Step> {
        self.0.borrow_mut().on_input(s, &data)
    }
    fn on_result(&self, r: StepResult) -> Vec<Step> {
        self.0.borrow_mut().on_result(r)
    }
    fn on_close(&self, s: Side) -> Vec<Step> {
        self.0.borrow_mut().on_close(s)
    }
}
