//! Signing keys: ed25519 (RFC 8032), kept as two lines of text.

use super::SignatureRecord;
use crate::{Error, Result, write::hex};
use ed25519_compact::{KeyPair, Seed, Signature};
use std::path::Path;

const SECRET_HEADER: &str = "octet ed25519 secret key";
const PUBLIC_HEADER: &str = "octet ed25519 public key";

/// What signatures are called in a receipt.
const ALGORITHM: &str = "ed25519";

/// A key that signs receipts.
#[derive(Clone)]
pub struct SecretKey(KeyPair);

/// A key that checks signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// A new pair of keys as the texts of their files.
#[derive(Clone)]
pub struct Keys {
    /// To be kept secret.
    pub secret: String,
    /// To be given to whoever checks.
    pub public: String,
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Keys {
    /// The pair that grows from 32 random bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let key = SecretKey(KeyPair::from_seed(Seed::new(seed)));
        Self { secret: format!("{SECRET_HEADER}\n{}\n", hex(&seed)), public: format!("{PUBLIC_HEADER}\n{}\n", key.public()) }
    }
}

impl SecretKey {
    /// Reads the file of a secret key.
    ///
    /// # Errors
    /// If it cannot be read or holds no secret key.
    pub fn read(path: &Path) -> Result<Self> {
        let seed = read(path, SECRET_HEADER)?;
        Ok(Self(KeyPair::from_seed(Seed::new(seed))))
    }

    /// The key that checks what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.pk)
    }

    pub(super) fn sign(&self, digest: &str) -> SignatureRecord {
        let signature = self.0.sk.sign(digest, None);
        SignatureRecord { algorithm: ALGORITHM.into(), public_key: self.public().to_string(), signature: hex(signature.as_ref()) }
    }
}

impl PublicKey {
    /// Reads the file of a public key (or of a secret one, from which it follows).
    ///
    /// # Errors
    /// If it cannot be read or holds no key.
    pub fn read(path: &Path) -> Result<Self> {
        match read(path, PUBLIC_HEADER) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(error) => SecretKey::read(path).map(|key| key.public()).map_err(|_| error),
        }
    }
}

impl SignatureRecord {
    /// Whether the signature is that of its public key over `digest`.
    pub(super) fn holds(&self, digest: &str) -> bool {
        let check = || {
            let key = ed25519_compact::PublicKey::from_slice(&unhex(&self.public_key)?).ok()?;
            let signature = Signature::from_slice(&unhex(&self.signature)?).ok()?;
            key.verify(digest, &signature).ok()
        };
        self.algorithm == ALGORITHM && check().is_some()
    }
}

fn read(path: &Path, header: &str) -> Result<[u8; 32]> {
    let text = std::fs::read_to_string(path).map_err(Error::read(path))?;
    let bytes = text.strip_prefix(header).and_then(|rest| unhex(rest.trim()));
    let wrong = || Error::Receipt { path: path.to_path_buf(), what: format!("is no {header}; make one with octet keygen") };
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().as_chunks::<2>();
    let pair = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    // Upper case would be another text for the same bytes.
    let canonical = digits.1.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    canonical.then(|| digits.0.iter().map(pair).collect::<Option<Vec<u8>>>())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_text_and_key_alone() {
        // RFC 8032, 7.1, test 1: seed and public key.
        let seed = unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let keys = Keys::from_seed(seed.try_into().unwrap());
        assert!(keys.public.ends_with("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\n"), "{}", keys.public);
        let path = std::env::temp_dir().join(format!("octet-key-{}", std::process::id()));
        std::fs::write(&path, &keys.secret).unwrap();
        let (secret, public) = (SecretKey::read(&path).unwrap(), PublicKey::read(&path).unwrap());
        std::fs::write(&path, "no key").unwrap();
        let error = SecretKey::read(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("octet keygen"), "{error}");
        let signed = secret.sign("a digest");
        assert!(signed.holds("a digest") && !signed.holds("another digest"));
        assert_eq!(signed.public_key, public.to_string());
        let other = Keys::from_seed([1; 32]).public.lines().nth(1).unwrap().to_string();
        assert!(!SignatureRecord { public_key: other, ..signed.clone() }.holds("a digest"));
        assert!(!SignatureRecord { signature: signed.signature.to_uppercase(), ..signed.clone() }.holds("a digest"));
        assert!(!format!("{secret:?}").contains("9d61"));
    }
}
