//! Configuration a client can see, and the part of it a client can change.
//!
//! The parameters are data: name, how to show it, how to set it. Only what exists is listed; a
//! name that is not gets Redis's error.

use crate::store::{DATABASES, Durability};

/// What can be configured. The server sets it at its start, CONFIG SET changes it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The password of the default user; empty for none.
    pub requirepass: Vec<u8>,
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Most connections at a time.
    pub maxclients: usize,
    /// Seconds after which an idle connection is closed; 0 for never.
    pub timeout_s: u64,
    /// The addresses listened on, for CONFIG GET.
    pub bind: String,
    /// The port listened on, for CONFIG GET and INFO.
    pub port: u16,
    /// The data directory, for CONFIG GET.
    pub dir: String,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            requirepass: Vec::new(),
            durability: Durability::Synced,
            maxclients: 10_000,
            timeout_s: 0,
            bind: "127.0.0.1".to_owned(),
            port: 7379,
            dir: String::new(),
        }
    }
}

/// Changes a parameter, or says what is wrong with the value.
type Setter = fn(&mut Config, &[u8]) -> Result<(), String>;

/// A parameter.
pub(crate) struct Parameter {
    pub name: &'static str,
    pub get: fn(&Config) -> Vec<u8>,
    /// `None` if it is fixed while the server runs.
    pub set: Option<Setter>,
}

/// The parameters, sorted by name.
pub(crate) static PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "appendfsync",
        get: |config| config.durability.appendfsync().into(),
        set: Some(|config, value| {
            // In the order in which Redis names them in its error.
            let modes = [Durability::Interval, Durability::Synced, Durability::Buffered];
            config.durability = choose(value, modes, Durability::appendfsync)?;
            Ok(())
        }),
    },
    Parameter { name: "appendonly", get: |_| b"yes".to_vec(), set: None },
    Parameter { name: "bind", get: |config| config.bind.clone().into_bytes(), set: None },
    Parameter { name: "databases", get: |_| number(DATABASES), set: None },
    Parameter { name: "dir", get: |config| config.dir.clone().into_bytes(), set: None },
    Parameter {
        name: "durability",
        get: |config| config.durability.name().into(),
        set: Some(|config, value| {
            let modes = [Durability::Synced, Durability::Interval, Durability::Buffered];
            config.durability = choose(value, modes, Durability::name)?;
            Ok(())
        }),
    },
    Parameter {
        name: "maxclients",
        get: |config| number(config.maxclients),
        set: Some(|config, value| {
            config.maxclients = integer(value, 1, u64::from(u32::MAX))? as usize;
            Ok(())
        }),
    },
    Parameter { name: "port", get: |config| number(config.port.into()), set: None },
    Parameter {
        name: "proto-max-bulk-len",
        get: |_| number(atoll_resp::Limits::CLIENT.bulk),
        set: None,
    },
    Parameter {
        name: "requirepass",
        get: |config| config.requirepass.clone(),
        set: Some(|config, value| {
            config.requirepass = value.to_vec();
            Ok(())
        }),
    },
    Parameter { name: "save", get: |_| Vec::new(), set: None },
    Parameter {
        name: "timeout",
        get: |config| config.timeout_s.to_string().into_bytes(),
        set: Some(|config, value| {
            config.timeout_s = integer(value, 0, i32::MAX as u64)?;
            Ok(())
        }),
    },
];

fn number(value: usize) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn integer(value: &[u8], min: u64, max: u64) -> Result<u64, String> {
    let value = atoll_resp::number::parse_i64(value)
        .ok_or_else(|| "argument couldn't be parsed into an integer".to_owned())?;
    u64::try_from(value)
        .ok()
        .filter(|value| (min..=max).contains(value))
        .ok_or_else(|| format!("argument must be between {min} and {max} inclusive"))
}

fn choose(
    value: &[u8],
    modes: [Durability; 3],
    name: fn(Durability) -> &'static str,
) -> Result<Durability, String> {
    modes.into_iter().find(|mode| value.eq_ignore_ascii_case(name(*mode).as_bytes())).ok_or_else(
        || {
            let names = modes.map(name).join(", ");
            format!("argument(s) must be one of the following: {names}")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_sorted_and_show_what_was_set() {
        assert!(PARAMETERS.is_sorted_by_key(|parameter| parameter.name));
        let mut config = Config::default();
        for (name, value, shown) in [
            ("appendfsync", "everysec", "everysec"),
            ("durability", "BUFFERED", "buffered"),
            ("maxclients", "12", "12"),
            ("requirepass", "secret", "secret"),
            ("timeout", "0", "0"),
        ] {
            let parameter = PARAMETERS.iter().find(|p| p.name == name).unwrap();
            parameter.set.unwrap()(&mut config, value.as_bytes()).unwrap();
            assert_eq!((parameter.get)(&config), shown.as_bytes());
        }
        assert_eq!(config.durability, Durability::Buffered, "set last under its other name");
    }
}
