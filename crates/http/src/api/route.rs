//! Paths, methods and parameters: what a request is about, by its first line alone.
//!
//! ```text
//!   /v1/kv/{keyspace}/{key}     the keyspace ends at the first slash, so its own slashes are %2F;
//!                               the key is all that follows
//!   /v1/keyspaces/{name}        the name is all that follows
//! ```
//!
//! In paths and parameters `%xx` is a byte; in parameters `+` is a space, as forms write it.

use std::collections::BTreeMap;

use hyper::Method;

use super::Refusal;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// A key.
    Key { keyspace: String, key: Vec<u8> },
    /// The keys of a keyspace.
    Keys { keyspace: String },
    /// Batches.
    Txn,
    /// All keyspaces.
    Keyspaces,
    /// A keyspace.
    Keyspace { name: String },
    /// All shards.
    Shards,
    /// Every shard is to be split.
    DoubleShards,
    /// A shard is to be split.
    SplitShard,
    /// The description of all this.
    OpenApi,
}

/// A path and what can be done there.
pub(super) struct Endpoint {
    pub(super) template: &'static str,
    pub(super) methods: &'static [Method],
}

/// Everything there is, the pages included.
#[cfg(test)]
pub(super) const ENDPOINTS: [&Endpoint; 11] = [
    &KEY, &KEYS, &TXN, &KEYSPACES, &KEYSPACE, &SHARDS, &DOUBLE, &SPLIT, &OPENAPI, &METRICS, &HEALTH,
];

const KEY: Endpoint = Endpoint {
    template: "/v1/kv/{keyspace}/{key}",
    methods: &[Method::GET, Method::PUT, Method::DELETE],
};
const KEYS: Endpoint = Endpoint { template: "/v1/kv/{keyspace}", methods: &[Method::GET] };
const TXN: Endpoint = Endpoint { template: "/v1/txn", methods: &[Method::POST] };
const KEYSPACES: Endpoint = Endpoint { template: "/v1/keyspaces", methods: &[Method::GET] };
const KEYSPACE: Endpoint = Endpoint {
    template: "/v1/keyspaces/{name}",
    methods: &[Method::GET, Method::PUT, Method::DELETE],
};
const SHARDS: Endpoint = Endpoint { template: "/v1/shards", methods: &[Method::GET] };
const DOUBLE: Endpoint = Endpoint { template: "/v1/shards/double", methods: &[Method::POST] };
const SPLIT: Endpoint = Endpoint { template: "/v1/shards/split", methods: &[Method::POST] };
const OPENAPI: Endpoint = Endpoint { template: "/openapi.json", methods: &[Method::GET] };
#[cfg(test)]
const METRICS: Endpoint = Endpoint { template: "/metrics", methods: &[Method::GET] };
#[cfg(test)]
const HEALTH: Endpoint = Endpoint { template: "/health", methods: &[Method::GET] };

impl Resource {
    pub(super) fn endpoint(&self) -> &'static Endpoint {
        match self {
            Resource::Key { .. } => &KEY,
            Resource::Keys { .. } => &KEYS,
            Resource::Txn => &TXN,
            Resource::Keyspaces => &KEYSPACES,
            Resource::Keyspace { .. } => &KEYSPACE,
            Resource::Shards => &SHARDS,
            Resource::DoubleShards => &DOUBLE,
            Resource::SplitShard => &SPLIT,
            Resource::OpenApi => &OPENAPI,
        }
    }

    /// Returns what is to be done, `None` if it cannot be done here. HEAD is GET without the body,
    /// which hyper leaves out.
    pub(super) fn method(&self, asked: &Method) -> Option<&'static Method> {
        let wanted = if *asked == Method::HEAD { &Method::GET } else { asked };
        self.endpoint().methods.iter().find(|method| *method == wanted)
    }
}

/// Returns the refusal of a method.
pub(super) fn method_not_allowed(resource: &Resource) -> Refusal {
    let mut allow = String::new();
    for method in resource.endpoint().methods {
        if !allow.is_empty() {
            allow.push_str(", ");
        }
        allow.push_str(method.as_str());
        if *method == Method::GET {
            allow.push_str(", HEAD");
        }
    }
    Refusal::not_allowed(resource.endpoint().template, &allow)
}

/// Finds out what a path is about.
pub(super) fn find(path: &str) -> Result<Option<Resource>, Refusal> {
    Ok(Some(match path {
        "/v1/txn" => Resource::Txn,
        "/v1/keyspaces" => Resource::Keyspaces,
        "/v1/shards" => Resource::Shards,
        "/v1/shards/double" => Resource::DoubleShards,
        "/v1/shards/split" => Resource::SplitShard,
        "/openapi.json" => Resource::OpenApi,
        _ => {
            if let Some(name) = path.strip_prefix("/v1/keyspaces/") {
                return Ok(Some(Resource::Keyspace { name: name_of(name)? }));
            }
            let Some(rest) = path.strip_prefix("/v1/kv/") else { return Ok(None) };
            match rest.split_once('/') {
                None => Resource::Keys { keyspace: name_of(rest)? },
                Some((_, "")) => {
                    return Err(Refusal::bad(
                        "the key is missing; without the last slash the path is that of a scan",
                    ));
                }
                Some((name, key)) => {
                    Resource::Key { keyspace: name_of(name)?, key: decode(key, false)? }
                }
            }
        }
    }))
}

