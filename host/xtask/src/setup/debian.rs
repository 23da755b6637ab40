//! Debian packages: real clients and network tools that demo, tests and benchmarks use.

use crate::sh;
use anyhow::{Result, bail};
use std::path::Path;

/// A package, and the file by which we know that it (or something that replaces it) is there.
#[derive(Clone, Copy)]
pub struct Package {
    name: &'static str,
    proof: &'static str,
}

impl Package {
    pub const SSH: Package = Package {
        name: "openssh-client",
        proof: "ssh",
    };
    pub const SFTP_SERVER: Package = Package {
        name: "openssh-sftp-server",
        proof: "/usr/lib/openssh/sftp-server",
    };
    /// Only the benchmark's baseline: its installation starts a server, which a developer may not want.
    pub const SSHD: Package = Package {
        name: "openssh-server",
        proof: "sshd",
    };
    pub const RSYNC: Package = Package {
        name: "rsync",
        proof: "rsync",
    };
    pub const IP: Package = Package {
        name: "iproute2",
        proof: "ip",
    };
    pub const IPTABLES: Package = Package {
        name: "iptables",
        proof: "iptables",
    };
    /// Runs Ansible's modules on the far side, and holds pip for the near one.
    pub const PYTHON: Package = Package {
        name: "python3",
        proof: "/usr/bin/python3",
    };
    pub const PIP: Package = Package {
        name: "python3-pip",
        proof: "pip3",
    };

    pub const CURL: Package = Package {
        name: "curl",
        proof: "curl",
    };
    pub const NODE: Package = Package {
        name: "nodejs",
        proof: "node",
    };
    pub const NPM: Package = Package {
        name: "npm",
        proof: "npm",
    };
    /// A server for the tests; it is started by them, in directories of their own.
    pub const POSTGRESQL: Package = Package {
        name: "postgresql",
        proof: "/usr/lib/postgresql/15/bin/postgres",
    };
    /// `pgbench` is in Debian's postgresql package too; this has the extensions that its suite uses.
    pub const POSTGRESQL_CONTRIB: Package = Package {
        name: "postgresql-contrib",
        proof: "/usr/lib/postgresql/15/bin/pgbench",
    };
    /// Compiles the library of PostgreSQL's regression suite.
    pub const GCC: Package = Package {
        name: "gcc",
        proof: "gcc",
    };

    /// What the benchmarks compare databases with; both are started by them.
    pub const PGBOUNCER: Package = Package {
        name: "pgbouncer",
        proof: "/usr/sbin/pgbouncer",
    };
    pub const STUNNEL: Package = Package {
        name: "stunnel4",
        proof: "stunnel",
    };

    pub const DEMO: &[Package] = &[Self::SSH, Self::SFTP_SERVER, Self::IP, Self::IPTABLES];
    pub const TEST: &[Package] = &[
        Self::SSH,
        Self::SFTP_SERVER,
        Self::RSYNC,
        Self::IP,
        Self::IPTABLES,
        Self::PYTHON,
        Self::PIP,
        Self::CURL,
        Self::NODE,
        Self::NPM,
        Self::POSTGRESQL,
        Self::POSTGRESQL_CONTRIB,
        Self::GCC,
    ];
    pub const BENCH: &[Package] = &[
        Self::SSH,
        Self::SSHD,
        Self::SFTP_SERVER,
        Self::POSTGRESQL,
        Self::POSTGRESQL_CONTRIB,
        Self::PGBOUNCER,
        Self::STUNNEL,
    ];
    pub const ALL: &[Package] = &[
        Self::SSH,
        Self::SFTP_SERVER,
        Self::SSHD,
        Self::RSYNC,
        Self::IP,
        Self::IPTABLES,
        Self::PYTHON,
        Self::PIP,
        Self::CURL,
        Self::NODE,
        Self::NPM,
        Self::POSTGRESQL,
        Self::POSTGRESQL_CONTRIB,
        Self::GCC,
    ];

    fn is_there(&self) -> bool {
        if self.proof.starts_with('/') {
            Path::new(self.proof).exists()
        } else {
            sh::which(self.proof).is_some()
        }
    }
}

/// Whether this process may install packages and make network namespaces.
pub fn is_root() -> bool {
    // The owner of /proc/self is our effective user; no other dependency is worth this one number.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Sees to it that the packages are there.
pub fn debian(wanted: &[Package]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|p| !p.is_there())
        .map(|p| p.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if sh::which("apt-get").is_none() {
        bail!(
            "missing: what Debian calls {list}; this is no Debian machine, so install them by its own means"
        );
    }
    if !is_root() {
        bail!(
            "missing Debian packages, and only root may install them; run: sudo apt-get install {list}"
        );
    }
    eprintln!("  installing Debian packages: {list}");
    sh::run(sh::cmd("apt-get", &["update", "-qq"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    let mut install = sh::cmd(
        "apt-get",
        &["install", "-y", "-qq", "--no-install-recommends"],
    );
    sh::run(
        install
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1"),
    )
}
