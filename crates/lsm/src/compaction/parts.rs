//! Cutting a merge in two, so that two threads do it in half the time.
//!
//! The outputs of both halves are installed together, so nothing else has to know: a merge of level 0
//! covers the base level as a whole, and no second merge could run beside it (its inputs overlap
//! whatever that one would take). Rejected therefore: several merges at a time.

use std::sync::Arc;

use crate::error::Result;
use crate::tables::Tables;
use crate::version::TableHandle;

/// The tables of a merge with their levels, in order of age, those of a level by key.
pub(crate) type Inputs = Vec<(usize, Arc<TableHandle>)>;

/// Returns a user key with about as many bytes of the inputs before it as behind it, if there is one
/// with at least a quarter of them on either side.
pub(crate) async fn middle(tables: &Tables, inputs: &Inputs) -> Result<Option<Vec<u8>>> {
    let mut pieces: Vec<(Vec<u8>, u64)> = Vec::new();
    for (_, handle) in inputs {
        let cuts = tables.open(handle).await?.table.cuts();
        let share = handle.desc.size / (cuts.len() as u64 + 1);
        pieces.push((handle.desc.smallest.clone(), share));
        pieces.extend(cuts.map(|cut| (cut.to_vec(), share)));
    }
    Ok(middle_of(pieces))
}

/// Returns the middle of pieces, of which each has a key at its beginning or close to it.
fn middle_of(mut pieces: Vec<(Vec<u8>, u64)>) -> Option<Vec<u8>> {
    pieces.sort_unstable();
    let all: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
    let mut before = 0;
    for (key, bytes) in pieces {
        if before >= all / 2 {
            return (before <= all - all / 4 && !key.is_empty()).then_some(key);
        }
        before += bytes;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn middle(pieces: &[(&str, u64)]) -> Option<String> {
        let pieces = pieces.iter().map(|(key, bytes)| (key.as_bytes().to_vec(), *bytes)).collect();
        middle_of(pieces).map(|key| String::from_utf8(key).unwrap())
    }

    #[test]
    fn the_middle_has_as_much_before_it_as_behind_it() {
        assert_eq!(middle(&[("a", 10), ("c", 10), ("b", 10), ("d", 10)]), Some("c".to_owned()));
        assert_eq!(middle(&[("a", 30), ("b", 10), ("c", 10), ("d", 10)]), Some("b".to_owned()));
    }

    #[test]
    fn what_cannot_be_cut_has_no_middle() {
        assert_eq!(middle(&[]), None);
        assert_eq!(middle(&[("a", 10)]), None);
        assert_eq!(middle(&[("a", 90), ("b", 10)]), None, "a tenth is not worth a thread");
    }
}
