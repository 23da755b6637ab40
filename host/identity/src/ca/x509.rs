//! The X.509 half of a CA: its own certificate, and the leaves it signs.

use super::{Ca, CaError, CaKind, SKEW, Validity};
use crate::names::{check_dns_name, check_host_id, check_label, check_user_name};
use crate::{UserIdentity, spiffe_agent, spiffe_user};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use std::net::IpAddr;
use std::time::SystemTime;
use time::OffsetDateTime;

/// OID of the extension that holds a user's [`UserIdentity`] as JSON: 2.25.<UUID> with the UUID
/// 00000000-0000-0000-a3d1-7b5c0e94f268. Its upper half is zero because rcgen and most parsers
/// hold an arc in 64 bits.
pub(crate) const USER_EXTENSION_OID: [u64; 3] = [2, 25, 0xa3d1_7b5c_0e94_f268];

const CA_LIFETIME: time::Duration = time::Duration::days(3652);
/// RFC 5280's upper bound for a common name.
const MAX_CN: usize = 64;

fn sign_error(e: impl std::fmt::Display) -> CaError {
    CaError::Sign(e.to_string())
}

/// 127 random bits: positive, and never the same for two certificates of one key.
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| sign_error("no randomness"))?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn common_name(cn: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    let cut = cn.char_indices().nth(MAX_CN).map_or(cn.len(), |(i, _)| i);
    dn.push(DnType::CommonName, &cn[..cut]);
    dn
}

/// `(certificate PEM, key)` of a new CA.
pub(super) fn self_signed(kind: CaKind, cluster: &str) -> Result<(String, KeyPair), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign_error)?;
    let now = OffsetDateTime::from(SystemTime::now());
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial()?);
    // Not cut to 64 characters: two kinds of a cluster with a long name must differ.
    params.distinguished_name = DistinguishedName::new();
    let cn = format!("{cluster} {kind} CA");
    params.distinguished_name.push(DnType::CommonName, cn);
    params.not_before = now - SKEW;
    params.not_after = now + CA_LIFETIME;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let cert = params.self_signed(&key).map_err(sign_error)?;
    Ok((cert.pem(), key))
}

/// When a certificate ends, in seconds since 1970.
pub(super) fn not_after(der: &[u8]) -> Result<u64, String> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
    u64::try_from(cert.validity().not_after.timestamp()).map_err(|e| e.to_string())
}

/// A P-256 key whose point is on the curve.
fn subject_key(spki: &[u8]) -> Result<SubjectPublicKeyInfo, CaError> {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
    let refuse = || CaError::Key("the X.509 public key is not an ECDSA P-256 key".into());
    let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| refuse())?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(refuse());
    }
    ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.der_bytes()).map_err(|_| refuse())?;
    Ok(key)
}

fn dns_or_ip(name: &str) -> Result<SanType, CaError> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let name = name.to_ascii_lowercase();
    check_dns_name("server name", &name).map_err(sign_error)?;
    Ok(SanType::DnsName(
        Ia5String::try_from(name).map_err(sign_error)?,
    ))
}

fn uri(text: String) -> Result<SanType, CaError> {
    Ok(SanType::URI(Ia5String::try_from(text).map_err(sign_error)?))
}

/// What distinguishes one leaf from another.
struct Leaf {
    cn: String,
    sans: Vec<SanType>,
    usage: ExtendedKeyUsagePurpose,
    extension: Option<CustomExtension>,
}

impl Ca {
    fn sign_leaf(&self, spki: &[u8], leaf: Leaf, v: Validity) -> Result<Vec<u8>, CaError> {
        let key = subject_key(spki)?;
        let (start, end) = self.window(v)?;
        let at = |secs: u64| {
            i64::try_from(secs)
                .ok()
                .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
                .ok_or_else(|| sign_error("its validity is out of range"))
        };
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial()?);
        params.distinguished_name = common_name(&leaf.cn);
        params.subject_alt_names = leaf.sans;
        params.not_before = at(start)?;
        params.not_after = at(end)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![leaf.usage];
        params.custom_extensions = leaf.extension.into_iter().collect();
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).map_err(sign_error)?;
        Ok(cert.der().to_vec())
    }

    /// X.509 leaf, serverAuth, DNS SANs (IP literals become IP SANs). `spki` = SubjectPublicKeyInfo
    /// DER of a P-256 key. Returns DER. Host or DbServer CA only.
    pub fn sign_tls_server(
        &self,
        spki: &[u8],
        names: &[String],
        v: Validity,
    ) -> Result<Vec<u8>, CaError> {
        self.only(&[CaKind::Host, CaKind::DbServer], "TLS server certificates")?;
        let Some(first) = names.first() else {
            return Err(sign_error("a server certificate needs a name"));
        };
        let sans = names.iter().map(|name| dns_or_ip(name));
        let leaf = Leaf {
            cn: first.to_ascii_lowercase(),
            sans: sans.collect::<Result<_, _>>()?,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            extension: None,
        };
        self.sign_leaf(spki, leaf, v)
    }

    /// X.509 leaf, clientAuth, SAN URI `spiffe://<cluster>/agent/<host_id>/<service>`. Agent CA only.
    pub fn sign_tls_agent(
        &self,
        spki: &[u8],
        host_id: &str,
        service: &str,
        v: Validity,
    ) -> Result<Vec<u8>, CaError> {
        self.only(&[CaKind::Agent], "TLS certificates of agents")?;
        check_host_id(host_id).map_err(sign_error)?;
        check_label("service name", service).map_err(sign_error)?;
        let leaf = Leaf {
            cn: format!("{service} {host_id}"),
            sans: vec![uri(spiffe_agent(&self.cluster, host_id, service))?],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            extension: None,
        };
        self.sign_leaf(spki, leaf, v)
    }

    /// X.509 leaf, clientAuth, SAN `spiffe://<cluster>/user/<name>` + JSON extension (OID under
    /// 2.25) with roles and traits. User CA only.
    pub fn sign_tls_user(
        &self,
        spki: &[u8],
        user: &UserIdentity,
        v: Validity,
    ) -> Result<Vec<u8>, CaError> {
        self.only(&[CaKind::User], "TLS certificates of users")?;
        check_user_name(&user.name).map_err(sign_error)?;
        let json = serde_json::to_vec(user).map_err(sign_error)?;
        let leaf = Leaf {
            cn: user.name.clone(),
            sans: vec![uri(spiffe_user(&self.cluster, &user.name))?],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            extension: Some(CustomExtension::from_oid_content(&USER_EXTENSION_OID, json)),
        };
        self.sign_leaf(spki, leaf, v)
    }

    /// X.509 leaf, clientAuth, CN `account`: what a database takes it for. SAN URI: the user it is for. DbClient CA only.
    /// A name that does not fit whole is refused, never cut: it would be another account's.
    pub fn sign_tls_db_client(
        &self,
        spki: &[u8],
        account: &str,
        user: &str,
        v: Validity,
    ) -> Result<Vec<u8>, CaError> {
        self.only(
            &[CaKind::DbClient],
            "certificates for accounts of databases",
        )?;
        check_user_name(user).map_err(sign_error)?;
        let printable = !account.is_empty() && !account.chars().any(char::is_control);
        if !printable || account.chars().count() > MAX_CN {
            return Err(sign_error(format!(
                "the account {account:?} is not 1 to {MAX_CN} characters without control characters"
            )));
        }
        let leaf = Leaf {
            cn: account.to_owned(),
            sans: vec![uri(spiffe_user(&self.cluster, user))?],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            extension: None,
        };
        self.sign_leaf(spki, leaf, v)
    }
}
