//! Lines for the operator. Never log what users type.

pub use postern_world_imports::postern::plugin::log::Level;

/// Writes one line to the host's log (natively: to stderr).
pub fn write(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    postern_world_imports::postern::plugin::log::write(level, message);
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message}");
}

/// `info!("text {}", value)`
#[macro_export]
macro_rules! info { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Info, &format!($($t)*)) } }
/// `warn!("text {}", value)`
#[macro_export]
macro_rules! warning { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Warn, &format!($($t)*)) } }
/// `debug!("text {}", value)`
#[macro_export]
macro_rules! debug { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Debug, &format!($($t)*)) } }
