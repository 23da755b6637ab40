//! From a file to a [`Plugin`]: read, trust, pin, compile, link, ask who it is.

use crate::bindings::{self, base, codec as codec_world, ssh as ssh_world};
use crate::cache::{Cache, sha256};
use crate::engine::Engines;
use crate::error::{Cause, PluginError};
use crate::instance::{Ctx, Live, call};
use crate::logging::Limiter;
use crate::metrics::Metrics;
use crate::plugin::{Loaded, Parts, Plugin, Service};
use crate::ticker::Ticker;
use crate::trusted::trusted_path;
use crate::types::{Description, Limits, Origin, PluginSource, RuntimeOptions, Wants, World};
use std::path::Path;
use std::sync::Arc;
use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

/// Largest component that is read, bytes. (A Python one is about 40 MB.)
const MAX_COMPONENT: u64 = 128 << 20;
/// Our package in `wit/`.
const PACKAGE: &str = "postern:plugin/";
const VERSION: &str = "0.1.0";

/// Engines, cache and CPU ticker: what plugins are loaded with. One per process, owned by whoever starts services.
pub struct Runtime {
    shared: Arc<Shared>,
}

struct Shared {
    engines: Engines,
    cache: Cache,
    ticker: Arc<Ticker>,
    pooled: Linker<Ctx>,
    on_demand: Linker<Ctx>,
}

impl Runtime {
    /// Sets the engines up and opens the cache. Errors: a cache directory that others could write, no address space.
    pub fn new(options: RuntimeOptions) -> Result<Self, PluginError> {
        let host = |why: String| PluginError::new("*", Cause::Host { why });
        let engines = Engines::new(&options)?;
        let cache = Cache::open(&options.cache_dir, &[&engines.pooled, &engines.on_demand])
            .map_err(|why| {
                let file = options.cache_dir.display().to_string();
                PluginError::new("*", Cause::Permissions { file, why })
            })?;
        let ticker = Ticker::start(vec![engines.pooled.weak(), engines.on_demand.weak()])
            .map_err(|e| host(format!("no thread: {e}")))?;
        let pooled = linker(&engines.pooled).map_err(|e| host(format!("{e:#}")))?;
        let on_demand = linker(&engines.on_demand).map_err(|e| host(format!("{e:#}")))?;
        let shared = Shared {
            engines,
            cache,
            ticker: Arc::new(ticker),
            pooled,
            on_demand,
        };
        Ok(Runtime {
            shared: Arc::new(shared),
        })
    }

    /// Loads one plugin. What runs is exactly what was checked: the file is read once.
    pub async fn load(&self, source: &PluginSource, limits: Limits) -> Result<Plugin, PluginError> {
        let name = short_name(&source.name);
        let shared = self.shared.clone();
        let source = source.clone();
        let ready = tokio::task::spawn_blocking(move || shared.prepare(&source, limits)).await;
        let ready = ready.map_err(|e| {
            PluginError::new(
                &name,
                Cause::Host {
                    why: format!("loading it panicked: {e}"),
                },
            )
        })?;
        let ready = ready.map_err(|cause| PluginError::new(&name, cause))?;
        self.describe(name, ready, limits).await
    }

    /// Asks the component who it is, and puts the parts together.
    async fn describe(
        &self,
        name: String,
        ready: Ready,
        limits: Limits,
    ) -> Result<Plugin, PluginError> {
        let s = &self.shared;
        let loaded = |version: &str, description: Description| Loaded {
            name: name.clone(),
            version: version.into(),
            digest: ready.digest.clone(),
            file: ready.file.clone(),
            description,
            engine: ready.engine.clone(),
            limits,
            memory_limit: limits.memory.unwrap_or(s.engines.slot_memory),
            slots: s.engines.slots,
            ticker: s.ticker.clone(),
            metrics: Metrics::new(&name, version),
            log_limiter: Arc::new(Limiter::new()),
        };
        let mut live = Live::new(Arc::new(loaded("unknown", unknown(ready.world))), "");
        let pre = &ready.base;
        let said = call!(&mut live, "describe", |store| async {
            let b = pre.instantiate_async(&mut *store).await?;
            b.postern_plugin_manifest().call_describe(store).await
        })?;
        let description = bindings::description(ready.world, said);
        check_description(&description)
            .map_err(|why| PluginError::new(&name, Cause::Description { why }))?;
        let version = description.version.clone();
        Ok(Plugin(Arc::new(Parts {
            loaded: Arc::new(loaded(&version, description)),
            base: ready.base.clone(),
            service: ready.service.clone(),
        })))
    }
}

