//! Who may ask: only under a name that is ours, and with the password if there is one.
//!
//! # Names
//! A page that a browser has loaded from anywhere can make a name of its own resolve to 127.0.0.1 and
//! then talk to us as if it were our page (DNS rebinding). Its requests carry its own name in `Host`.
//! So a name is served only if nobody else can own it: an address (that of the listener, or a loopback
//! one; every one if the listener has all), or `localhost`. Under other names the API is served only
//! to who gives the password, which such a page does not know.
//!
//! An `Origin` header says which page made a browser send the request: if it is not ours, it is
//! refused likewise.

use std::net::{IpAddr, SocketAddr};

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};
use hyper::http::request::Parts;

use super::Refusal;
use super::bytes::{STANDARD, decode};

/// Decides who may ask.
pub(super) struct Guard {
    bound: IpAddr,
    password: Password,
}

/// Tells the password as it is now, for it may be changed while the server runs; empty if there is
/// none.
pub type Password = Box<dyn Fn() -> Vec<u8>>;

impl Guard {
    pub(super) fn new(bound: SocketAddr, password: Password) -> Guard {
        Guard { bound: bound.ip().to_canonical(), password }
    }

    /// Refuses requests under a name that may be somebody else's.
    pub(super) fn check_origin(&self, parts: &Parts) -> Result<(), Refusal> {
        let password = (self.password)();
        if !password.is_empty() && has_password(parts, &password) {
            return Ok(());
        }
        // A target with a name of its own overrides the header (RFC 9112, 3.2.2).
        let host = match parts.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => only(parts, HOST)?,
        };
        let forbidden = |what: &str, name: &str| {
            let shown: String = name.chars().take(100).collect();
            Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "forbidden_host",
                format!(
                    "{what} '{}' is not served, because others may own that name; use the \
                     address, or localhost, or set a password and give it",
                    shown.escape_debug()
                ),
            ))
        };
        match host {
            Some(name) if self.is_ours(name) => {}
            name => return forbidden("the host", name.unwrap_or_default()),
        }
        match only(parts, ORIGIN)? {
            None => Ok(()),
            Some(origin) => match origin.split_once("://") {
                Some((_, name)) if self.is_ours(name) => Ok(()),
                _ => forbidden("the origin", origin),
            },
        }
    }

    /// Refuses requests without the password, if there is one.
    pub(super) fn check_password(&self, parts: &Parts) -> Result<(), Refusal> {
        let password = (self.password)();
        if password.is_empty() || has_password(parts, &password) {
            return Ok(());
        }
        Err(Refusal::unauthorized(if parts.headers.contains_key(AUTHORIZATION) {
            "the password is wrong"
        } else {
            "the password is needed; send it as Authorization: Bearer PASSWORD"
        }))
    }

    /// Returns whether nobody else can own a name (with or without a port).
    fn is_ours(&self, name: &str) -> bool {
        let Some(host) = without_port(name) else { return false };
        if let Ok(address) = host.parse::<IpAddr>() {
            let address = address.to_canonical();
            return address.is_loopback() || self.bound.is_unspecified() || address == self.bound;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        // RFC 6761: names below localhost are loopback as well.
        host == "localhost" || host.ends_with(".localhost")
    }
}

/// Returns whether a request gives the password.
fn has_password(parts: &Parts, password: &[u8]) -> bool {
    let Some(given) = parts.headers.get(AUTHORIZATION) else { return false };
    let Some(space) = given.as_bytes().iter().position(|&byte| byte == b' ') else {
        return false;
    };
    let (scheme, rest) = given.as_bytes().split_at(space);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return is_equal(rest, password);
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return false;
    }
    // Any user: there is one password for all.
    let Some(pair) = decode(rest, STANDARD) else { return false };
    let colon = pair.iter().position(|&byte| byte == b':');
    colon.is_some_and(|colon| is_equal(&pair[colon + 1..], password))
}

