//! Range tombstones: a deletion of all keys in an interval, as one record.

use crate::key::SeqNo;

/// A deletion of the user keys `start..end` that are older than it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeTombstone {
    /// First user key deleted.
    pub start: Vec<u8>,
    /// First user key after `start` that is not.
    pub end: Vec<u8>,
    /// Order of the deletion: it hides records with smaller sequence numbers.
    pub seqno: SeqNo,
}
