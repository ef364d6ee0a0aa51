//! The catalog: which keyspaces there are.
//!
//! ```text
//!   system keyspace    catalog/NAME  ->  id, kind, options        docs/formats/keyspaces.md
//! ```
//!
//! Names nest by `/`, and that is all there is to nesting: the keyspaces below `a` are those whose
//! names begin with `a/`, one range of the catalog, whether or not there is an `a`. Creating and
//! dropping are transactions like any other: of two that create the same name one finds the other's,
//! and a child cannot be created in the middle of its family's drop.

use std::fmt;
use std::time::Duration;

use atoll_encoding::{Malformed, Reader};
use atoll_mvcc::Value;
use atoll_mvcc::keys::{Buckets, Placement};
use atoll_mvcc::request::{Key, Span};
use atoll_txn::{Oracle, ScanOptions, Shards, Transaction};

use crate::SYSTEM;
use crate::error::{Error, Result};
use crate::ids::{self, Class};
use crate::range::KeyRange;

/// Longest name in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// Buckets of a hashed keyspace, unless another number is asked for.
pub const BUCKETS_DEFAULT: u16 = 16;

const CATALOG: &[u8] = b"catalog/";
/// Version of the records.
const FORMAT: u8 = 1;
/// Names of one page.
const PAGE: usize = 256;

/// How a keyspace lays its keys out over the shards. Scans are in order in both kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// By the order of the keys: neighbours lie together, scans are cheap, and keys that only grow
    /// are all written at one end.
    #[default]
    Ordered,
    /// By hash, in so many buckets: writes spread, a scan merges the buckets.
    Hashed(Buckets),
}

impl Kind {
    /// Returns the hashed kind with `n` buckets, `None` unless it is a power of two up to 16384.
    pub fn hashed(n: u16) -> Option<Kind> {
        Buckets::new(n).map(Kind::Hashed)
    }

    pub(crate) fn placement(self) -> Placement {
        match self {
            Kind::Ordered => Placement::Ordered,
            Kind::Hashed(buckets) => Placement::Hashed(buckets),
        }
    }

    fn class(self) -> Class {
        match self {
            Kind::Ordered => Class::Ordered,
            Kind::Hashed(_) => Class::Slotted,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.placement().fmt(f)
    }
}

/// Options of a keyspace, chosen when it is created and kept with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// How keys are laid out.
    pub kind: Kind,
    /// Values expire this long after they were written, unless the write says otherwise.
    pub ttl: Option<Duration>,
}

impl Options {
    pub(crate) fn ttl_ms(&self) -> u64 {
        self.ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1))
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match self.ttl_ms() {
            0 => Ok(()),
            ms => write!(f, " with a time to live of {ms} ms"),
        }
    }
}

/// What is known of a keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The name.
    pub name: String,
    /// The id, which no other keyspace ever had or will have.
    pub id: u32,
    /// The options.
    pub options: Options,
    /// When it was created, in milliseconds of the Unix epoch.
    pub created_ms: u64,
}

/// Refuses names that cannot be.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let wrong = |what: &str| {
        let shown: String = name.chars().take(64).collect();
        Err(Error::InvalidInput(format!("'{}' is no keyspace name: {what}", shown.escape_debug())))
    };
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return wrong("it must have 1 to 255 bytes");
    }
    if name.split('/').any(str::is_empty) {
        return wrong("the parts between slashes must not be empty");
    }
    if name.chars().any(char::is_control) {
        return wrong("it has a control character");
    }
    Ok(())
}

