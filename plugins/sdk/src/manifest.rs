//! What a plugin says of itself, in a form that is pleasant to write.

use crate::Endpoint;

/// See `wit/types.wit`, `manifest.description`.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    pub kind: &'static str,
    pub protocol: &'static str,
    pub version: &'static str,
    pub summary: &'static str,
    /// (name, help)
    pub principals: &'static [(&'static str, &'static str)],
    /// JSON Schema, usually `include_str!("settings.schema.json")`.
    pub settings_schema: &'static str,
    pub wants: Wants,
}

/// What it may ask of the host; it gets nothing it does not name.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    pub endpoints: &'static [Endpoint],
    pub start_tls: bool,
    pub challenges: &'static [&'static str],
    pub send_secret: bool,
    pub body_filters: bool,
}

/// Implements the generated `manifest` interface of one world for an adapter type.
macro_rules! impl_manifest {
    ($module:ident, $adapter:ident, $bound:ident) => {
        impl<T: $bound> $module::Guest for $adapter<T> {
            fn describe() -> $module::Description {
                let m = T::manifest();
                $module::Description {
                    kind: m.kind.into(),
                    protocol: m.protocol.into(),
                    version: m.version.into(),
                    summary: m.summary.into(),
                    principals: m
                        .principals
                        .iter()
                        .map(|(name, help)| $module::Principal {
                            name: (*name).into(),
                            help: (*help).into(),
                        })
                        .collect(),
                    settings_schema: m.settings_schema.into(),
                    wants: $module::Wants {
                        endpoints: m.wants.endpoints.to_vec(),
                        start_tls: m.wants.start_tls,
                        challenges: m.wants.challenges.iter().map(|c| (*c).into()).collect(),
                        send_secret: m.wants.send_secret,
                        body_filters: m.wants.body_filters,
                    },
                }
            }

            fn validate(settings: String) -> Result<(), Vec<$module::Problem>> {
                $crate::settings::check::<T::Settings>(&settings)
                    .map(|_| ())
                    .map_err(|problems| {
                        problems
                            .into_iter()
                            .map(|p| $module::Problem {
                                path: p.path,
                                message: p.message,
                            })
                            .collect()
                    })
            }
        }
    };
}
pub(crate) use impl_manifest;
