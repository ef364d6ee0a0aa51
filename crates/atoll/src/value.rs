//! Values of flags: addresses, sizes, times and modes, each with one text form that is the same on
//! the command line, in a variable and in the configuration file.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use atoll_env::throttle::Limit;

/// Where to listen: an address, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Open no listener.
    Off,
    /// Listen here; port 0 picks a free one.
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        // `:7379` and `:0` are short for loopback, the only address that is safe to assume.
        let full = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.to_owned() };
        resolve(&full).map(Listen::At).ok_or_else(|| {
            "expected an address like 127.0.0.1:7379, [::1]:7379 or :0, or the word off".to_owned()
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::At(addr) => addr.fmt(f),
        }
    }
}

/// The address of a server to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Server(pub(crate) SocketAddr);

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Server, String> {
        match text.parse()? {
            Listen::At(addr) if addr.port() != 0 => Ok(Server(addr)),
            _ => Err("expected the address of a running server, like 127.0.0.1:7379".to_owned()),
        }
    }
}

fn resolve(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.to_socket_addrs().ok()?.next())
}

/// An amount of memory, in bytes, larger than zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    /// Reads `4096`, `512K`, `512KB`, `512KiB`, ...: units are powers of 1024 in each spelling, as
    /// the memory of machines is.
    fn from_str(text: &str) -> Result<Size, String> {
        let expected = || "expected a size like 512MiB or 2GiB, larger than zero".to_owned();
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(expected()),
        };
        let number: u64 = number.parse().map_err(|_| expected())?;
        match number.checked_mul(1 << shift) {
            Some(bytes) if bytes > 0 => Ok(Size(bytes)),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Size {
    /// Shows the size in the largest unit that leaves at least one, with at most one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in units {
            if self.0 >> shift > 0 {
                let tenths = (u128::from(self.0) * 10) >> shift;
                return match tenths % 10 {
                    0 => write!(f, "{} {unit}", tenths / 10),
                    tenth => write!(f, "{}.{tenth} {unit}", tenths / 10),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// How much background work may read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IoLimit(pub(crate) Limit);

impl FromStr for IoLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<IoLimit, String> {
        match text {
            "off" => Ok(IoLimit(Limit::None)),
            "auto" => Ok(IoLimit(Limit::Auto)),
            _ => match text.parse() {
                Ok(Size(bytes)) => Ok(IoLimit(Limit::Fixed(bytes))),
                Err(_) => {
                    Err("expected a size a second like 200MiB, or the words auto or off".to_owned())
                }
            },
        }
    }
}

/// A count, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Count(pub(crate) u64);

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Count, String> {
        match text.replace('_', "").parse() {
            Ok(count) if count > 0 => Ok(Count(count)),
            _ => Err("expected a whole number, at least 1".to_owned()),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long a key lives; whole milliseconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttl(pub(crate) Duration);

impl FromStr for Ttl {
    type Err = String;

    fn from_str(text: &str) -> Result<Ttl, String> {
        let expected = || "expected a time like 500ms, 30s, 15m, 12h or 7d".to_owned();
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
        let (number, unit) = text.split_at(unit_at);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 3600 * 1000,
            "d" => 24 * 3600 * 1000,
            _ => return Err(expected()),
        };
        let number: u64 = number.parse().map_err(|_| expected())?;
        match number.checked_mul(millis) {
            Some(millis) if millis > 0 => Ok(Ttl(Duration::from_millis(millis))),
            _ => Err(expected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_full_short_or_off() {
        let at = |text: &str| text.parse::<Listen>().ok().map(|listen| listen.to_string());
        assert_eq!(at("off").as_deref(), Some("off"));
        assert_eq!(at("0.0.0.0:7379").as_deref(), Some("0.0.0.0:7379"));
        assert_eq!(at("[::1]:1").as_deref(), Some("[::1]:1"));
        assert_eq!(at(":0").as_deref(), Some("127.0.0.1:0"));
        for wrong in ["", "on", "7379", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1", ":x"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
        assert!("off".parse::<Server>().is_err());
        assert!("127.0.0.1:0".parse::<Server>().is_err());
    }

    #[test]
    fn sizes_count_in_powers_of_1024_and_show_the_largest_unit() {
        let cases: [(&str, Option<(u64, &str)>); 12] = [
            ("1", Some((1, "1 B"))),
            ("1023b", Some((1023, "1023 B"))),
            ("1k", Some((1024, "1 KiB"))),
            ("1536KB", Some((1536 << 10, "1.5 MiB"))),
            ("512MiB", Some((512 << 20, "512 MiB"))),
            ("2g", Some((2 << 30, "2 GiB"))),
            ("16777215T", Some((16_777_215 << 40, "16777215 TiB"))),
            ("16777216T", None),
            ("0", None),
            ("0GiB", None),
            ("1.5G", None),
            ("-1", None),
        ];
        for (text, expected) in cases {
            let size = text.parse::<Size>().ok();
            assert_eq!(size.map(|s| s.0), expected.map(|e| e.0), "{text}");
            assert_eq!(size.map(|s| s.to_string()).as_deref(), expected.map(|e| e.1), "{text}");
        }
        for wrong in ["", "K", "1X", "1 GiB", "99999999999999999999"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_ttl_needs_a_unit_and_is_at_least_a_millisecond() {
        let millis = |text: &str| text.parse::<Ttl>().ok().map(|ttl| ttl.0.as_millis());
        assert_eq!(millis("1ms"), Some(1));
        assert_eq!(millis("2s"), Some(2000));
        assert_eq!(millis("3m"), Some(180_000));
        assert_eq!(millis("1d"), Some(86_400_000));
        for wrong in ["", "5", "0s", "s", "1w", "-1s", "18446744073709551615d"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }
}
