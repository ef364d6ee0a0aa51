//! What an address asks for before anybody may listen there.

use std::net::SocketAddr;

/// Decides whether engines may listen at `addr`: off loopback a cluster key has to say who may talk,
/// and TLS has to keep what they say from being read and changed. Who opens a link calls this with
/// what it was started with, before [`Link::open`](crate::Link::open).
///
/// # Errors
/// The sentence names what is missing and the flag or command that brings it.
pub fn off_loopback_requires(addr: SocketAddr, has_key: bool, has_tls: bool) -> Result<(), String> {
    if addr.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let missing = match (has_key, has_tls) {
        (true, true) => return Ok(()),
        (false, true) => {
            "a cluster key: write 32 random bytes into a file and start every engine \
            with --cluster-key FILE"
        }
        (true, false) => "TLS: make certificates for the engines by atoll cert",
        (false, false) => {
            "a cluster key and TLS: write 32 random bytes into a file, start every \
            engine with --cluster-key FILE, and make certificates for the engines by atoll cert"
        }
    };
    Err(format!(
        "engines at {addr} can be reached by other machines, and that takes {missing} (or listen on \
        127.0.0.1)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_loopback_both_are_asked_for_and_named() {
        let ask = |addr: &str, key, tls| off_loopback_requires(addr.parse().unwrap(), key, tls);
        for addr in ["127.0.0.1:7380", "127.8.0.1:1", "[::1]:7380", "[::ffff:127.0.0.1]:7"] {
            assert_eq!(ask(addr, false, false), Ok(()), "{addr}");
        }
        for addr in ["0.0.0.0:7380", "10.0.0.1:7380", "[::]:7380", "[2001:db8::1]:7380"] {
            assert_eq!(ask(addr, true, true), Ok(()), "{addr}");
            let neither = ask(addr, false, false).unwrap_err();
            assert!(neither.contains("--cluster-key FILE") && neither.contains("atoll cert"));
            let no_key = ask(addr, false, true).unwrap_err();
            assert!(no_key.contains("--cluster-key FILE") && !no_key.contains("atoll cert"));
            let no_tls = ask(addr, true, false).unwrap_err();
            assert!(!no_tls.contains("--cluster-key FILE") && no_tls.contains("atoll cert"));
            assert!(neither.contains(addr), "{neither}");
        }
    }
}
