//! For whom proxies say that they speak: `X-Forwarded-For`, and `Forwarded` of RFC 7239.
//!
//! Each proxy writes behind what was there before, so what a client wrote itself stands first. Whatever cannot be read
//! is told as such and never skipped: what stands before it might be the client's.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::header::FORWARDED;
use axum::http::{HeaderMap, HeaderName};

/// Addresses, separated by commas.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Those for whom the last `most` proxies speak, the last one's first; `None` for one who is hidden, or whose address
/// cannot be read.
///
/// Where both headers are there, they count as far as they agree: a proxy that writes one of them passes on what a client
/// wrote into the other, and which one that is cannot be seen.
pub(super) fn spoken_for(headers: &HeaderMap, most: usize) -> Vec<Option<IpAddr>> {
    let x_forwarded_for = last(headers, &X_FORWARDED_FOR, addresses, most);
    let forwarded = last(headers, &FORWARDED, elements, most);
    match (headers.contains_key(X_FORWARDED_FOR), headers.contains_key(FORWARDED)) {
        (true, false) => x_forwarded_for,
        (false, _) => forwarded,
        (true, true) => (0..x_forwarded_for.len().max(forwarded.len()))
            .map(|at| if x_forwarded_for.get(at) == forwarded.get(at) { forwarded[at] } else { None })
            .collect(),
    }
}

/// The last entries of a list, the last one first. Several headers are one list.
fn last<T>(headers: &HeaderMap, name: &HeaderName, read: fn(&str) -> Vec<T>, most: usize) -> Vec<T> {
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    let entries = lines
        .into_iter()
        .rev()
        .flat_map(|line| read(&String::from_utf8_lossy(line.as_bytes())).into_iter().rev());
    entries.take(most).collect()
}

/// A line of `X-Forwarded-For`. Empty entries count as none.
fn addresses(line: &str) -> Vec<Option<IpAddr>> {
    line.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(node).collect()
}

/// The `for` of each element in a line of `Forwarded`.
fn elements(line: &str) -> Vec<Option<IpAddr>> {
    let elements = split_outside_quotes(line, ',').map(str::trim).filter(|element| !element.is_empty());
    elements.map(|element| of_element(element).and_then(node)).collect()
}

/// The value of an element's `for`, if the whole element is well formed. A quote that a client has left open takes in
/// what the proxy writes behind it: the element is no pair then, and believed in nothing.
fn of_element(element: &str) -> Option<&str> {
    let mut found = None;
    for pair in split_outside_quotes(element, ';').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return None;
        }
        let is_whole = match value.strip_prefix('"') {
            // Nobody needs an escape in an address.
            Some(rest) => rest.strip_suffix('"').is_some_and(|inside| !inside.contains(['"', '\\'])),
            None => !value.is_empty() && !value.contains(['"', '\\']),
        };
        if !is_whole {
            return None;
        }
        if name.eq_ignore_ascii_case("for") && found.replace(value).is_some() {
            return None;
        }
    }
    found
}

/// Parts a text at those separators that do not stand in quotes.
fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |sign| {
        is_quoted ^= sign == '"';
        sign == separator && !is_quoted
    })
}

/// An address with or without quotes, brackets and port; `None` for `unknown`, `_hidden` and whatever else.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text).trim();
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return None;
        }
        ipv6(address)?
    } else if text.matches(':').count() == 1 {
        let (address, port) = text.split_once(':')?;
        if !is_port(port) {
            return None;
        }
        IpAddr::V4(address.parse().ok()?)
    } else {
        text.parse().ok().or_else(|| ipv6(text))?
    };
    Some(address.to_canonical())
}

