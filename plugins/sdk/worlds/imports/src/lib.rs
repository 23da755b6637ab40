//! Generated from `wit/`: the shared words, and what a plugin can call. Authors use `postern-sdk`.
wit_bindgen::generate!({
    path: "../../../../wit",
    world: "imports",
    generate_all,
    additional_derives: [PartialEq, Eq, Clone],
});
