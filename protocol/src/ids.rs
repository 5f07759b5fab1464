//! What names a thing on the wire: the key of a set of weights, the address of a seed, a lease.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::host::{BadHost, Host, MAX_HOST_BYTES};
use crate::shown::Shown;

/// The longest seed key accepted, in bytes.
pub const MAX_SEED_KEY_BYTES: usize = 8 * 1024;

/// The longest seed identity, `host:port:rank`, in bytes.
pub const MAX_SEED_IDENTITY_BYTES: usize = MAX_HOST_BYTES + ":65535:4294967295".len();

/// The longest lease id accepted, in bytes. Planners of ours issue 32 hex characters.
pub const MAX_LEASE_ID_BYTES: usize = 128;

/// A value that cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A seed key without a byte.
    #[error("a seed key must not be empty")]
    EmptyKey,
    /// A seed key of more than [`MAX_SEED_KEY_BYTES`].
    #[error("a seed key of {0} bytes is too long: at most {MAX_SEED_KEY_BYTES} are accepted")]
    KeyTooLong(usize),
    /// Something that could not stand as the host of a URL, or is read in different ways.
    #[error(transparent)]
    BadHost(#[from] BadHost),
    /// A port outside 1 to 65535.
    #[error("a seed port must be 1 to 65535")]
    BadPort,
    /// A text that is not a seed's `host:port:rank`.
    #[error("'{0}' is not a seed: write host:port:rank, an IPv6 host in brackets")]
    BadSeed(String),
    /// A lease id that is empty, too long or not printable ASCII.
    #[error("a lease id must be 1 to {MAX_LEASE_ID_BYTES} printable ASCII characters")]
    BadLease,
}

/// What weights a seed holds: the planner hands a worker only seeds of exactly the key it asked for.
///
/// The planner treats it as opaque bytes, compared exactly and case-sensitively and never decoded: clients
/// in the field send Latin-1 and UTF-8 alike. Between 1 and [`MAX_SEED_KEY_BYTES`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeedKey(Box<[u8]>);

impl SeedKey {
    /// Takes the bytes of a key as they came.
    ///
    /// # Errors
    /// [`IdError::EmptyKey`] or [`IdError::KeyTooLong`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, IdError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(IdError::EmptyKey),
            n if n > MAX_SEED_KEY_BYTES => Err(IdError::KeyTooLong(n)),
            _ => Ok(Self(bytes.into_boxed_slice())),
        }
    }

    /// The key that a Python client sends for `text`: Latin-1 where every character fits, else UTF-8.
    ///
    /// Workers of ours send the same bytes, so that both find each other's seeds.
    ///
    /// # Errors
    /// As [`SeedKey::new`].
    pub fn from_text(text: &str) -> Result<Self, IdError> {
        let latin1: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        Self::new(latin1.unwrap_or_else(|| text.as_bytes().to_vec()))
    }

    /// Whether `text`, as a URL's query carries it, means this key.
    pub fn is_text(&self, text: &str) -> bool {
        self.as_bytes() == text.as_bytes() || Self::from_text(text).is_ok_and(|key| key == *self)
    }

    /// The bytes, as they are compared and stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key as a text, as JSON and queries carry it: bytes that are not UTF-8 are read as Latin-1, which is what Python
    /// clients mean by them. [`SeedKey::is_text`] holds for it.
    pub fn text(&self) -> Cow<'_, str> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.into(),
            Err(_) => self.0.iter().copied().map(char::from).collect::<String>().into(),
        }
    }

    /// Whether this is a digest key (64 lower-case hex characters), as clients from 2026-08 on build them.
    pub fn is_digest(&self) -> bool {
        self.0.len() == 64 && self.0.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// For people; [`SeedKey::text`] for programs.
impl fmt::Display for SeedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Shown::new(self.text()).fmt(f)
    }
}

impl fmt::Debug for SeedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeedKey({:?})", self.text())
    }
}