/// Compiled and linked, not yet asked.
struct Ready {
    file: String,
    digest: String,
    engine: Engine,
    world: World,
    base: base::BasePre<Ctx>,
    service: Service,
}

impl Shared {
    fn prepare(&self, source: &PluginSource, limits: Limits) -> Result<Ready, Cause> {
        let (file, bytes) = read(source)?;
        let digest = sha256(&bytes);
        if let Some(pin) = &source.sha256 {
            let expected = pin
                .strip_prefix("sha256:")
                .unwrap_or(pin)
                .to_ascii_lowercase();
            if expected != digest {
                return Err(Cause::PinMismatch {
                    file,
                    expected,
                    actual: digest,
                });
            }
        }
        check_header(&file, &bytes)?;
        let (component, engine, linker) = self.compile(&file, &digest, &bytes, limits)?;
        let exports: Vec<String> = component
            .component_type()
            .exports(&engine)
            .map(|(name, _)| name.to_string())
            .collect();
        let world = which_world(&file, &exports)?;
        let pre = linker.instantiate_pre(&component).map_err(|e| Cause::WrongWorld {
            file: file.clone(),
            why: format!(
                "needs something that no plugin gets ({e:#}): plugins import nothing but log and clock of {PACKAGE}*@{VERSION} and WASI 0.2 as far as a standard library needs it"
            ),
        })?;
        let (base, service) = link(world, pre).map_err(|e| Cause::MissingExport {
            file: file.clone(),
            export: format!("a part of {PACKAGE}{}@{VERSION}", service_name(world)),
            help: format!("{}; build it against this version's wit/", e.root_cause()),
        })?;
        Ok(Ready {
            file,
            digest,
            engine,
            world,
            base,
            service,
        })
    }

    /// In a slot of the pool if it fits, else on demand.
    fn compile(
        &self,
        file: &str,
        digest: &str,
        bytes: &[u8],
        limits: Limits,
    ) -> Result<(Component, Engine, &Linker<Ctx>), Cause> {
        let e = &self.engines;
        let not_valid = |e: &wasmtime::Error| Cause::NotAComponent {
            file: file.into(),
            why: format!("{:#}; build it with --target wasm32-wasip2", e.root_cause()),
        };
        if limits.memory.is_none_or(|m| m <= e.slot_memory) {
            match self.cache.load(&e.pooled, digest, bytes) {
                Ok(c) => return Ok((c, e.pooled.clone(), &self.pooled)),
                // Too big for a slot, or not valid at all: the second engine tells.
                Err(why) => tracing::debug!("{file} does not fit a pool slot: {why:#}"),
            }
        }
        let component = self
            .cache
            .load(&e.on_demand, digest, bytes)
            .map_err(|e| not_valid(&e))?;
        let memory = component
            .resources_required()
            .and_then(|r| r.max_initial_memory_size)
            .unwrap_or(0);
        let limit = limits.memory.unwrap_or(e.slot_memory) as u64;
        if memory > limit {
            let mib = |b: u64| b.div_ceil(1 << 20);
            return Err(Cause::WrongWorld {
                file: file.into(),
                why: format!(
                    "starts with {} MiB of memory, the limit is {}: set memory_mb = {} or more in the service's limits",
                    mib(memory),
                    mib(limit),
                    2 * mib(memory)
                ),
            });
        }
        Ok((component, e.on_demand.clone(), &self.on_demand))
    }
}

/// For messages and metrics: of a path, the file's name.
fn short_name(name: &str) -> String {
    let stem = Path::new(name)
        .file_stem()
        .map(|s| s.to_string_lossy().into_owned());
    stem.unwrap_or_else(|| name.into())
}

