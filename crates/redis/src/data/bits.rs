//! Strings as arrays of bits, the highest bit of the first byte first.

use std::borrow::Cow;
use std::ops::Range;

use crate::data::{Data, check_len};
use crate::error::{self, CommandError, Outcome, fixed};
use crate::layout::MAX_STRING;
use crate::object::Object;
use crate::text::{self, Editor};
use crate::tx::Tx;

pub(super) const BAD_OFFSET: CommandError =
    fixed("ERR bit offset is not an integer or out of range");
const BAD_BIT: CommandError = fixed("ERR bit is not an integer or out of range");

/// What a range of BITCOUNT and BITPOS counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Byte,
    Bit,
}

impl<T: Tx> Data<'_, T> {
    /// Returns a bit's offset.
    fn bit_offset(&self, index: usize) -> Outcome<usize> {
        let offset = atoll_resp::number::parse_i64(self.arg(index)).ok_or(BAD_OFFSET)?;
        let offset = usize::try_from(offset).map_err(|_| BAD_OFFSET)?;
        if offset >= MAX_STRING * 8 { Err(BAD_OFFSET) } else { Ok(offset) }
    }

    pub async fn setbit(&mut self) -> Outcome {
        let offset = self.bit_offset(2)?;
        let bit = match atoll_resp::number::parse_i64(self.arg(3)) {
            Some(0) => 0,
            Some(1) => 1,
            _ => return Err(BAD_BIT),
        };
        let key = self.key(1)?;
        let found = self.peek_string(key).await?;
        let meta = self.edited(found.as_ref());
        let (place, byte_at, shift) = ((self.call.db, key), offset / 8, 7 - offset % 8);
        let mut editor = Editor::open(self.tx, found.as_ref(), meta, byte_at + 1);
        let mut byte = [0];
        let read = editor.read(self.tx, place, byte_at, &mut byte).await;
        read.map_err(|error| error::unreadable(&error))?;
        let old = byte[0] >> shift & 1;
        byte[0] = byte[0] & !(1 << shift) | bit << shift;
        let written = editor.write(self.tx, place, byte_at, &byte).await;
        written.map_err(|error| error::unreadable(&error))?;
        editor.finish(self.tx, self.call.db, key);
        self.reply().int(i64::from(old));
        Ok(())
    }

    pub async fn getbit(&mut self) -> Outcome {
        let offset = self.bit_offset(2)?;
        let key = self.key(1)?;
        let found = self.lookup_string(key).await?;
        let mut byte = 0;
        if let Some(object) = found.as_ref().filter(|object| offset / 8 < text::len(object)) {
            let range = offset / 8..offset / 8 + 1;
            self.show(key, object, range, &mut |piece| byte = piece[0]).await?;
        }
        self.reply().int(i64::from(byte >> (7 - offset % 8) & 1));
        Ok(())
    }

    /// Shows a range of a string piece by piece.
    async fn show(
        &mut self,
        key: &[u8],
        object: &Object<T::Value>,
        range: Range<usize>,
        show: &mut impl FnMut(&[u8]),
    ) -> Outcome {
        let shown = text::pieces(self.tx, self.call.db, key, object, range, show).await;
        shown.map_err(|error| error::unreadable(&error))
    }

    fn unit(&self, index: usize) -> Outcome<Unit> {
        match () {
            () if self.is(index, "BIT") => Ok(Unit::Bit),
            () if self.is(index, "BYTE") => Ok(Unit::Byte),
            () => Err(error::SYNTAX),
        }
    }

    pub async fn bitcount(&mut self) -> Outcome {
        let key = self.key(1)?;
        let Some(object) = self.lookup_string(key).await? else {
            self.reply().int(0);
            return Ok(());
        };
        let len = text::len(&object);
        let bits = match self.args() {
            2 => 0..len * 8,
            4 | 5 => {
                let (start, end) = (self.int_arg(2)?, self.int_arg(3)?);
                if start < 0 && end < 0 && start > end {
                    self.reply().int(0);
                    return Ok(());
                }
                match if self.args() == 5 { self.unit(4)? } else { Unit::Byte } {
                    Unit::Bit => clip(start, end, len * 8),
                    Unit::Byte => in_bits(clip(start, end, len)),
                }
            }
            _ => return Err(error::SYNTAX),
        };
        let mut count = 0;
        if !bits.is_empty() {
            let mut mask = Mask::new(&bits);
            let bytes = bits.start / 8..bits.end.div_ceil(8);
            self.show(key, &object, bytes, &mut |piece| {
                count += mask.apply(piece).iter().map(|part| ones(part)).sum::<u64>();
            })
            .await?;
        }
        self.reply().int(i64::try_from(count).unwrap_or(i64::MAX));
        Ok(())
    }

    pub async fn bitpos(&mut self) -> Outcome {
        let bit = match self.int_arg(2)? {
            0 => false,
            1 => true,
            _ => return Err(fixed("ERR The bit argument must be 1 or 0.")),
        };
        let key = self.key(1)?;
        let Some(object) = self.lookup_string(key).await? else {
            // A key that is not there is an endless row of zeros.
            self.reply().int(if bit { -1 } else { 0 });
            return Ok(());
        };
        let len = text::len(&object);
        let end_given = self.args() >= 5;
        let bits = match self.args() {
            3 => 0..len * 8,
            4..=6 => {
                let start = self.int_arg(3)?;
                let unit = if self.args() == 6 { self.unit(5)? } else { Unit::Byte };
                let end = if end_given { self.int_arg(4)? } else { i64::MAX };
                match unit {
                    Unit::Bit => clip(start, end, len * 8),
                    Unit::Byte => in_bits(clip(start, end, len)),
                }
            }
            _ => return Err(error::SYNTAX),
        };
        if bits.is_empty() {
            self.reply().int(-1);
            return Ok(());
        }
        let mut position = None;
        let mut at = bits.start / 8 * 8;
        let bytes = bits.start / 8..bits.end.div_ceil(8);
        self.show(key, &object, bytes, &mut |piece| {
            if position.is_none() {
                position = find_bit(piece, bit, bits.start.saturating_sub(at)).map(|p| at + p);
            }
            at += piece.len() * 8;
        })
        .await?;
        let position = match position.filter(|position| bits.contains(position)) {
            Some(position) => position as i64,
            // Behind the string are zeros, unless the range says that it ends before them.
            None if !bit && !end_given => bits.end as i64,
            None => -1,
        };
        self.reply().int(position);
        Ok(())
    }

    pub async fn bitop(&mut self) -> Outcome {
        let operation: fn(u8, u8) -> u8 = match () {
            () if self.is(1, "AND") => |a, b| a & b,
            () if self.is(1, "OR") => |a, b| a | b,
            () if self.is(1, "XOR") => |a, b| a ^ b,
            // It has one source, so there is nothing to combine.
            () if self.is(1, "NOT") => |a, _| a,
            () => return Err(error::SYNTAX),
        };
        if self.is(1, "NOT") && self.args() != 4 {
            return Err(fixed("ERR BITOP NOT must be called with a single source key."));
        }
        let target = self.key(2)?;
        let mut sources = Vec::new();
        for key in self.keys(3)? {
            sources.push((key, self.lookup_string(key).await?));
        }
        let found = |source: &Option<Object<T::Value>>| source.as_ref().map_or(0, text::len);
        let len = sources.iter().map(|(_, source)| found(source)).max().unwrap_or(0);
        check_len(len)?;
        // A source that is shorter, or not there, is zeros from its end on.
        let mut result: Vec<u8> = Vec::new();
        for (i, (key, source)) in sources.iter().enumerate() {
            let bytes = match source {
                Some(source) => self.whole(key, source).await?,
                None => Cow::Borrowed(&[][..]),
            };
            if i == 0 {
                result = bytes.into_owned();
                result.resize(len, 0);
                if self.is(1, "NOT") {
                    result.iter_mut().for_each(|byte| *byte = !*byte);
                }
                continue;
            }
            let (covered, rest) = result.split_at_mut(bytes.len());
            covered.iter_mut().zip(&*bytes).for_each(|(byte, other)| {
                *byte = operation(*byte, *other);
            });
            rest.iter_mut().for_each(|byte| *byte = operation(*byte, 0));
        }
        if result.is_empty() {
            if self.peek(target).await?.is_some() {
                self.tx.remove(self.call.db, target);
            }
        } else {
            let meta = self.claim(target).await?;
            self.put(target, &meta, &result);
        }
        self.reply().count(result.len());
        Ok(())
    }
}

