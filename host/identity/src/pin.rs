//! `ca_pin`: the SHA-256 of a CA's SubjectPublicKeyInfo, written `sha256:<64 hex>`.
//! It survives the renewal of a CA certificate as long as the key stays.

use std::fmt;
use std::str::FromStr;

/// SHA-256 over the DER of a SubjectPublicKeyInfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaPin(pub [u8; 32]);

/// Text that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ca_pin {0:?} is not of the form sha256:<64 hexadecimal digits>; `postern tokens create` prints the right one"
)]
pub struct PinError(pub String);

impl CaPin {
    /// The pin of the key in `spki_der`.
    pub fn of_spki(spki_der: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki_der);
        let mut pin = [0; 32];
        pin.copy_from_slice(digest.as_ref());
        Self(pin)
    }

    /// The pin of the key in an X.509 certificate; `None` if `cert_der` is none.
    pub fn of_cert(cert_der: &[u8]) -> Option<Self> {
        let (_, cert) = x509_parser::parse_x509_certificate(cert_der).ok()?;
        Some(Self::of_spki(cert.public_key().raw))
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl FromStr for CaPin {
    type Err = PinError;

    fn from_str(s: &str) -> Result<Self, PinError> {
        let bad = || PinError(s.chars().take(100).collect());
        let digits = s.trim().strip_prefix("sha256:").ok_or_else(bad)?;
        let mut pin = [0; 32];
        hex::decode_to_slice(digits, &mut pin).map_err(|_| bad())?;
        Ok(Self(pin))
    }
}

impl serde::Serialize for CaPin {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for CaPin {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let pin = CaPin::of_spki(b"a key");
        assert_eq!(pin.to_string().parse::<CaPin>().unwrap(), pin);
        let json = serde_json::to_string(&[pin]).unwrap();
        assert_eq!(serde_json::from_str::<Vec<CaPin>>(&json).unwrap(), [pin]);
    }

    #[test]
    fn other_text_is_refused() {
        let hex = "ab".repeat(32);
        for bad in [
            String::new(),
            hex.clone(),
            format!("sha1:{hex}"),
            format!("sha256:{hex}00"),
            format!("sha256:{}", &hex[2..]),
            format!("sha256:{}zz", &hex[2..]),
        ] {
            let e = bad.parse::<CaPin>().unwrap_err();
            assert!(e.to_string().contains("sha256:<64"), "{e}");
        }
        assert!(
            format!("sha256:{}", hex.to_uppercase())
                .parse::<CaPin>()
                .is_ok()
        );
    }
}
