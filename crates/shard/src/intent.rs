//! Intents as the leader keeps them: all of a shard's are in memory, because every command has to
//! know whether one is in its way, and there are few: they live for as long as a commit takes.

use atoll_encoding::{Malformed, Reader};
use atoll_mvcc::request::Key;
use atoll_mvcc::{Timestamp, TxnId, record};

use crate::edge::Presence;

/// A value whose transaction is not decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Whose it is.
    pub txn: TxnId,
    /// Where that transaction's record is.
    pub primary: Key,
    /// Lowest timestamp it can become a version at.
    pub min_commit_ts: Timestamp,
    /// The stored bytes, `None` to remove the key.
    pub value: Option<Vec<u8>>,
    /// What the key held when the intent was placed, and holds until it is resolved: nobody else
    /// can write it.
    pub before: Presence,
}

impl Intent {
    /// Returns the stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut extra = vec![u8::from(self.before.exists)];
        if let Some(deadline) = self.before.deadline_ms {
            extra.extend_from_slice(&deadline.to_le_bytes());
        }
        let stored = record::Intent {
            txn: self.txn,
            primary: &self.primary,
            min_commit_ts: self.min_commit_ts,
            extra: &extra,
            value: self.value.as_deref(),
        };
        stored.encode()
    }

    /// Reads a stored intent.
    ///
    /// # Errors
    /// The bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Intent, Malformed> {
        let stored = record::Intent::decode(bytes)?;
        let mut extra = Reader::new(stored.extra);
        let exists = extra.u8("whether the key was there")? != 0;
        let deadline_ms = match extra.is_empty() {
            true => None,
            false => Some(extra.u64("the deadline that the key had")?),
        };
        Ok(Intent {
            txn: stored.txn,
            primary: stored.primary.to_vec(),
            min_commit_ts: stored.min_commit_ts,
            value: stored.value.map(<[u8]>::to_vec),
            before: Presence { exists, deadline_ms },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_round_trip() {
        for (value, exists, deadline_ms) in [
            (None, true, Some(5)),
            (Some(b"v".to_vec()), false, None),
            (Some(Vec::new()), true, None),
        ] {
            let intent = Intent {
                txn: TxnId(7),
                primary: b"p".to_vec(),
                min_commit_ts: Timestamp(99),
                value,
                before: Presence { exists, deadline_ms },
            };
            assert_eq!(Intent::decode(&intent.encode()), Ok(intent));
        }
    }
}
