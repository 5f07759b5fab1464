//! Where the library listens: at a port that it takes itself, or, in versions that cannot, at one that is free.

use std::ffi::OsString;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rfork_protocol::Host;

use super::vendor::VendorError;

/// How often another port is tried, because somebody took the one that was free.
const ATTEMPTS: u32 = 8;
/// How often one of the range is tried, as the library does it.
const ATTEMPTS_IN_RANGE: u32 = 500;

/// The library's variables for the ports that it may listen at.
const RANGE: [&str; 2] = ["YR_TE_RPC_PORT_MIN", "YR_TE_RPC_PORT_MAX"];
/// Ports that may stand there: not the system's own, nor those that Linux hands out by itself.
const CONFIGURABLE: [RangeInclusive<u16>; 2] = [1_024..=32_767, 61_000..=u16::MAX];

/// Has `initialize` make the library listen at a port of `host`, which its own variables may bound. Another port is tried
/// for so long as `trying`: all of it is one call that is watched, and must not be taken for one that hangs.
///
/// It is asked for port 0 first, which newer versions take, bind and keep. Older ones call that invalid and want a
/// number: they are given one that is free now, and another if somebody takes it meanwhile.
///
/// # Errors
/// What `initialize` said last.
pub fn initialize_on_free_port(
    host: &str,
    trying: Duration,
    initialize: impl FnMut(&str) -> Result<(), VendorError>,
) -> Result<(), VendorError> {
    initialize_within(host, range(|name| std::env::var_os(name)).as_ref(), trying, initialize)
}

fn initialize_within(
    host: &str,
    range: Option<&RangeInclusive<u16>>,
    trying: Duration,
    mut initialize: impl FnMut(&str) -> Result<(), VendorError>,
) -> Result<(), VendorError> {
    match initialize(&authority(host, 0)) {
        Err(error) if error.code == VendorError::INVALID => {}
        result => return result,
    }
    let failed = |error: std::io::Error| VendorError {
        code: VendorError::RUNTIME,
        message: format!("{host} is not an address of this machine to listen on: {error}"),
    };
    let begun = Instant::now();
    let mut last = None;
    let attempts = if range.is_some() { ATTEMPTS_IN_RANGE } else { ATTEMPTS };
    for _ in 0..attempts {
        let port = if let Some(range) = range {
            fastrand::u16(range.clone())
        } else {
            let free = TcpListener::bind((host, 0));
            free.and_then(|one| one.local_addr()).map_err(failed)?.port()
        };
        match initialize(&authority(host, port)) {
            // Also the code for a port that is taken.
            Err(error) if error.code == VendorError::RUNTIME => last = Some(error),
            result => return result,
        }
        if begun.elapsed() >= trying {
            break;
        }
    }
    Err(last.unwrap_or_else(|| VendorError { code: VendorError::RUNTIME, message: "no port is free".into() }))
}

/// `host:port` as the library and its peers have it: an IPv6 address in brackets.
pub(super) fn authority(host: &str, port: u16) -> String {
    match host.parse::<Host>() {
        Ok(host) => host.authority(port),
        Err(_) => format!("{host}:{port}"),
    }
}

