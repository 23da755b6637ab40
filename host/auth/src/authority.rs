//! The certificate authorities: created on first start, kept in the store, and what they sign for joins and logins.

use std::time::Duration;

use postern_identity::tls::{self, ClientAuth, TlsIdentity, cert_pem};
use postern_identity::{
    AgentCertInfo, AgentIdentity, Ca, CaKind, ResourceId, ServiceKeys, TrustBundle, UserIdentity,
    Validity, auth_dns, proxy_dns,
};
use zeroize::Zeroizing;

use crate::error::AuthError;
use crate::kv::{KvError, KvExt, SharedKv, Txn};
use crate::time::unix;

/// Key of the cluster's name, written with the authorities.
const CLUSTER: &str = "/cluster";

/// See the module.
pub struct Authority {
    cluster: String,
    cas: Vec<(CaKind, Ca)>,
    trust: TrustBundle,
}

/// What a join gets; the fields of `JoinResponse`.
pub struct ServiceCertificates {
    pub tls_server_pem: String,
    pub tls_client_pem: String,
    pub ssh_host: String,
    pub ssh_client: String,
    pub not_after_unix: i64,
}

/// What a login gets.
pub struct UserCertificates {
    pub tls_pem: String,
    pub ssh: String,
    pub not_after_unix: i64,
}

impl Authority {
    /// Loads the CAs. On the first start it creates them, all in one transaction; the second value tells which it was.
    pub async fn open(kv: &SharedKv, cluster: &str) -> Result<(Self, bool), AuthError> {
        let keys: Vec<String> = CaKind::ALL.iter().map(|k| key(*k)).collect();
        let mut stored = kv.get_many(keys.clone()).await?;
        let fresh = stored.iter().all(Option::is_none);
        if fresh {
            let mut txn = Txn::new().put(CLUSTER, cluster.as_bytes().to_vec());
            for kind in CaKind::ALL {
                let ca = Ca::generate(kind, cluster).map_err(AuthError::ca)?;
                txn = txn
                    .expect(key(kind), None)
                    .put(key(kind), ca.to_stored().as_bytes().to_vec());
            }
            kv.commit(txn).await?;
            stored = kv.get_many(keys).await?;
        }
        if let Some(name) = kv.get(CLUSTER).await?
            && name.value != cluster.as_bytes()
        {
            let stored = String::from_utf8_lossy(&name.value).into_owned();
            return Err(AuthError::OtherCluster {
                stored,
                configured: cluster.to_owned(),
            });
        }
        let mut cas = Vec::with_capacity(stored.len());
        for (kind, entry) in CaKind::ALL.into_iter().zip(stored) {
            let corrupt = |why: String| KvError::Corrupt {
                key: key(kind),
                why,
            };
            let entry = entry.ok_or_else(|| corrupt("it is missing, while the other authorities are there; restore the Auth Service's data from a backup".into()))?;
            let text = String::from_utf8(entry.value).map_err(|e| corrupt(e.to_string()))?;
            cas.push((
                kind,
                Ca::from_stored(&Zeroizing::new(text)).map_err(AuthError::ca)?,
            ));
        }
        let trust = TrustBundle {
            cluster: cluster.to_owned(),
            cas: cas.iter().map(|(_, ca)| ca.public()).collect(),
        };
        if trust.cas.iter().any(|ca| ca.x509_pem.is_empty()) {
            return Err(AuthError::Internal(
                "an authority has no certificate".into(),
            ));
        }
        Ok((
            Authority {
                cluster: cluster.to_owned(),
                cas,
                trust,
            },
            fresh,
        ))
    }

    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    pub fn trust_json(&self) -> String {
        serde_json::to_string(&self.trust).unwrap_or_default()
    }

    /// `sha256:…` of the host CA: what users and agents pin.
    pub fn pins(&self) -> Vec<String> {
        self.trust
            .of(CaKind::Host)
            .map(|ca| ca.pin().to_string())
            .collect()
    }