/// Returns a header that may come once.
fn only(parts: &Parts, name: HeaderName) -> Result<Option<&str>, Refusal> {
    let mut all = parts.headers.get_all(&name).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Refusal::bad(format!("the {name} header is no text"))),
        },
        (Some(_), Some(_)) => Err(Refusal::bad(format!("there are several {name} headers"))),
    }
}

fn without_port(name: &str) -> Option<&str> {
    if let Some(rest) = name.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        return (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(address);
    }
    match name.split_once(':') {
        Some((host, port)) => is_port(port).then_some(host),
        None => Some(name),
    }
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Compares in a time that tells the length at most.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get("/v1/kv/a/b");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn guard(bound: &str, password: Option<&str>) -> Guard {
        let password = password.unwrap_or_default().as_bytes().to_vec();
        Guard::new(bound.parse().unwrap(), Box::new(move || password.clone()))
    }

    #[test]
    fn names_that_others_may_own_are_refused() {
        let loopback = guard("127.0.0.1:7480", None);
        let one = guard("192.0.2.7:80", None);
        let all = guard("0.0.0.0:7480", None);
        for (host, at_loopback, at_one, at_all) in [
            ("localhost", true, true, true),
            ("LocalHost:7480", true, true, true),
            ("localhost.", true, true, true),
            ("a.localhost:1", true, true, true),
            ("127.0.0.1:7480", true, true, true),
            ("127.9.9.9", true, true, true),
            ("[::1]:7480", true, true, true),
            ("[::ffff:127.0.0.1]", true, true, true),
            ("192.0.2.7", false, true, true),
            ("192.0.2.8:80", false, false, true),
            ("[2001:db8::1]", false, false, true),
            ("evil.example", false, false, false),
            ("localhost.evil.example", false, false, false),
            ("evillocalhost", false, false, false),
            ("127.0.0.1.evil.example", false, false, false),
            ("127.0.0.1:7480:x", false, false, false),
            ("[::1", false, false, false),
            ("", false, false, false),
        ] {
            for (guard, is_ours) in [(&loopback, at_loopback), (&one, at_one), (&all, at_all)] {
                let refused = guard.check_origin(&parts(&[("host", host)]));
                assert_eq!(refused.is_ok(), is_ours, "{host:?} at {}", guard.bound);
            }
        }
        let refused = loopback.check_origin(&parts(&[])).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "no name at all");
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(loopback.check_origin(&parts(&twice)).unwrap_err().status, 400);
    }

    #[test]
    fn pages_of_others_are_refused() {
        let guard = guard("127.0.0.1:7480", None);
        for (origin, is_ours) in [
            ("http://localhost:3000", true),
            ("http://127.0.0.1", true),
            ("https://evil.example", false),
            ("null", false),
        ] {
            let parts = parts(&[("host", "localhost"), ("origin", origin)]);
            assert_eq!(guard.check_origin(&parts).is_ok(), is_ours, "{origin}");
        }
    }

    #[test]
    fn the_password_opens_every_name_and_nothing_else_opens_data() {
        let guard = guard("127.0.0.1:7480", Some("secret:x"));
        for (given, is_right) in [
            ("Bearer secret:x", true),
            ("bearer  secret:x", true),
            // anybody:secret:x
            ("Basic YW55Ym9keTpzZWNyZXQ6eA==", true),
            ("Bearer secret", false),
            ("Bearer secret:xx", false),
            ("Bearer", false),
            ("Basic c2VjcmV0Ong", false),
            ("Basic ?", false),
            ("Digest secret:x", false),
        ] {
            let parts = parts(&[("host", "db.example"), ("authorization", given)]);
            assert_eq!(guard.check_password(&parts).is_ok(), is_right, "{given}");
            assert_eq!(guard.check_origin(&parts).is_ok(), is_right, "{given}");
        }
        let missing = guard.check_password(&parts(&[("host", "localhost")])).unwrap_err();
        assert_eq!(missing.status, StatusCode::UNAUTHORIZED);
        assert!(missing.header.is_some());
    }
}
