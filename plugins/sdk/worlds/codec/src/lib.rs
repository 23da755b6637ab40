//! Generated from `wit/`, world `codec`. Authors use `postern-sdk`. (A crate of its own, because the macros that export a
//! component's interfaces are named after the interface, and all worlds export `manifest`.)
wit_bindgen::generate!({
    path: "../../../../wit",
    world: "codec",
    additional_derives: [PartialEq, Eq, Clone],
    with: {
        "postern:plugin/types@0.1.0": postern_world_imports::postern::plugin::types,
        "postern:plugin/log@0.1.0": postern_world_imports::postern::plugin::log,
        "postern:plugin/clock@0.1.0": postern_world_imports::postern::plugin::clock,
    },
    pub_export_macro: true,
    export_macro_name: "export_codec_world",
    default_bindings_module: "postern_sdk::codec::bindings",
});