/// Returns whether a name is `family`, or below it.
pub(crate) fn is_of(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn row_name(name: &[u8]) -> Key {
    Placement::Ordered.key(SYSTEM, &[CATALOG, name].concat())
}

fn encode(info: &Info) -> Vec<u8> {
    let mut payload = vec![FORMAT];
    payload.extend_from_slice(&info.id.to_le_bytes());
    let buckets = match info.options.kind {
        Kind::Ordered => 0,
        Kind::Hashed(buckets) => buckets.count(),
    };
    payload.extend_from_slice(&buckets.to_le_bytes());
    payload.extend_from_slice(&info.options.ttl_ms().to_le_bytes());
    payload.extend_from_slice(&info.created_ms.to_le_bytes());
    Value { deadline_ms: None, payload: &payload }.encode()
}

fn decode(name: &str, bytes: &[u8]) -> Result<Info, Malformed> {
    let mut reader = Reader::new(Value::decode(bytes)?.payload);
    let format =
        reader.malformed("a record of a keyspace in format 1; newer ones need a newer program");
    if reader.u8("a format")? != FORMAT {
        return Err(format);
    }
    let id = reader.u32("an id")?;
    let kind = reader.malformed("a number of buckets that is a power of two");
    let kind = match u16::from_le_bytes(reader.array("a number of buckets")?) {
        0 => Kind::Ordered,
        buckets => Kind::hashed(buckets).ok_or(kind)?,
    };
    let ttl = match reader.u64("a time to live")? {
        0 => None,
        ms => Some(Duration::from_millis(ms)),
    };
    let created_ms = reader.u64("a time of creation")?;
    reader.finish("nothing behind the time of creation")?;
    Ok(Info { name: name.to_owned(), id, options: Options { kind, ttl }, created_ms })
}

fn read(name: &str, bytes: &[u8]) -> Result<Info> {
    decode(name, bytes).map_err(|e| {
        Error::Corruption(format!(
            "the record of keyspace '{}' does not decode: {e}",
            name.escape_debug()
        ))
    })
}

/// Finds a keyspace.
pub(crate) async fn find<S: Shards, O: Oracle>(
    txn: &mut Transaction<S, O>,
    name: &str,
) -> Result<Option<Info>> {
    match txn.get(&row_name(name.as_bytes())).await? {
        Some(bytes) => Ok(Some(read(name, &bytes)?)),
        None => Ok(None),
    }
}

/// Creates a keyspace unless it is there with the same options. Returns it, and whether it is new.
pub(crate) async fn create<S: Shards, O: Oracle>(
    txn: &mut Transaction<S, O>,
    name: &str,
    options: Options,
    now_ms: u64,
) -> Result<(Info, bool)> {
    if let Some(found) = find(txn, name).await? {
        if found.options == options {
            return Ok((found, false));
        }
        return Err(Error::Exists { name: name.to_owned(), is: found.options.to_string() });
    }
    let id = ids::draw(txn, options.kind.class()).await?;
    let info = Info { name: name.to_owned(), id, options, created_ms: now_ms };
    txn.put(&row_name(name.as_bytes()), &encode(&info)).await?;
    Ok((info, true))
}

/// Drops a keyspace and those below it. Returns their names, in order; none if there was none.
pub(crate) async fn drop<S: Shards, O: Oracle>(
    txn: &mut Transaction<S, O>,
    name: &str,
) -> Result<Vec<String>> {
    let mut family: Vec<Info> = find(txn, name).await?.into_iter().collect();
    family.extend(list(txn, &KeyRange::prefix(format!("{name}/")), usize::MAX).await?.0);
    for info in &family {
        txn.delete(&row_name(info.name.as_bytes())).await?;
        ids::give_back(txn, info.id).await?;
    }
    Ok(family.into_iter().map(|info| info.name).collect())
}

/// Lists the keyspaces whose names are in a range, by name, and tells whether there are more.
pub(crate) async fn list<S: Shards, O: Oracle>(
    txn: &mut Transaction<S, O>,
    names: &KeyRange,
    limit: usize,
) -> Result<(Vec<Info>, bool)> {
    let start = row_name(&names.start);
    let all = KeyRange::prefix(CATALOG).end.unwrap_or_default();
    let end = match &names.end {
        Some(end) => row_name(end),
        None => Placement::Ordered.key(SYSTEM, &all),
    };
    let head = row_name(b"").len();
    let mut found = Vec::new();
    let mut rest = Some(Span { start, end });
    while let Some(span) = rest {
        let page = txn.scan(span, ScanOptions { limit: PAGE, reverse: false }).await?;
        for (key, value) in &page.rows {
            if found.len() >= limit {
                return Ok((found, true));
            }
            let name = std::str::from_utf8(key.get(head..).unwrap_or_default()).map_err(|_| {
                Error::Corruption("the catalog has a name that is no text".to_owned())
            })?;
            found.push(read(name, value)?);
        }
        rest = page.more;
    }
    Ok((found, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: Kind, ttl: Option<Duration>) -> Info {
        let options = Options { kind, ttl };
        Info { name: "a/b".to_owned(), id: 77, options, created_ms: 1_700_000_000_000 }
    }

    #[test]
    fn records_come_back_and_what_is_none_is_refused() {
        let hashed = Kind::hashed(16).unwrap();
        for info in [info(Kind::Ordered, None), info(hashed, Some(Duration::from_secs(5)))] {
            let bytes = encode(&info);
            assert_eq!(decode("a/b", &bytes), Ok(info));
            for len in 0..bytes.len() {
                assert!(decode("a/b", &bytes[..len]).is_err(), "{len} bytes");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(decode("a/b", &longer).is_err());
            let mut newer = bytes.clone();
            newer[1] = 2;
            assert!(decode("a/b", &newer).unwrap_err().to_string().contains("newer"));
            let mut odd = bytes;
            odd[6] = 3;
            assert!(decode("a/b", &odd).is_err(), "three buckets");
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused_with_the_reason() {
        for name in ["a", "a/b", "Straße/7", "with space", &"x".repeat(255)] {
            check_name(name).unwrap();
        }
        for name in ["", "/", "a/", "/a", "a//b", "a\nb", "a\0", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_family_is_a_name_and_what_nests_in_it() {
        for (name, is) in [("a", true), ("a/b", true), ("a/b/c", true), ("ab", false), ("b", false)]
        {
            assert_eq!(is_of(name, "a"), is, "{name}");
        }
    }
}