    fn ca(&self, kind: CaKind) -> Result<&Ca, AuthError> {
        self.cas
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, ca)| ca)
            .ok_or_else(|| AuthError::Internal(format!("there is no {} CA", kind.name())))
    }

    /// A fresh server certificate for `auth.<cluster>`, with the host CA in its chain so that a client that knows
    /// only `ca_pin` finds it.
    pub fn server_config(
        &self,
        ttl: Duration,
    ) -> Result<std::sync::Arc<rustls::ServerConfig>, AuthError> {
        let keys = ServiceKeys::generate();
        let leaf = self.sign_server(
            &keys.spki(),
            &[auth_dns(&self.cluster)],
            Validity::for_ttl(ttl),
        )?;
        let id = TlsIdentity {
            chain_pem: leaf,
            key_pem: keys.x509_key_pem.clone(),
        };
        let clients = ClientAuth::Optional(&self.trust, &[CaKind::Agent, CaKind::User]);
        tls::server(&id, clients, &[b"h2"]).map_err(|e| AuthError::Tls(e.to_string()))
    }

    /// Leaf and host CA, PEM.
    fn sign_server(&self, spki: &[u8], names: &[String], v: Validity) -> Result<String, AuthError> {
        let ca = self.ca(CaKind::Host)?;
        let leaf = ca.sign_tls_server(spki, names, v).map_err(AuthError::ca)?;
        Ok(format!("{}{}", cert_pem(&leaf), ca.public().x509_pem))
    }

    /// For one service: what D2 lets its kind have.
    pub fn sign_service(
        &self,
        host_id: &str,
        service: &str,
        kind: &str,
        names: &[String],
        keys: (&[u8], &str),
        ttl: Duration,
    ) -> Result<ServiceCertificates, AuthError> {
        let (spki, ssh_key) = keys;
        let v = Validity::for_ttl(ttl);
        let proxy = kind == "proxy";
        let dns: Vec<String> = if proxy {
            let inner = proxy_dns(&self.cluster);
            let public = names.iter().filter(|n| **n != inner).cloned();
            std::iter::once(inner.clone()).chain(public).collect()
        } else {
            names
                .iter()
                .map(|name| {
                    ResourceId {
                        kind: kind.to_owned(),
                        name: name.clone(),
                    }
                    .dns(&self.cluster)
                })
                .collect()
        };
        let identity = AgentIdentity {
            host_id: host_id.to_owned(),
            service: service.to_owned(),
        };
        let agent = self.ca(CaKind::Agent)?;
        Ok(ServiceCertificates {
            tls_server_pem: if dns.is_empty() {
                String::new()
            } else {
                self.sign_server(spki, &dns, v)?
            },
            tls_client_pem: cert_pem(
                &agent
                    .sign_tls_agent(spki, host_id, service, v)
                    .map_err(AuthError::ca)?,
            ),
            ssh_host: match kind {
                "proxy" => self.sign_ssh_host(ssh_key, &[proxy_dns(&self.cluster)], v)?,
                "ssh" if !dns.is_empty() => self.sign_ssh_host(ssh_key, &dns, v)?,
                _ => String::new(),
            },
            // A proxy takes tunnels and opens none.
            ssh_client: if proxy {
                String::new()
            } else {
                let info = AgentCertInfo {
                    identity,
                    kind: kind.to_owned(),
                    names: names.to_vec(),
                };
                agent
                    .sign_ssh_agent(ssh_key, &info, v)
                    .map_err(AuthError::ca)?
            },
            not_after_unix: unix(v.not_after),
        })
    }

    fn sign_ssh_host(&self, key: &str, names: &[String], v: Validity) -> Result<String, AuthError> {
        self.ca(CaKind::Host)?
            .sign_ssh_host(key, names, v)
            .map_err(AuthError::ca)
    }

    /// For a user. `logins` become the SSH certificate's principals.
    pub fn sign_user(
        &self,
        user: &UserIdentity,
        logins: &[String],
        keys: (&[u8], &str),
        ttl: Duration,
    ) -> Result<UserCertificates, AuthError> {
        let (spki, ssh_key) = keys;
        let v = Validity::for_ttl(ttl);
        let ca = self.ca(CaKind::User)?;
        // To OpenSSH a certificate without principals is good for every login. Roles may allow logins by pattern
        // only, and then the agent's decision counts: a principal that is no login keeps the certificate harmless elsewhere.
        let nobody = [format!("user:{}", user.name)];
        let principals = if logins.is_empty() {
            &nobody[..]
        } else {
            logins
        };
        Ok(UserCertificates {
            tls_pem: cert_pem(&ca.sign_tls_user(spki, user, v).map_err(AuthError::ca)?),
            ssh: ca
                .sign_ssh_user(ssh_key, user, principals, v)
                .map_err(AuthError::ca)?,
            not_after_unix: unix(v.not_after),
        })
    }

    /// For one connection to a database: DER, and when it ends.
    pub fn sign_db_client(
        &self,
        spki: &[u8],
        account: &str,
        user: &str,
        ttl: Duration,
    ) -> Result<(Vec<u8>, i64), AuthError> {
        let v = Validity::for_ttl(ttl);
        let der = self
            .ca(CaKind::DbClient)?
            .sign_tls_db_client(spki, account, user, v)
            .map_err(AuthError::ca)?;
        Ok((der, unix(v.not_after)))
    }

    /// For a database itself: leaf and CA as PEM, and when it ends.
    pub fn sign_db_server(
        &self,
        spki: &[u8],
        names: &[String],
        ttl: Duration,
    ) -> Result<(String, i64), AuthError> {
        let v = Validity::for_ttl(ttl);
        let ca = self.ca(CaKind::DbServer)?;
        let leaf = ca.sign_tls_server(spki, names, v).map_err(AuthError::ca)?;
        let pem = format!("{}{}", cert_pem(&leaf), ca.public().x509_pem);
        Ok((pem, unix(v.not_after)))
    }

    /// The CA that databases trust their clients by, PEM.
    pub fn db_client_ca(&self) -> String {
        let cas = self.trust.of(CaKind::DbClient);
        cas.map(|ca| ca.x509_pem.as_str()).collect()
    }
}

fn key(kind: CaKind) -> String {
    format!("/ca/{}", kind.name())
}