fn read(source: &PluginSource) -> Result<(String, Arc<[u8]>), Cause> {
    let path = match &source.origin {
        Origin::Bytes(b) => return Ok((format!("<{} built in>", source.name), b.clone())),
        Origin::File(path) => path,
    };
    let file = path.display().to_string();
    let io = |e: std::io::Error| Cause::Io {
        file: file.clone(),
        why: e.to_string(),
    };
    if !path.exists() {
        let why =
            "there is no such file; `plugin` names a built-in plugin or the path of a .wasm".into();
        return Err(Cause::Io { file, why });
    }
    let real = trusted_path(path).map_err(|(p, why)| {
        let why = if p == *path {
            why
        } else {
            format!("{} {why}", p.display())
        };
        Cause::Permissions {
            file: file.clone(),
            why,
        }
    })?;
    let bytes = read_limited(&real).map_err(io)?;
    Ok((file, bytes.into()))
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_COMPONENT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_COMPONENT {
        return Err(std::io::Error::other(format!(
            "it is larger than {} MiB",
            MAX_COMPONENT >> 20
        )));
    }
    Ok(bytes)
}

/// The first eight bytes tell modules and components apart.
fn check_header(file: &str, bytes: &[u8]) -> Result<(), Cause> {
    let why = match bytes {
        [] => "it is empty",
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "it is a core module; build it with --target wasm32-wasip2 (not wasip1 or unknown-unknown)"
        }
        [0, b'a', b's', b'm', ..] => {
            "it is WebAssembly of a version that this host does not know; update posternd, or build it with older tools"
        }
        [0x7f, b'E', b'L', b'F', ..] => {
            "it is machine code (a .cwasm or a program); install the .wasm"
        }
        [b'(', ..] => "it is WebAssembly text; install the binary .wasm",
        _ => "it does not begin like one; the file is damaged or something else",
    };
    Err(Cause::NotAComponent {
        file: file.into(),
        why: why.into(),
    })
}

fn service_name(world: World) -> &'static str {
    match world {
        World::Codec => "codec-service",
        World::Ssh => "ssh-service",
    }
}

/// Which world the exports belong to.
fn which_world(file: &str, exports: &[String]) -> Result<World, Cause> {
    let has = |what: &str| {
        exports
            .iter()
            .any(|e| *e == format!("{PACKAGE}{what}@{VERSION}"))
    };
    let other_version = exports
        .iter()
        .filter_map(|e| e.strip_prefix(PACKAGE)?.split_once('@'))
        .find(|(_, v)| *v != VERSION);
    if let (Some((what, v)), false) = (other_version, has("manifest")) {
        return Err(Cause::WrongWorld {
            file: file.into(),
            why: format!(
                "was built for {PACKAGE}{what}@{v}, this host runs {VERSION}: rebuild it, or use a posternd of its time"
            ),
        });
    }
    let missing = |what: &str, help: &str| Cause::MissingExport {
        file: file.into(),
        export: format!("the export {PACKAGE}{what}@{VERSION}"),
        help: help.into(),
    };
    if !has("manifest") {
        return Err(missing(
            "manifest",
            "it is a component, but no Postern plugin (a plugin calls export_codec! or export_ssh!, see docs/plugins.md)",
        ));
    }
    match (
        has("codec-service"),
        has("ssh-service"),
        has("http-service"),
    ) {
        (true, false, false) => Ok(World::Codec),
        (false, true, false) => Ok(World::Ssh),
        (false, false, true) => Err(Cause::WrongWorld {
            file: file.into(),
            why: "implements world `http`, which this version of posternd does not run yet".into(),
        }),
        (false, false, false) => Err(missing(
            "codec-service or ssh-service",
            "it says who it is, but serves nothing; build it for world `codec` or `ssh`",
        )),
        _ => Err(Cause::WrongWorld {
            file: file.into(),
            why: "implements several worlds; a plugin implements one".into(),
        }),
    }
}

