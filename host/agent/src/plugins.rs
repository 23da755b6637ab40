//! Where plugin files are found. A service names a built-in (`ssh`) or a path.

use std::path::{Path, PathBuf};

/// The directories searched for built-in plugins, first hit wins.
#[derive(Debug, Clone)]
pub struct PluginDirs(Vec<PathBuf>);

impl PluginDirs {
    /// `plugin_dir` of the configuration, `plugins/` beside the executable, the package's directory.
    pub fn new(configured: Option<&Path>) -> Self {
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.join("plugins")));
        PluginDirs(
            configured
                .map(Path::to_path_buf)
                .into_iter()
                .chain(beside)
                .chain([PathBuf::from("/usr/lib/postern/plugins")])
                .collect(),
        )
    }

    /// The file of `plugin`: a path if it has a slash or ends in `.wasm`, else a built-in.
    pub fn find(&self, service: &str, plugin: &str) -> Result<PathBuf, String> {
        if plugin.contains('/') || plugin.ends_with(".wasm") {
            return Ok(PathBuf::from(plugin));
        }
        self.0
            .iter()
            .map(|dir| dir.join(format!("{plugin}.wasm")))
            .find(|file| file.is_file())
            .ok_or_else(|| {
                let dirs: Vec<_> = self.0.iter().map(|d| d.display().to_string()).collect();
                format!(
                    "service {service:?}: no plugin {plugin:?} in {}; set agent.plugin_dir, or give the path of a .wasm file",
                    dirs.join(", ")
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is_and_a_name_is_searched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tcp.wasm"), b"").unwrap();
        let dirs = PluginDirs::new(Some(dir.path()));
        assert_eq!(
            dirs.find("s", "/x/y.wasm").unwrap(),
            PathBuf::from("/x/y.wasm")
        );
        assert_eq!(dirs.find("s", "tcp").unwrap(), dir.path().join("tcp.wasm"));
        let e = dirs.find("orders", "nosuch").unwrap_err();
        assert!(
            e.starts_with("service \"orders\": no plugin \"nosuch\" in "),
            "{e}"
        );
    }
}