/// The ports that the library's variables allow. As it does itself, it leaves out with a warning what is not both of
/// them, or not within [`CONFIGURABLE`].
fn range(variable: impl Fn(&str) -> Option<OsString>) -> Option<RangeInclusive<u16>> {
    let [least, most] = RANGE.map(|name| variable(name).filter(|value| !value.is_empty()));
    if least.is_none() && most.is_none() {
        return None;
    }
    let port = |value: Option<OsString>| {
        let port: u16 = value?.to_str()?.parse().ok()?;
        CONFIGURABLE.iter().any(|ports| ports.contains(&port)).then_some(port)
    };
    match (port(least), port(most)) {
        (Some(least), Some(most)) if least <= most => Some(least..=most),
        _ => {
            let [least, most] = RANGE;
            tracing::warn!(
                "{least} and {most} are left out: both must be ports from 1024 to 65535, outside 32768 to 60999, and the \
                 first not above the second"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library of a version that takes port 0 or does not, and answers other ports with these codes in turn; gives
    /// the result and the ports that it was asked for.
    fn asked(
        takes_zero: bool,
        range: Option<&RangeInclusive<u16>>,
        code: impl Fn(usize) -> i32,
    ) -> (Result<(), i32>, Vec<u16>) {
        asked_for(Duration::from_secs(300), takes_zero, range, code)
    }

    /// The same, where another port is tried for so long.
    fn asked_for(
        trying: Duration,
        takes_zero: bool,
        range: Option<&RangeInclusive<u16>>,
        code: impl Fn(usize) -> i32,
    ) -> (Result<(), i32>, Vec<u16>) {
        let mut ports = Vec::new();
        let result = initialize_within("127.0.0.1", range, trying, |address| {
            let port: u16 = address.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
            let code = match port {
                0 if takes_zero => 0,
                0 => VendorError::INVALID,
                _ => code(ports.len()),
            };
            if port > 0 {
                ports.push(port);
            }
            if code == 0 { Ok(()) } else { Err(VendorError { code, message: "told so".into() }) }
        });
        (result.map_err(|error| error.code), ports)
    }

    #[test]
    fn a_version_that_takes_port_0_is_left_to_choose() {
        assert_eq!(asked(true, None, |_| 0), (Ok(()), vec![]));
        assert_eq!(
            asked(true, Some(&(2_000..=3_000)), |_| 0),
            (Ok(()), vec![]),
            "it reads its variables itself"
        );
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        assert_eq!(authority("fd00::7", 4_711), "[fd00::7]:4711");
        assert_eq!(authority("10.0.0.7", 0), "10.0.0.7:0");
        assert_eq!(authority("node-7", 4_711), "node-7:4711");
    }

    #[test]
    fn a_port_that_somebody_took_is_tried_anew_and_nothing_else_is() {
        let taken = |times| move |asked| if asked < times { VendorError::RUNTIME } else { 0 };
        let count = |(result, ports): (Result<(), i32>, Vec<u16>)| (result, ports.len());
        assert_eq!(count(asked(false, None, taken(0))), (Ok(()), 1));
        assert_eq!(count(asked(false, None, taken(3))), (Ok(()), 4));
        assert_eq!(count(asked(false, None, taken(1_000))), (Err(VendorError::RUNTIME), 8));
        assert_eq!(count(asked(false, None, |_| VendorError::INVALID)), (Err(VendorError::INVALID), 1));
        let refuses_0 = |address: &str| match address.rsplit(':').next() {
            Some("0") => Err(VendorError { code: VendorError::INVALID, message: "0".into() }),
            _ => Ok(()),
        };
        let elsewhere =
            initialize_within("192.0.2.1", None, Duration::ZERO, refuses_0).unwrap_err().to_string();
        assert!(elsewhere.contains("192.0.2.1 is not an address of this machine"), "{elsewhere}");
    }

    #[test]
    fn only_ports_of_the_range_are_tried() {
        let (result, ports) = asked(false, Some(&(15_000..=15_002)), |_| VendorError::RUNTIME);
        assert_eq!((result, ports.len()), (Err(VendorError::RUNTIME), 500));
        assert!(ports.iter().all(|port| (15_000..=15_002).contains(port)));
        assert_eq!(asked(false, Some(&(15_001..=15_001)), |_| 0), (Ok(()), vec![15_001]));
        let (result, ports) =
            asked_for(Duration::ZERO, false, Some(&(15_000..=15_002)), |_| VendorError::RUNTIME);
        assert_eq!((result, ports.len()), (Err(VendorError::RUNTIME), 1), "its time is over");
    }

    #[test]
    fn a_range_is_both_variables_and_ports_that_nobody_hands_out() {
        let told = |least: Option<&str>, most: Option<&str>| {
            range(|name| if name == RANGE[0] { least.map(Into::into) } else { most.map(Into::into) })
        };
        assert_eq!(told(Some("15000"), Some("17000")), Some(15_000..=17_000));
        assert_eq!(told(Some("61000"), Some("65535")), Some(61_000..=65_535));
        assert_eq!(told(Some("1024"), Some("1024")), Some(1_024..=1_024));
        assert_eq!(told(None, None), None);
        assert_eq!(told(Some(""), Some("")), None);
        for (least, most) in [
            (Some("15000"), None),
            (None, Some("15000")),
            (Some("15000"), Some("")),
            (Some("17000"), Some("15000")),
            (Some("1023"), Some("15000")),
            (Some("15000"), Some("40000")),
            (Some("15000"), Some("65536")),
            (Some("15000"), Some("15000x")),
        ] {
            assert_eq!(told(least, most), None, "{least:?}, {most:?}");
        }
    }
}
