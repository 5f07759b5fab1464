//! How long newer versions of the library wait themselves. Older ones wait for ever.

use std::ffi::OsString;
use std::time::Duration;

/// The library's variables, in milliseconds, and what it takes without them.
const CONNECT: (&str, u64) = ("YR_TE_HIXL_CONNECT_TIMEOUT_MS", 10_000);
const TRANSFER: (&str, u64) = ("YR_TE_HIXL_TRANSFER_TIMEOUT_MS", 10_000);
const READ_LEASE: (&str, u64) = ("YR_TE_HIXL_READ_LEASE_TTL_MS", 30_000);
/// How often it tries a read before it fails.
const READ_ATTEMPTS: u32 = 2;
/// How long a call may take that reads nothing: its `finalize` waits for 30 s for peers that read.
pub(super) const CALL: Duration = Duration::from_secs(35);
/// What it needs beside its own waits.
const GRACE: Duration = Duration::from_secs(5);
/// The longest that is believed of a variable.
const MOST: Duration = Duration::from_secs(24 * 3600);

/// How long the library waits itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to a peer.
    pub connect: Duration,
    /// For the bytes of one call.
    pub transfer: Duration,
    /// How long a peer that has begun to read keeps registrations and the library from ending.
    pub read_lease: Duration,
}

impl Timeouts {
    /// As the environment has them.
    pub fn from_env() -> Self {
        Self::of(|name| std::env::var_os(name))
    }

    /// What is no number above 0 is the library's to refuse.
    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let time = |(name, usual): (&str, u64)| {
            let told = variable(name).and_then(|value| value.to_str()?.parse().ok());
            Duration::from_millis(told.filter(|ms| *ms > 0).unwrap_or(usual)).min(MOST)
        };
        Self { connect: time(CONNECT), transfer: time(TRANSFER), read_lease: time(READ_LEASE) }
    }

    /// How long a read may take until the library has given it up itself: one that lasts longer hangs.
    pub(super) fn read(self) -> Duration {
        (self.connect + self.transfer) * READ_ATTEMPTS + GRACE
    }

    /// How long peers that read may keep it from ending.
    pub(super) fn not_ready(self) -> Duration {
        self.read_lease + GRACE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_library_s_own_unless_its_variables_say_otherwise() {
        let seconds = Duration::from_secs;
        let told = |pairs: &'static [(&str, &str)]| {
            Timeouts::of(move |name| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            })
        };
        let usual = Timeouts { connect: seconds(10), transfer: seconds(10), read_lease: seconds(30) };
        assert_eq!(told(&[]), usual);
        assert_eq!(told(&[(CONNECT.0, "0"), (TRANSFER.0, "soon"), (READ_LEASE.0, "")]), usual);
        let other = told(&[(CONNECT.0, "500"), (TRANSFER.0, "60000"), (READ_LEASE.0, "61000")]);
        assert_eq!(
            other,
            Timeouts { connect: Duration::from_millis(500), transfer: seconds(60), read_lease: seconds(61) }
        );
        assert_eq!(told(&[(TRANSFER.0, "18446744073709551615")]).transfer, MOST);
        // Each of two tries may wait for both.
        assert!(usual.read() > seconds(40) && other.read() > seconds(121));
        assert!(usual.not_ready() > usual.read_lease);
    }
}
