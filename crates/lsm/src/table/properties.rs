//! Properties: what a table holds, counted while it was written.

use atoll_encoding::{Malformed, Reader, varint};
use atoll_env::WallTime;

use super::Handle;
use super::index::{handle, put_handle};
use crate::key::{InternalKey, Kind, SeqNo};
use crate::tombstone::RangeTombstone;

/// Counts and bounds of a table, for picking compactions, for pruning reads, and for statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Records, of any kind; range tombstones are counted apart.
    pub entries: u64,
    /// Records that are tombstones, versioned ones included.
    pub tombstones: u64,
    /// Range tombstones.
    pub range_tombstones: u64,
    /// Records with a deadline.
    pub expiring: u64,
    /// Heads of chunked values.
    pub chunked: u64,
    /// Earliest and latest deadline of those that have one, in milliseconds since the Unix epoch.
    pub deadlines: Option<(WallTime, WallTime)>,
    /// Bytes of all user keys, uncompressed.
    pub key_bytes: u64,
    /// Bytes of all values, uncompressed.
    pub value_bytes: u64,
    /// Bytes of the data blocks in the file, which are its first ones.
    pub data_bytes: u64,
    /// Data blocks.
    pub data_blocks: u64,
    /// Smallest sequence number, range tombstones included.
    pub seqno_min: SeqNo,
    /// Largest sequence number, range tombstones included.
    pub seqno_max: SeqNo,
    /// Smallest user key, starts of range tombstones included.
    pub smallest: Vec<u8>,
    /// Largest user key, ends of range tombstones included.
    pub largest: Vec<u8>,
    /// Whether `largest` is the end of a range tombstone, which is itself not in the table.
    pub largest_is_exclusive: bool,
    /// Id of the prefix rule of the filter, 0 for none.
    pub prefix_rule: u64,
    /// Level the table was written for.
    pub level: u32,
    /// Wall time at which it was written.
    pub created: WallTime,
    /// Where the range tombstones are.
    pub(super) range_tombstone_blocks: Vec<Handle>,
}

impl Properties {
    /// Returns the properties of nothing, to count into.
    pub(super) fn counting() -> Properties {
        Properties { seqno_min: SeqNo::MAX, ..Properties::default() }
    }

    /// Counts a record; they come in key order.
    pub(super) fn count(&mut self, key: InternalKey<'_>, value: &[u8]) {
        if self.entries == 0 {
            self.smallest = key.user_key.to_vec();
        }
        self.entries += 1;
        self.key_bytes += key.user_key.len() as u64;
        self.value_bytes += value.len() as u64;
        self.seqno_min = self.seqno_min.min(key.trailer.seqno());
        self.seqno_max = self.seqno_max.max(key.trailer.seqno());
        let deadline = value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let deadline = match key.trailer.kind() {
            Some(Kind::Tombstone | Kind::VersionedTombstone) => {
                self.tombstones += 1;
                None
            }
            Some(Kind::ExpiringValue) => deadline,
            Some(Kind::Merge) => deadline.filter(|&deadline| deadline != 0),
            Some(Kind::ChunkedValue) => {
                self.chunked += 1;
                deadline.filter(|&deadline| deadline != 0)
            }
            Some(Kind::VersionedChunked) => {
                self.chunked += 1;
                None
            }
            Some(Kind::Value | Kind::Chunk | Kind::VersionedValue) | None => None,
        };
        if let Some(deadline) = deadline.map(WallTime) {
            self.expiring += 1;
            let (first, last) = self.deadlines.unwrap_or((deadline, deadline));
            self.deadlines = Some((first.min(deadline), last.max(deadline)));
        }
    }

    /// Takes in the last record's user key and the range tombstones, sorted by start.
    pub(super) fn complete(&mut self, last_key: &[u8], tombstones: &[RangeTombstone]) {
        self.largest = last_key.to_vec();
        self.range_tombstones = tombstones.len() as u64;
        for tombstone in tombstones {
            self.seqno_min = self.seqno_min.min(tombstone.seqno);
            self.seqno_max = self.seqno_max.max(tombstone.seqno);
            if tombstone.end > self.largest {
                self.largest.clone_from(&tombstone.end);
                self.largest_is_exclusive = true;
            }
        }
        if let Some(first) = tombstones.first()
            && (self.entries == 0 || first.start < self.smallest)
        {
            self.smallest.clone_from(&first.start);
        }
    }