/// Returns the part of `len` things from `start` to `end`, both included, negative ones counted
/// from the end. Not quite as for GETRANGE: two negative ends in the wrong order may meet here.
fn clip(start: i64, end: i64, len: usize) -> Range<usize> {
    let signed_len = len as i64;
    let from_end = |index: i64| if index < 0 { (signed_len + index).max(0) } else { index };
    let (start, end) = (from_end(start), from_end(end).min(signed_len - 1));
    if start > end { 0..0 } else { start as usize..end as usize + 1 }
}

fn in_bits(bytes: Range<usize>) -> Range<usize> {
    bytes.start * 8..bytes.end * 8
}

fn ones(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8);
    let rest: u32 = words.remainder().iter().map(|byte| byte.count_ones()).sum();
    let whole = words.map(|word| word.iter().fold(0u64, |w, b| w << 8 | u64::from(*b)));
    whole.map(|word| u64::from(word.count_ones())).sum::<u64>() + u64::from(rest)
}

/// Takes from a row of bytes, seen piece by piece, the bits that are outside of a range which
/// starts in the first of them and ends in the last.
struct Mask {
    /// Bytes not seen yet.
    left: usize,
    first: Option<u8>,
    last: u8,
    edges: [[u8; 1]; 2],
}

impl Mask {
    fn new(bits: &Range<usize>) -> Mask {
        Mask {
            left: bits.end.div_ceil(8) - bits.start / 8,
            first: Some(0xff >> (bits.start % 8)),
            last: 0xffu8 << ((8 - bits.end % 8) % 8),
            edges: [[0]; 2],
        }
    }

