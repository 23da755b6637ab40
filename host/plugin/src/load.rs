//! From a file to a [`Plugin`]: read, trust, pin, compile, link, ask who it is.

use crate::bindings::{
    self, accounts as accounts_world, base, codec as codec_world, ssh as ssh_world,
};
use crate::cache::{Cache, sha256};
use crate::compile::Urgency;
use crate::engine::Engines;
use crate::error::{Cause, PluginError};
use crate::inspect::{PACKAGE, VERSION, check_description, check_header, unknown, which_world};
use crate::instance::{Ctx, Live, call};
use crate::logging::Limiter;
use crate::metrics::Metrics;
use crate::plugin::{First, Loaded, Parts, Plugin, Service};
use crate::ticker::Ticker;
use crate::trusted::trusted_path;
use crate::types::{Description, Limits, Origin, PluginSource, RuntimeOptions, World};
use std::path::Path;
use std::sync::Arc;
use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

/// Largest component that is read, bytes. (A Python one is about 40 MB.)
const MAX_COMPONENT: u64 = 128 << 20;
/// What a plugin of world `codec` may export besides.
const ACCOUNTS: &str = "accounts-service";

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

    /// The sha256 (hex) of what is in the file now, without loading it. Errors: it can't be read, must not be trusted, or
    /// is not what it is pinned to.
    pub async fn digest(&self, source: &PluginSource) -> Result<String, PluginError> {
        let name = short_name(&source.name);
        let source = source.clone();
        let read = tokio::task::spawn_blocking(move || {
            let (file, bytes) = read(&source)?;
            pinned(&source, &file, &bytes)
        });
        let digest = read.await.unwrap_or_else(|e| {
            let why = format!("reading it panicked: {e}");
            Err(Cause::Host { why })
        });
        digest.map_err(|cause| PluginError::new(&name, cause))
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
            first: First::default(),
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
            accounts: ready.accounts,
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
    accounts: bool,
}

impl Shared {
    fn prepare(&self, source: &PluginSource, limits: Limits) -> Result<Ready, Cause> {
        let (file, bytes) = read(source)?;
        let digest = pinned(source, &file, &bytes)?;
        check_header(&file, &bytes)?;
        let urgency = if source.replaces {
            Urgency::Idle
        } else {
            Urgency::Low
        };
        let (component, engine, linker) =
            self.compile(&file, &digest, &bytes, (limits, urgency))?;
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
        let lacks = |service: &str, e: &wasmtime::Error| Cause::MissingExport {
            file: file.clone(),
            export: format!("a part of {PACKAGE}{service}@{VERSION}"),
            help: format!("{}; build it against this version's wit/", e.root_cause()),
        };
        let accounts = exports.contains(&format!("{PACKAGE}{ACCOUNTS}@{VERSION}"));
        if accounts {
            accounts_world::AccountsPre::new(pre.clone()).map_err(|e| lacks(ACCOUNTS, &e))?;
        }
        let (base, service) = link(world, pre).map_err(|e| lacks(service_name(world), &e))?;
        Ok(Ready {
            file,
            digest,
            engine,
            world,
            base,
            service,
            accounts,
        })
    }

    /// In a slot of the pool if it fits, else on demand.
    fn compile(
        &self,
        file: &str,
        digest: &str,
        bytes: &[u8],
        (limits, urgency): (Limits, Urgency),
    ) -> Result<(Component, Engine, &Linker<Ctx>), Cause> {
        let e = &self.engines;
        let not_valid = |e: &wasmtime::Error| Cause::NotAComponent {
            file: file.into(),
            why: format!("{:#}; build it with --target wasm32-wasip2", e.root_cause()),
        };
        if limits.memory.is_none_or(|m| m <= e.slot_memory) {
            match self.cache.load(&e.pooled, digest, bytes, urgency) {
                Ok(c) => return Ok((c, e.pooled.clone(), &self.pooled)),
                // Too big for a slot, or not valid at all: the second engine tells.
                Err(why) => tracing::debug!("{file} does not fit a pool slot: {why:#}"),
            }
        }
        let component = self
            .cache
            .load(&e.on_demand, digest, bytes, urgency)
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

/// The digest of `bytes`, which must be the one that `source` is pinned to.
fn pinned(source: &PluginSource, file: &str, bytes: &[u8]) -> Result<String, Cause> {
    let digest = sha256(bytes);
    let pin = source.sha256.as_deref();
    let expected = pin.map(|pin| {
        pin.strip_prefix("sha256:")
            .unwrap_or(pin)
            .to_ascii_lowercase()
    });
    match expected {
        Some(expected) if expected != digest => Err(Cause::PinMismatch {
            file: file.to_owned(),
            expected,
            actual: digest,
        }),
        _ => Ok(digest),
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

fn service_name(world: World) -> &'static str {
    match world {
        World::Codec => "codec-service",
        World::Ssh => "ssh-service",
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