    /// Returns whether these counts, completed, are those of `stored`.
    pub(super) fn agrees_with(
        mut self,
        stored: &Properties,
        last_key: &[u8],
        tombstones: &[RangeTombstone],
    ) -> bool {
        self.complete(last_key, tombstones);
        // What cannot be counted is taken as it is stored.
        self.prefix_rule = stored.prefix_rule;
        self.level = stored.level;
        self.created = stored.created;
        self.range_tombstone_blocks.clone_from(&stored.range_tombstone_blocks);
        self == *stored
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for n in [
            self.entries,
            self.tombstones,
            self.range_tombstones,
            self.expiring,
            self.chunked,
            self.key_bytes,
            self.value_bytes,
            self.data_bytes,
            self.data_blocks,
            self.seqno_min,
            self.seqno_max,
            self.prefix_rule,
            u64::from(self.level),
            self.created.0,
        ] {
            varint::put(&mut out, n);
        }
        match self.deadlines {
            None => out.push(0),
            Some((first, last)) => {
                out.push(1);
                varint::put(&mut out, first.0);
                varint::put(&mut out, last.0);
            }
        }
        varint::put_bytes(&mut out, &self.smallest);
        varint::put_bytes(&mut out, &self.largest);
        out.push(u8::from(self.largest_is_exclusive));
        varint::put(&mut out, self.range_tombstone_blocks.len() as u64);
        self.range_tombstone_blocks.iter().for_each(|&block| put_handle(&mut out, block));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Properties, Malformed> {
        let r = &mut Reader::new(bytes);
        let mut properties = Properties {
            entries: r.varint("the number of records")?,
            tombstones: r.varint("the number of tombstones")?,
            range_tombstones: r.varint("the number of range tombstones")?,
            expiring: r.varint("the number of expiring records")?,
            chunked: r.varint("the number of chunked values")?,
            key_bytes: r.varint("the bytes of keys")?,
            value_bytes: r.varint("the bytes of values")?,
            data_bytes: r.varint("the bytes of data blocks")?,
            data_blocks: r.varint("the number of data blocks")?,
            seqno_min: r.varint("the smallest sequence number")?,
            seqno_max: r.varint("the largest sequence number")?,
            prefix_rule: r.varint("the prefix rule")?,
            level: u32::try_from(r.varint("the level")?).map_err(|_| r.malformed("the level"))?,
            created: WallTime(r.varint("the creation time")?),
            ..Properties::default()
        };
        if flag(r, "whether there are deadlines")? {
            let first = WallTime(r.varint("the first deadline")?);
            properties.deadlines = Some((first, WallTime(r.varint("the last deadline")?)));
        }
        properties.smallest = r.bytes("the smallest key")?.to_vec();
        properties.largest = r.bytes("the largest key")?.to_vec();
        properties.largest_is_exclusive = flag(r, "whether the largest key is exclusive")?;
        let blocks = r.varint("the number of range tombstone blocks")?;
        for _ in 0..blocks {
            properties.range_tombstone_blocks.push(handle(r)?);
        }
        r.finish("the end of the properties")?;
        Ok(properties)
    }
}

fn flag(reader: &mut Reader<'_>, expected: &'static str) -> Result<bool, Malformed> {
    match reader.u8(expected)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(reader.malformed(expected)),
    }
}

/// Appends a range tombstone to a block of them.
pub(super) fn put_range_tombstone(out: &mut Vec<u8>, tombstone: &RangeTombstone) {
    varint::put_bytes(out, &tombstone.start);
    varint::put_bytes(out, &tombstone.end);
    varint::put(out, tombstone.seqno);
}

/// Decodes a block of range tombstones.
pub(super) fn range_tombstones(block: &[u8]) -> Result<Vec<RangeTombstone>, Malformed> {
    let mut reader = Reader::new(block);
    let mut tombstones = Vec::new();
    while !reader.is_empty() {
        let start = reader.bytes("the start of a range tombstone")?.to_vec();
        let end = reader.bytes("the end of a range tombstone")?.to_vec();
        let seqno = reader.varint("the sequence number of a range tombstone")?;
        if start >= end {
            return Err(reader.malformed("a range tombstone that starts before its end"));
        }
        tombstones.push(RangeTombstone { start, end, seqno });
    }
    Ok(tombstones)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Properties {
        Properties {
            entries: 1000,
            tombstones: 3,
            range_tombstones: 2,
            expiring: 4,
            chunked: 1,
            deadlines: Some((WallTime(5), WallTime(1 << 50))),
            key_bytes: 1 << 33,
            value_bytes: 1 << 34,
            data_bytes: 1 << 20,
            data_blocks: 300,
            seqno_min: 7,
            seqno_max: 1 << 55,
            smallest: b"a".to_vec(),
            largest: b"zz".to_vec(),
            largest_is_exclusive: true,
            prefix_rule: 8,
            level: 6,
            created: WallTime(1_700_000_000_000),
            range_tombstone_blocks: vec![Handle { offset: 99, len: 100 }],
        }
    }

    #[test]
    fn properties_round_trip_and_every_cut_is_refused() {
        for properties in [sample(), Properties::default()] {
            let bytes = properties.encode();
            assert_eq!(Properties::decode(&bytes), Ok(properties));
            for cut in 0..bytes.len() {
                assert!(Properties::decode(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn an_announced_number_of_blocks_is_not_believed() {
        let mut bytes = Properties::default().encode();
        bytes.pop();
        varint::put(&mut bytes, u64::MAX);
        assert!(Properties::decode(&bytes).is_err());
    }
}