/// Where a seed is: the address of its metadata service, and its rank.
///
/// Written `host:port:rank`, an IPv6 host in brackets. Its host is canonical, so a seed has one identity however its
/// address is told.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SeedIdentity {
    host: Host,
    port: u16,
    rank: u32,
}

impl SeedIdentity {
    /// Checks and takes the three parts.
    ///
    /// # Errors
    /// [`IdError::BadHost`] when `host` is not an IPv4 address, an IPv6 address (with or without brackets)
    /// or a host name; [`IdError::BadPort`] for port 0.
    pub fn new(host: impl AsRef<str>, port: u16, rank: u32) -> Result<Self, IdError> {
        Self::at(host.as_ref().parse()?, port, rank)
    }

    /// As [`SeedIdentity::new`], with `host` as [`Host::told`] reads it. A port in it does not count: `port` is where the
    /// seed's metadata service says that it listens.
    ///
    /// # Errors
    /// Those of [`SeedIdentity::new`].
    pub fn told(host: &str, port: u16, rank: u32) -> Result<Self, IdError> {
        Self::at(Host::told(host)?.0, port, rank)
    }

    /// Takes the three parts.
    ///
    /// # Errors
    /// [`IdError::BadPort`] for port 0.
    pub fn at(host: Host, port: u16, rank: u32) -> Result<Self, IdError> {
        if port == 0 {
            return Err(IdError::BadPort);
        }
        Ok(Self { host, port, rank })
    }

    /// The host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        self.host.as_str()
    }

    /// The host's address, if it is not a name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.address()
    }

    /// The port of its metadata service.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its rank within its instance.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// `host:port` as it stands in a URL.
    pub fn authority(&self) -> String {
        self.host.authority(self.port)
    }
}

impl fmt::Display for SeedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.authority(), self.rank)
    }
}

/// Reads what `Display` writes. The last two parts are the port and the rank, so an IPv6 host may stand without
/// brackets, too.
impl FromStr for SeedIdentity {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::BadSeed(Shown::within(text, 80).to_string());
        if text.len() > MAX_SEED_IDENTITY_BYTES {
            return Err(bad());
        }
        // As `Display` writes a number: one seed has one text.
        let number = |digits: &str| {
            digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'))
        };
        let mut parts = text.rsplitn(3, ':');
        let (Some(rank), Some(port), Some(host)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad());
        };
        if !number(rank) || !number(port) {
            return Err(bad());
        }
        let rank = rank.parse().map_err(|_| bad())?;
        let port = port.parse().map_err(|_| bad())?;
        Self::new(host, port, rank)
    }
}

/// A lease: the right to read from one seed until it ends. It is a credential.
///
/// `Debug` and `Display` show only [`LeaseId::fingerprint`]; the secret is had with [`LeaseId::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct LeaseId(String);

impl LeaseId {
    /// Takes a lease id as a header carried it.
    ///
    /// # Errors
    /// [`IdError::BadLease`] when it is empty, longer than [`MAX_LEASE_ID_BYTES`] or not printable ASCII.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        let printable = text.bytes().all(|b| b.is_ascii_graphic());
        if text.is_empty() || text.len() > MAX_LEASE_ID_BYTES || !printable {
            return Err(IdError::BadLease);
        }
        Ok(Self(text))
    }

    /// The secret itself, for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// SHA-256 of the id: what a planner stores, so that a copy of its database grants nothing.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// The first 12 hex characters of [`LeaseId::hash`], as vLLM Ascend's clients log it.
    pub fn fingerprint(&self) -> String {
        hash_fingerprint(&self.hash())
    }
}

