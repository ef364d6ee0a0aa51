//! Stored values: what a version's bytes look like to the layers that need to know when it expires.
//!
//! ```text
//!   +------+--------------------+-----------+
//!   | head | deadline u64 LE    | payload   |      head bit 0: a deadline follows
//!   +------+--------------------+-----------+      other bits: 0, for later formats
//! ```
//!
//! The deadline (milliseconds of the Unix epoch) stands in front, never behind the payload: whether
//! a key is there is known from its first nine bytes. What the payload means is the business of the
//! layer that wrote it.

use atoll_encoding::{Malformed, Reader};

/// Head bit: a deadline follows.
const DEADLINE: u8 = 1;

/// A stored value, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// When it expires, in milliseconds of the Unix epoch; `None` is never.
    pub deadline_ms: Option<u64>,
    /// What it is.
    pub payload: &'a [u8],
}

impl<'a> Value<'a> {
    /// Takes stored bytes apart.
    ///
    /// # Errors
    /// The bytes are no stored value of a known form.
    pub fn decode(bytes: &'a [u8]) -> Result<Value<'a>, Malformed> {
        let mut reader = Reader::new(bytes);
        let unknown = reader.malformed("a known head of a value");
        let deadline_ms = match reader.u8("the head of a value")? {
            0 => None,
            DEADLINE => Some(reader.u64("the deadline of a value")?),
            _ => return Err(unknown),
        };
        Ok(Value { deadline_ms, payload: &bytes[head_len(deadline_ms)..] })
    }

    /// Returns the bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(head_len(self.deadline_ms) + self.payload.len());
        put_head(&mut bytes, self.deadline_ms);
        bytes.extend_from_slice(self.payload);
        bytes
    }

    /// Returns whether it is absent for an operation at `now_ms`.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.deadline_ms.is_some_and(|deadline| deadline <= now_ms)
    }
}

/// Appends the head of a stored value; its payload follows.
pub fn put_head(bytes: &mut Vec<u8>, deadline_ms: Option<u64>) {
    match deadline_ms {
        None => bytes.push(0),
        Some(deadline) => {
            bytes.push(DEADLINE);
            bytes.extend_from_slice(&deadline.to_le_bytes());
        }
    }
}

/// Returns the length of a head.
pub fn head_len(deadline_ms: Option<u64>) -> usize {
    if deadline_ms.is_some() { 9 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_and_what_is_none_is_refused() {
        for value in [
            Value { deadline_ms: None, payload: b"" },
            Value { deadline_ms: None, payload: b"x" },
            Value { deadline_ms: Some(1_700_000_000_000), payload: b"payload" },
        ] {
            let bytes = value.encode();
            assert_eq!(Value::decode(&bytes), Ok(value));
        }
        for bad in [&b""[..], b"\x02x", b"\x01short"] {
            assert!(Value::decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_value_is_absent_from_its_deadline_on() {
        let value = Value { deadline_ms: Some(10), payload: b"" };
        assert!(!value.is_expired(9));
        assert!(value.is_expired(10));
        assert!(!Value { deadline_ms: None, payload: b"" }.is_expired(u64::MAX));
    }
}