fn link(world: World, pre: InstancePre<Ctx>) -> wasmtime::Result<(base::BasePre<Ctx>, Service)> {
    let base = base::BasePre::new(pre.clone())?;
    let service = match world {
        World::Codec => Service::Codec(codec_world::CodecPre::new(pre)?),
        World::Ssh => Service::Ssh(ssh_world::SshPre::new(pre)?),
    };
    Ok((base, service))
}

/// All that a guest can call: WASI 0.2 over an empty context, `log`, `clock`.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<Ctx>> {
    let mut l = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut l)?;
    base::Base::add_to_linker::<_, HasSelf<Ctx>>(&mut l, |c| c)?;
    Ok(l)
}

fn unknown(world: World) -> Description {
    Description {
        world,
        kind: String::new(),
        protocol: String::new(),
        version: String::new(),
        summary: String::new(),
        principals: vec![],
        settings_schema: String::new(),
        wants: Wants::default(),
    }
}

/// Kinds that mean something else in names and ports.
const RESERVED: [&str; 3] = ["auth", "proxy", "web"];

fn check_description(d: &Description) -> Result<(), String> {
    let label = |s: &str| {
        (1..=63).contains(&s.len())
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !s.starts_with('-')
            && !s.ends_with('-')
    };
    if !label(&d.kind) {
        return Err(format!(
            "kind {:?} is not a DNS label (a-z, 0-9, -, at most 63)",
            d.kind
        ));
    }
    if RESERVED.contains(&d.kind.as_str()) {
        return Err(format!("kind {:?} is reserved", d.kind));
    }
    let plain =
        |s: &str, max: usize| !s.is_empty() && s.len() <= max && !s.chars().any(char::is_control);
    if !plain(&d.version, 64) {
        return Err("its version is empty, longer than 64 bytes or not plain text".into());
    }
    for p in &d.principals {
        if p.name == "labels"
            || p.name.is_empty()
            || !p
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            return Err(format!(
                "principal {:?} is not a name of a-z, 0-9, _ (nor `labels`)",
                p.name
            ));
        }
    }
    if serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&d.settings_schema)
        .is_err()
    {
        return Err("its settings-schema is not a JSON object".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_told_by_exports() {
        let e = |names: &[&str]| {
            names
                .iter()
                .map(|n| format!("postern:plugin/{n}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            which_world("f", &e(&["manifest@0.1.0", "ssh-service@0.1.0"])).unwrap(),
            World::Ssh
        );
        let cases: [(&[&str], &str); 5] = [
            (&[], "no Postern plugin"),
            (&["manifest@0.1.0"], "serves nothing"),
            (
                &["manifest@0.2.0", "codec-service@0.2.0"],
                "was built for postern:plugin/manifest@0.2.0",
            ),
            (
                &["manifest@0.1.0", "http-service@0.1.0"],
                "does not run yet",
            ),
            (
                &["manifest@0.1.0", "ssh-service@0.1.0", "codec-service@0.1.0"],
                "several worlds",
            ),
        ];
        for (names, expected) in cases {
            let said = which_world("f.wasm", &e(names)).unwrap_err().to_string();
            assert!(
                said.starts_with("f.wasm") && said.contains(expected),
                "{said}"
            );
        }
    }

    #[test]
    fn descriptions_are_checked() {
        let good = Description {
            kind: "tcp".into(),
            version: "1".into(),
            settings_schema: "{}".into(),
            ..unknown(World::Codec)
        };
        assert!(check_description(&good).is_ok());
        for kind in ["", "auth", "Tcp", "a.b", "-x"] {
            assert!(
                check_description(&Description {
                    kind: kind.into(),
                    ..good.clone()
                })
                .is_err(),
                "{kind}"
            );
        }
        assert!(
            check_description(&Description {
                version: "1\n2".into(),
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            check_description(&Description {
                settings_schema: "[]".into(),
                ..good.clone()
            })
            .is_err()
        );
        let p = crate::types::Principal {
            name: "labels".into(),
            help: String::new(),
        };
        assert!(
            check_description(&Description {
                principals: vec![p],
                ..good
            })
            .is_err()
        );
    }
}