/// An IPv6 address. The zone that a proxy may tell is the proxy's own affair.
fn ipv6(text: &str) -> Option<IpAddr> {
    let address = text.split('%').next().unwrap_or_default();
    address.parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

/// A port, or the name that hides one.
fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        }
        None => (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(name: &'static str, lines: &[&[u8]]) -> Vec<Option<String>> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_bytes(line).unwrap());
        }
        spoken_for(&headers, 4).iter().map(|one| one.map(|address| address.to_string())).collect()
    }

    #[test]
    fn every_usual_form_of_an_address_is_read() {
        for (written, address) in [
            ("10.1.0.7", "10.1.0.7"),
            ("10.1.0.7:4711", "10.1.0.7"),
            (" 10.1.0.7 ", "10.1.0.7"),
            ("\"10.1.0.7:4711\"", "10.1.0.7"),
            ("10.1.0.7:_hidden.port", "10.1.0.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("2001:DB8:0::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("\"[2001:db8::7]:4711\"", "2001:db8::7"),
            ("fe80::7%eth0", "fe80::7"),
            ("[fe80::7%25eth0]:4711", "fe80::7"),
            ("::ffff:10.1.0.7", "10.1.0.7"),
            ("[::ffff:10.1.0.7]:4711", "10.1.0.7"),
            ("::ffff:a01:7", "10.1.0.7"),
        ] {
            assert_eq!(
                node(written.trim()).map(|one| one.to_string()).as_deref(),
                Some(address),
                "{written}"
            );
            assert_eq!(
                read("x-forwarded-for", &[written.as_bytes()]),
                [Some(address.to_owned())],
                "{written}"
            );
            let quoted = format!("for=\"{}\"", written.trim().trim_matches('"'));
            assert_eq!(read("forwarded", &[quoted.as_bytes()]), [Some(address.to_owned())], "{quoted}");
        }
    }

    #[test]
    fn what_is_no_address_is_told_as_such() {
        for written in [
            "unknown",
            "_hidden",
            "10.1.0.7:",
            "10.1.0.7:x",
            "10.1.0.7:123456",
            "10.1.0.7:_",
            "10.1.7",
            "[2001:db8::7",
            "[2001:db8::7]4711",
            "[10.1.0.7]",
            "host.example",
            "\"10.1.0.7",
            "é",
        ] {
            assert_eq!(read("x-forwarded-for", &[written.as_bytes()]), [None], "{written}");
            assert_eq!(read("forwarded", &[format!("for={written}").as_bytes()]), [None], "{written}");
        }
        assert_eq!(read("x-forwarded-for", &[b"\xe9, 10.1.0.7"]), [Some("10.1.0.7".into()), None]);
    }

    #[test]
    fn the_last_proxy_s_is_the_first_and_several_headers_are_one_list() {
        let some = |address: &str| Some(address.to_owned());
        let lines: &[&[u8]] = &[b"10.1.0.1, unknown", b", 10.1.0.2,,10.1.0.3 ,"];
        assert_eq!(
            read("x-forwarded-for", lines),
            [some("10.1.0.3"), some("10.1.0.2"), None, some("10.1.0.1")]
        );
        let lines: &[&[u8]] = &[
            b"for=10.1.0.1;proto=http;by=203.0.113.43",
            br#"For="[2001:db8:cafe::17]:4711" ; by="_a,b;c" , proto=https, FOR = 10.1.0.2"#,
        ];
        assert_eq!(
            read("forwarded", lines),
            [some("10.1.0.2"), None, some("2001:db8:cafe::17"), some("10.1.0.1")]
        );
        assert_eq!(read("x-forwarded-for", &[b"10.1.0.1,10.1.0.2,10.1.0.3,10.1.0.4,10.1.0.5"]).len(), 4);
    }

    #[test]
    fn an_element_that_is_not_well_formed_is_believed_in_nothing() {
        for line in [
            r#"for=6.6.6.6;x=", for="[2001:db8::7]""#,
            r#"for=6.6.6.6;", for="[2001:db8::7]""#,
            "for=10.1.0.1;for=10.1.0.2",
            "for=10.1.0.1;x",
            "for=10.1.0.1;x=",
            "10.1.0.1",
            "for",
            "by=10.1.0.1",
        ] {
            assert!(read("forwarded", &[line.as_bytes()])[0].is_none(), "{line}");
        }
    }

    #[test]
    fn both_headers_count_as_far_as_they_agree() {
        let (client, proxy, none) = ("10.1.0.7".parse().ok(), "10.9.0.2".parse().ok(), None);
        for (x_forwarded_for, forwarded, told) in [
            (Some("10.1.0.7"), None, &[client][..]),
            (None, Some("for=10.1.0.7"), &[client]),
            (Some("10.1.0.7, 10.9.0.2"), Some("for=10.1.0.7, for=10.9.0.2"), &[proxy, client]),
            // The client wrote the one, the proxy the other.
            (Some("10.1.0.7"), Some("for=6.6.6.6"), &[none]),
            (Some("6.6.6.6"), Some("for=10.1.0.7"), &[none]),
            (Some("6.6.6.6, 10.9.0.2"), Some("for=10.1.0.7, for=10.9.0.2"), &[proxy, none]),
            (Some("6.6.6.6, 10.1.0.7"), Some("for=10.1.0.7"), &[client, none]),
            (Some(""), Some("for=10.1.0.7"), &[none]),
        ] {
            let mut headers = HeaderMap::new();
            let written = [(X_FORWARDED_FOR, x_forwarded_for), (FORWARDED, forwarded)];
            for (name, value) in written.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                headers.insert(name, HeaderValue::from_static(value));
            }
            assert_eq!(spoken_for(&headers, 4), told, "{headers:?}");
        }
    }
}