/// The first 12 hex characters of a lease's stored hash: its name in logs and snapshots.
pub fn hash_fingerprint(hash: &[u8; 32]) -> String {
    hex(&hash[..6])
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{b:02x}");
        text
    })
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId(#{})", self.fingerprint())
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_seed_has_one_identity_however_its_address_is_told() {
        for (told, identity) in [
            ("FD00:0::7", "[fd00::7]:8000:2"),
            ("[fd00::7]", "[fd00::7]:8000:2"),
            ("[fd00::7]:8000", "[fd00::7]:8000:2"),
            ("http://[fd00::7]:8000/", "[fd00::7]:8000:2"),
            ("::ffff:10.0.0.7", "10.0.0.7:8000:2"),
            ("https://Node-1.", "node-1:8000:2"),
        ] {
            let seed = SeedIdentity::told(told, 8000, 2).unwrap();
            assert_eq!(seed.to_string(), identity, "{told}");
            assert_eq!(identity.parse(), Ok(seed), "{told}");
        }
        assert_eq!("fd00::7:8000:2".parse::<SeedIdentity>().unwrap().to_string(), "[fd00::7]:8000:2");
        assert_eq!(SeedIdentity::new("h", 0, 0), Err(IdError::BadPort));
    }

    #[test]
    fn a_text_that_is_no_seed_is_refused() {
        for bad in [
            "",
            "h",
            "h:1",
            "h:1:",
            "h::0",
            ":1:0",
            "h:0:0",
            "h:65536:0",
            "h:1:4294967296",
            "h:+1:0",
            "h:01:0",
            "h:1:00",
            "h:1:-1",
            "a b:1:0",
            "h:1:0 ",
            "::1",
            "[::1:8000:0",
            "http://h:1:0",
            "10.3:1:0",
            "0.0.0.0:1:0",
            "fe80::1%eth0:1:0",
        ] {
            assert!(bad.parse::<SeedIdentity>().is_err(), "{bad}");
        }
        let long = format!("{}:1:0", "h".repeat(MAX_SEED_IDENTITY_BYTES));
        assert!(long.parse::<SeedIdentity>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn a_lease_is_never_printed_whole() {
        let id = LeaseId::new("0123456789abcdef0123456789abcdef").unwrap();
        for shown in [format!("{id}"), format!("{id:?}")] {
            assert!(!shown.contains(id.expose()), "{shown}");
            assert!(shown.contains(&id.fingerprint()), "{shown}");
        }
        assert_eq!(id.fingerprint().len(), 12);
        assert!(LeaseId::new("").is_err());
        assert!(LeaseId::new("a b").is_err());
    }

    #[test]
    fn keys_keep_their_bytes() {
        assert_eq!(SeedKey::new(vec![]), Err(IdError::EmptyKey));
        assert_eq!(
            SeedKey::new(vec![b'a'; MAX_SEED_KEY_BYTES + 1]),
            Err(IdError::KeyTooLong(MAX_SEED_KEY_BYTES + 1))
        );
        assert_eq!(SeedKey::new(vec![0xe9]).unwrap().to_string(), "é");
        assert_eq!(SeedKey::from_text("é").unwrap().as_bytes(), [0xe9]);
        assert_eq!(SeedKey::from_text("Ā").unwrap().as_bytes(), "Ā".as_bytes());
        assert!(SeedKey::new("a".repeat(64)).unwrap().is_digest());
        assert!(!SeedKey::new("A".repeat(64)).unwrap().is_digest());
    }

    proptest! {
        #[test]
        fn any_key_is_kept_exactly(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let key = SeedKey::new(bytes.clone()).unwrap();
            prop_assert_eq!(key.as_bytes(), &bytes[..]);
            let _ = (key.to_string(), key.text());
        }

        #[test]
        fn a_key_is_recognised_by_the_text_it_shows(text in "[a-zé$ %Ā√ÿÃ©]{1,12}", other in "[a-zé]{1,3}") {
            let key = SeedKey::from_text(&text).unwrap();
            prop_assert!(key.is_text(&text));
            prop_assert!(key.is_text(&key.text()));
            prop_assert_eq!(key.is_text(&other), other == text || other == key.text());
        }

        #[test]
        fn a_seed_is_read_as_it_is_written(host in "[a-z0-9-]{1,20}\\.[a-z]|::1|\\[fe80::7\\]|1:2:3:4:5:6:7:8", port in 1u16.., rank: u32) {
            let seed = SeedIdentity::new(host, port, rank).unwrap();
            prop_assert_eq!(seed.to_string().parse(), Ok(seed));
        }
    }
}
