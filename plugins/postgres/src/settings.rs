//! The settings of a service with plugin `postgres`: `[services.<name>.settings]`.

use postern_sdk::Settings;
use serde::Deserialize;

/// See `settings.schema.json`, which says the same to editors; a test keeps the two together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// Whether the server may be spoken to without TLS.
    pub upstream_tls: UpstreamTls,
    /// Whether query events may carry the values that are bound to `$1`, `$2`, …; the roles decide too.
    pub parameters: bool,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        PostgresSettings {
            upstream_tls: UpstreamTls::Require,
            parameters: true,
        }
    }
}

/// TLS towards the server: it is always asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamTls {
    /// A server that offers none is refused.
    #[default]
    Require,
    /// A server that offers none is spoken to all the same: for Unix sockets, where PostgreSQL has no TLS.
    AllowPlain,
}

impl Settings for PostgresSettings {}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_sdk::settings::check;

    #[test]
    fn what_is_wrong_is_named() {
        let e = check::<PostgresSettings>(r#"{"upstream_tls":"prefer"}"#).unwrap_err();
        assert_eq!(e[0].path, "upstream_tls");
        assert!(e[0].message.contains("allow-plain"), "{e:?}");
    }

    #[test]
    fn the_schema_names_the_same_settings_and_defaults() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("settings.schema.json")).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let defaults: serde_json::Map<_, _> = properties
            .iter()
            .map(|(k, v)| (k.clone(), v["default"].clone()))
            .collect();
        let all = serde_json::Value::Object(defaults).to_string();
        assert_eq!(
            check::<PostgresSettings>(&all),
            Ok(PostgresSettings::default())
        );
        assert_eq!(properties.len(), 2);
        let plain = PostgresSettings {
            upstream_tls: UpstreamTls::AllowPlain,
            parameters: false,
        };
        let said = check(r#"{"upstream_tls":"allow-plain","parameters":false}"#);
        assert_eq!(said, Ok(plain));
    }
}
