//! Generated from `wit/`, world `accounts`. Authors use `postern-sdk`. (A crate of its own, as those of the other worlds.)
wit_bindgen::generate!({
    path: "../../../../wit",
    world: "accounts",
    additional_derives: [PartialEq, Eq, Clone],
    pub_export_macro: true,
    export_macro_name: "export_accounts_world",
    default_bindings_module: "postern_sdk::accounts::bindings",
});