    /// Returns what is left of a piece: its first byte, its middle, its last byte.
    fn apply<'a>(&'a mut self, piece: &'a [u8]) -> [&'a [u8]; 3] {
        let mut middle = piece;
        let mut edges: [&[u8]; 2] = [&[], &[]];
        self.left -= piece.len();
        let [front, back] = &mut self.edges;
        if let (Some(mask), [byte, rest @ ..]) = (self.first, middle) {
            self.first = None;
            let mask = if self.left == 0 && rest.is_empty() { mask & self.last } else { mask };
            *front = [byte & mask];
            edges[0] = front;
            middle = rest;
        }
        if let ([rest @ .., byte], 0) = (middle, self.left) {
            *back = [byte & self.last];
            edges[1] = back;
            middle = rest;
        }
        [edges[0], middle, edges[1]]
    }
}

/// Returns the offset of the first bit of this value, from bit `from` on.
fn find_bit(bytes: &[u8], bit: bool, from: usize) -> Option<usize> {
    let skip = if bit { 0x00 } else { 0xff };
    for (i, byte) in bytes.iter().enumerate().skip(from / 8) {
        let mut wanted = byte ^ skip;
        if i == from / 8 {
            wanted &= 0xff >> (from % 8);
        }
        if wanted != 0 {
            return Some(i * 8 + wanted.leading_zeros() as usize);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_bits_is_counted_the_same_in_any_pieces() {
        let bytes = [0xa5, 0xff, 0x00, 0x3c, 0x81];
        let bit = |i: usize| u64::from(bytes[i / 8] >> (7 - i % 8) & 1);
        for start in 0..40 {
            for end in start + 1..=40 {
                let expected: u64 = (start..end).map(bit).sum();
                let range = &bytes[start / 8..usize::div_ceil(end, 8)];
                for cut in 0..range.len() {
                    let mut mask = Mask::new(&(start..end));
                    let mut count = 0;
                    for piece in
                        [&range[..cut], &range[cut..]].into_iter().filter(|p| !p.is_empty())
                    {
                        count += mask.apply(piece).iter().map(|part| ones(part)).sum::<u64>();
                    }
                    assert_eq!(count, expected, "{start}..{end} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn the_first_bit_is_found_from_any_bit_on() {
        let bytes = [0x00, 0xff, 0x0f, 0xf0];
        for bit in [false, true] {
            for from in 0..32 {
                let is = |i: &usize| (bytes[i / 8] >> (7 - i % 8) & 1 == 1) == bit;
                assert_eq!(find_bit(&bytes, bit, from), (from..32).find(is), "{bit} from {from}");
            }
        }
    }
}
