//! Scans: a range, page by page.
//!
//! A page is of one moment; the next page is of a later one. The cursor names the last key that was
//! seen, so it is good for as long as the client likes and costs the server nothing.
//!
//! ```text
//!   cursor = base64url( 1 | 0 forward, 1 reverse | key )
//! ```

use atoll_keyspaces::{Action, Batch, Done, KeyRange, Row, Rows};
use hyper::StatusCode;
use serde_json::{Map, Value as Json, json};

use super::bytes::{Encoding, URL, decode, encode};
use super::route::Query;
use super::{Api, Refusal, Reply, json_response};

/// Rows of a page, unless another number is asked for.
pub(super) const LIMIT_DEFAULT: u64 = 100;
/// Most rows of a page.
pub(super) const LIMIT_MAX: u64 = 1_000;
/// Bytes of keys and values after which a page ends.
pub(super) const PAGE_BYTES: usize = 4 << 20;

/// Version of cursors.
const CURSOR: u8 = 1;

/// What of a keyspace is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) range: KeyRange,
    pub(super) reverse: bool,
    pub(super) limit: usize,
}

/// Returns a number of rows.
pub(super) fn limit(asked: Option<u64>) -> Result<usize, Refusal> {
    match asked.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit as usize),
        _ => Err(Refusal::bad(format!("limit must be from 1 to {LIMIT_MAX}"))),
    }
}

pub(super) fn cursor(last: &[u8], reverse: bool) -> String {
    encode(&[&[CURSOR, u8::from(reverse)], last].concat(), URL, false)
}

/// Returns what is left of a range behind a cursor.
pub(super) fn behind(range: KeyRange, cursor: &[u8], reverse: bool) -> Result<KeyRange, Refusal> {
    let foreign = || Refusal::bad("the cursor is not one of this scan; begin it anew without one");
    let decoded = decode(cursor, URL).ok_or_else(foreign)?;
    match decoded.as_slice() {
        [CURSOR, of, last @ ..] if *of == u8::from(reverse) && range.contains(last) => {
            Ok(range.rest(last, reverse))
        }
        _ => Err(foreign()),
    }
}

fn wanted(query: &mut Query) -> Result<Wanted, Refusal> {
    let mut range =
        KeyRange { start: query.take("start").unwrap_or_default(), end: query.take("end") };
    if let Some(prefix) = query.take("prefix") {
        range = range.and(KeyRange::prefix(prefix));
    }
    let reverse = query.flag("reverse")?;
    let limit = limit(query.number("limit")?)?;
    if let Some(cursor) = query.take("cursor") {
        range = behind(range, &cursor, reverse)?;
    }
    Ok(Wanted { range, reverse, limit })
}

/// Writes a row.
pub(super) fn row(row: &Row, encoding: Encoding) -> Json {
    let mut map = Map::new();
    encoding.write(&mut map, &[("key", &row.key), ("value", &row.value)]);
    if let Some(deadline) = row.deadline_ms {
        map.insert("deadline_ms".to_owned(), deadline.into());
    }
    Json::Object(map)
}

/// Returns the cursor behind rows, if there are more.
pub(super) fn next(rows: &Rows, reverse: bool) -> Option<String> {
    let last = rows.rows.last().filter(|_| rows.more)?;
    Some(cursor(&last.key, reverse))
}

impl Api {
    pub(super) async fn scan(&self, keyspace: &str, mut query: Query) -> Reply {
        let Wanted { range, reverse, limit } = wanted(&mut query)?;
        let encoding =
            query.take("encoding").map_or(Ok(Encoding::Utf8), |e| Encoding::parse(&e))?;
        query.finish()?;
        let keyspace = self.open(keyspace).await?;
        let action = Action::Scan { keyspace, range, reverse, limit, bytes_max: PAGE_BYTES };
        let outcome =
            self.client.batch(Batch { success: vec![action], ..Batch::default() }).await?;
        let rows = match outcome.results.into_iter().next() {
            Some(Done::Scanned(rows)) => rows,
            _ => Rows::default(),
        };
        let written: Vec<Json> = rows.rows.iter().map(|of| row(of, encoding)).collect();
        let body = json!({ "rows": written, "cursor": next(&rows, reverse) });
        Ok(json_response(StatusCode::OK, &body))
    }
}

#[cfg(test)]
mod tests {
    use super::super::route::query;
    use super::*;

    #[test]
    fn a_range_is_what_all_parameters_agree_on() {
        let parse = |text: &str| wanted(&mut query(text).unwrap());
        let all = parse("").unwrap();
        assert_eq!(all, Wanted { range: KeyRange::all(), reverse: false, limit: 100 });
        let some = parse("prefix=a&start=ab&end=b&limit=7&reverse=true").unwrap();
        let range = KeyRange { start: b"ab".to_vec(), end: Some(b"b".to_vec()) };
        assert_eq!(some, Wanted { range, reverse: true, limit: 7 });
        for bad in ["limit=0", "limit=1001", "reverse=1", "cursor=x", "cursor=AAFh"] {
            assert_eq!(parse(bad).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn a_cursor_goes_on_behind_its_key_in_its_own_scan_only() {
        let range = KeyRange::prefix("a");
        let at = cursor(b"ab\xff", false);
        let rest = behind(range.clone(), at.as_bytes(), false).unwrap();
        assert_eq!(rest.start, b"ab\xff\0");
        assert!(behind(range.clone(), at.as_bytes(), true).is_err(), "the other direction");
        assert!(behind(KeyRange::prefix("b"), at.as_bytes(), false).is_err(), "another range");
        let back = behind(range, cursor(b"ab", true).as_bytes(), true).unwrap();
        assert_eq!(back.end.as_deref(), Some(&b"ab"[..]));
    }
}