fn name_of(encoded: &str) -> Result<String, Refusal> {
    String::from_utf8(decode(encoded, false)?)
        .map_err(|_| Refusal::bad("the name of a keyspace is UTF-8"))
}

fn decode(text: &str, in_query: bool) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let value = digit().and_then(|high| Some(high * 16 + digit()?));
                value
                    .ok_or_else(|| Refusal::bad("a % is not followed by two hexadecimal digits"))?
                    as u8
            }
            b'+' if in_query => b' ',
            byte => byte,
        });
    }
    Ok(bytes)
}

/// The parameters of a request. Taken one by one: what is left in the end was not understood.
#[derive(Debug, Default)]
pub(super) struct Query(BTreeMap<String, Vec<u8>>);

/// Parses parameters.
pub(super) fn query(text: &str) -> Result<Query, Refusal> {
    let mut all = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = String::from_utf8(decode(name, true)?)
            .map_err(|_| Refusal::bad("the name of a parameter is no text"))?;
        if all.contains_key(&name) {
            return Err(Refusal::bad(format!(
                "the parameter '{}' comes twice",
                name.escape_debug()
            )));
        }
        all.insert(name, decode(value, true)?);
    }
    Ok(Query(all))
}

impl Query {
    pub(super) fn take(&mut self, name: &str) -> Option<Vec<u8>> {
        self.0.remove(name)
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let digits = std::str::from_utf8(&value).ok().filter(|text| !text.starts_with('+'));
        let number = digits.and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| Refusal::bad(format!("{name} is no whole number")))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.take(name).as_deref() {
            None | Some(b"false") => Ok(false),
            Some(b"" | b"true") => Ok(true),
            Some(_) => Err(Refusal::bad(format!("{name} must be true or false"))),
        }
    }

    /// Refuses what was not understood: a misspelt parameter must not look as if it were in force.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(Refusal::bad(format!("there is no parameter '{}' here", name.escape_debug())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(keyspace: &str, key: &[u8]) -> Option<Resource> {
        Some(Resource::Key { keyspace: keyspace.to_owned(), key: key.to_vec() })
    }

    #[test]
    fn paths_tell_what_they_are_about() {
        let keys = |keyspace: &str| Some(Resource::Keys { keyspace: keyspace.to_owned() });
        let keyspace = |name: &str| Some(Resource::Keyspace { name: name.to_owned() });
        for (path, expected) in [
            ("/v1/kv/a/b", key("a", b"b")),
            ("/v1/kv/a%2Fb/c/d", key("a/b", b"c/d")),
            ("/v1/kv/a/%00%ff%2F+", key("a", b"\0\xff/+")),
            ("/v1/kv/a", keys("a")),
            ("/v1/kv/a%2fb", keys("a/b")),
            ("/v1/keyspaces", Some(Resource::Keyspaces)),
            ("/v1/keyspaces/a/b", keyspace("a/b")),
            ("/v1/keyspaces/a%2Fb", keyspace("a/b")),
            ("/v1/txn", Some(Resource::Txn)),
            ("/openapi.json", Some(Resource::OpenApi)),
            ("/v1/txn/", None),
            ("/v1/kv", None),
            ("/v1", None),
            ("/", None),
            ("*", None),
        ] {
            assert_eq!(find(path).unwrap(), expected, "{path}");
        }
        for path in ["/v1/kv/a/", "/v1/kv/a/%", "/v1/kv/a/%4", "/v1/kv/a/%zz", "/v1/kv/%ff/b"] {
            assert_eq!(find(path).unwrap_err().status, 400, "{path}");
        }
    }

    #[test]
    fn head_is_get_and_other_methods_are_told_what_there_is() {
        let resource = key("a", b"b").unwrap();
        assert_eq!(resource.method(&Method::HEAD), Some(&Method::GET));
        assert_eq!(resource.method(&Method::POST), None);
        let refused = method_not_allowed(&resource);
        assert_eq!(refused.header.unwrap().1, "GET, HEAD, PUT, DELETE");
    }

    #[test]
    fn parameters_are_taken_and_what_is_left_is_refused() {
        let mut all = query("prefix=a%26b+c&limit=7&reverse&x=1").unwrap();
        assert_eq!(all.take("prefix").as_deref(), Some(&b"a&b c"[..]));
        assert_eq!(all.number("limit").unwrap(), Some(7));
        assert!(all.flag("reverse").unwrap() && !all.flag("other").unwrap());
        assert!(all.finish().unwrap_err().message.contains("'x'"));
        assert!(query("a=1&a=2").is_err() && query("a=%").is_err());
        for bad in ["n=", "n=-1", "n=%2B1", "n=1.5", "n=99999999999999999999"] {
            assert!(query(bad).unwrap().number("n").is_err(), "{bad}");
        }
    }
}
