//! BITFIELD: integers of any width at any bit of a string.
//!
//! All operations are parsed before the first runs: a request with an error in it does nothing.
//! Then they run one after the other, each seeing what those before it wrote.

use std::ops::RangeInclusive;

use crate::data::Data;
use crate::data::bits::BAD_OFFSET;
use crate::error::{self, Outcome, fixed};
use crate::layout::MAX_STRING;
use crate::text::{self, Editor};
use crate::tx::Tx;

/// A type of integer: its sign and its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Type {
    signed: bool,
    bits: u32,
}

/// What happens to a value that its type cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overflow {
    /// The bits that fit are kept.
    Wrap,
    /// The nearest value that fits is taken.
    Saturate,
    /// Nothing is written; the answer is null.
    Fail,
}

#[derive(Clone, Copy)]
enum Action {
    Get,
    Set(i64),
    Increment(i64),
}

#[derive(Clone, Copy)]
struct Operation {
    action: Action,
    of: Type,
    offset: usize,
    overflow: Overflow,
}

impl<T: Tx> Data<'_, T> {
    pub async fn bitfield(&mut self, may_write: bool) -> Outcome {
        let operations = self.operations()?;
        // The string is made long enough for every write, whether or not it overflows.
        let end = operations.iter().filter(|o| o.is_write()).map(Operation::byte_end).max();
        if end.is_some() && !may_write {
            return Err(fixed("ERR BITFIELD_RO only supports the GET subcommand"));
        }
        let key = self.key(1)?;
        let found = match end {
            Some(_) => self.peek_string(key).await?,
            None => self.lookup_string(key).await?,
        };
        let meta = self.edited(found.as_ref());
        let place = (self.call.db, key);
        self.reply().array(operations.len());
        let Some(end) = end else {
            for Operation { of, offset, .. } in operations {
                let value = match &found {
                    Some(object) => {
                        let mut bytes = [0; 9];
                        let len = text::len(object);
                        let range = (offset / 8).min(len)..(offset / 8 + 9).min(len);
                        let mut at = 0;
                        let copy = &mut |piece: &[u8]| {
                            bytes[at..at + piece.len()].copy_from_slice(piece);
                            at += piece.len();
                        };
                        let read = text::pieces(self.tx, place.0, key, object, range, copy).await;
                        read.map_err(|error| error::unreadable(&error))?;
                        of.read(&bytes, offset % 8)
                    }
                    None => 0,
                };
                self.reply().int(value as i64);
            }
            return Ok(());
        };
        let mut editor = Editor::open(self.tx, found.as_ref(), meta, end);
        for Operation { action, of, offset, overflow } in operations {
            let mut window = [0; 9];
            let at = offset / 8;
            let read = editor.read(self.tx, place, at, &mut window).await;
            read.map_err(|error| error::unreadable(&error))?;
            let old = of.read(&window, offset % 8);
            let (wanted, answer_new) = match action {
                Action::Get => {
                    self.reply().int(old as i64);
                    continue;
                }
                // A negative number is a large one where there is no sign.
                Action::Set(value) if of.signed => (i128::from(value), false),
                Action::Set(value) => (i128::from(value as u64), false),
                Action::Increment(amount) => (old + i128::from(amount), true),
            };
            let Some(new) = of.fit(wanted, overflow) else {
                self.reply().null();
                continue;
            };
            self.reply().int(if answer_new { new } else { old } as i64);
            of.write(&mut window, offset % 8, new);
            let len = (offset % 8 + of.bits as usize).div_ceil(8);
            let written = editor.write(self.tx, place, at, &window[..len]).await;
            written.map_err(|error| error::unreadable(&error))?;
        }
        editor.finish(self.tx, place.0, key);
        Ok(())
    }

    fn operations(&self) -> Outcome<Vec<Operation>> {
        let mut operations = Vec::new();
        let mut overflow = Overflow::Wrap;
        let mut at = 2;
        while at < self.args() {
            let left = self.args() - at - 1;
            if self.is(at, "OVERFLOW") && left >= 1 {
                overflow = match () {
                    () if self.is(at + 1, "WRAP") => Overflow::Wrap,
                    () if self.is(at + 1, "SAT") => Overflow::Saturate,
                    () if self.is(at + 1, "FAIL") => Overflow::Fail,
                    () => return Err(fixed("ERR Invalid OVERFLOW type specified")),
                };
                at += 2;
                continue;
            }
            let make: fn(i64) -> Action = match () {
                () if self.is(at, "GET") && left >= 2 => |_| Action::Get,
                () if self.is(at, "SET") && left >= 3 => Action::Set,
                () if self.is(at, "INCRBY") && left >= 3 => Action::Increment,
                () => return Err(error::SYNTAX),
            };
            let of = Type::parse(self.arg(at + 1)).ok_or(fixed(
                "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not \
                 supported but i64 is.",
            ))?;
            let offset = field_offset(self.arg(at + 2), of.bits).ok_or(BAD_OFFSET)?;
            let is_get = matches!(make(0), Action::Get);
            let value = if is_get { 0 } else { self.int_arg(at + 3)? };
            operations.push(Operation { action: make(value), of, offset, overflow });
            at += if is_get { 3 } else { 4 };
        }
        Ok(operations)
    }
}

/// Parses an offset in bits, or `#n` for the `n`th field of this width.
fn field_offset(text: &[u8], bits: u32) -> Option<usize> {
    let (digits, unit) = match text {
        [b'#', digits @ ..] => (digits, i64::from(bits)),
        digits => (digits, 1),
    };
    let offset = atoll_resp::number::parse_i64(digits)?.checked_mul(unit)?;
    usize::try_from(offset).ok().filter(|offset| offset / 8 < MAX_STRING)
}

impl Operation {
    fn is_write(&self) -> bool {
        !matches!(self.action, Action::Get)
    }

    /// Returns how many bytes a string needs that has the field in it.
    fn byte_end(&self) -> usize {
        (self.offset + self.of.bits as usize).div_ceil(8)
    }
}

impl Type {
    fn parse(text: &[u8]) -> Option<Type> {
        let (signed, max, digits) = match text {
            [b'i', digits @ ..] => (true, 64, digits),
            [b'u', digits @ ..] => (false, 63, digits),
            _ => return None,
        };
        let bits = u32::try_from(atoll_resp::number::parse_i64(digits)?).ok()?;
        (1..=max).contains(&bits).then_some(Type { signed, bits })
    }

    fn range(self) -> RangeInclusive<i128> {
        match self.signed {
            true => -(1 << (self.bits - 1))..=(1 << (self.bits - 1)) - 1,
            false => 0..=(1 << self.bits) - 1,
        }
    }

    /// Returns what is written for a value; `None` for nothing.
    fn fit(self, value: i128, overflow: Overflow) -> Option<i128> {
        let range = self.range();
        match overflow {
            _ if range.contains(&value) => Some(value),
            Overflow::Wrap => Some(self.interpret(value as u128)),
            Overflow::Saturate => Some(value.clamp(*range.start(), *range.end())),
            Overflow::Fail => None,
        }
    }

    /// Returns the value that the lowest bits of a word mean.
    fn interpret(self, word: u128) -> i128 {
        let unused = 128 - self.bits;
        match self.signed {
            true => (word << unused) as i128 >> unused,
            false => (word << unused >> unused) as i128,
        }
    }

    /// Reads the field that starts at bit `from`, below 8, of a window.
    fn read(self, window: &[u8; 9], from: usize) -> i128 {
        let word = window.iter().fold(0u128, |word, byte| word << 8 | u128::from(*byte));
        self.interpret(word >> (72 - from - self.bits as usize))
    }

    fn write(self, window: &mut [u8; 9], from: usize, value: i128) {
        let shift = 72 - from - self.bits as usize;
        let mask = ((1u128 << self.bits) - 1) << shift;
        let word = window.iter().fold(0u128, |word, byte| word << 8 | u128::from(*byte));
        let word = word & !mask | (value as u128) << shift & mask;
        for (i, byte) in window.iter_mut().enumerate() {
            *byte = (word >> (64 - 8 * i)) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_that_fit_in_64_bits_with_a_sign() {
        let ty = |signed, bits| Some(Type { signed, bits });
        for (text, expected) in [
            ("i1", ty(true, 1)),
            ("i64", ty(true, 64)),
            ("u63", ty(false, 63)),
            ("u64", None),
            ("i65", None),
            ("i0", None),
            ("u", None),
            ("8", None),
            ("I8", None),
            ("i08", None),
        ] {
            assert_eq!(Type::parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn values_that_do_not_fit_wrap_saturate_or_fail() {
        use Overflow::{Fail, Saturate, Wrap};
        for (ty, value, overflow, expected) in [
            ("u8", 255, Wrap, Some(255)),
            ("u8", 256, Wrap, Some(0)),
            ("u8", -1, Wrap, Some(255)),
            ("u8", -1, Saturate, Some(0)),
            ("u8", 300, Saturate, Some(255)),
            ("u8", 300, Fail, None),
            ("i8", 127, Fail, Some(127)),
            ("i8", 128, Wrap, Some(-128)),
            ("i8", 128, Saturate, Some(127)),
            ("i8", -129, Wrap, Some(127)),
            ("i8", -129, Saturate, Some(-128)),
            ("i8", -129, Fail, None),
            ("i64", i128::from(i64::MAX) + 1, Wrap, Some(i128::from(i64::MIN))),
            ("i64", i128::from(i64::MIN) - 1, Saturate, Some(i128::from(i64::MIN))),
            ("u63", 1 << 63, Wrap, Some(0)),
            ("u63", (1 << 63) + 5, Saturate, Some((1 << 63) - 1)),
            ("i1", 1, Wrap, Some(-1)),
        ] {
            let fitted = Type::parse(ty.as_bytes()).unwrap().fit(value, overflow);
            assert_eq!(fitted, expected, "{ty} {value} {overflow:?}");
        }
    }

    #[test]
    fn a_field_reads_back_at_every_bit_and_disturbs_no_other() {
        for ty in ["u1", "i5", "u8", "i13", "u63", "i64"] {
            let ty = Type::parse(ty.as_bytes()).unwrap();
            for from in 0..8 {
                for background in [0x00, 0xff, 0xa5] {
                    for value in [*ty.range().start(), *ty.range().end()] {
                        let mut window = [background; 9];
                        ty.write(&mut window, from, value);
                        assert_eq!(ty.read(&window, from), value);
                        let bits = ty.bits as usize;
                        let bit = |i: usize| window[i / 8] >> (7 - i % 8) & 1;
                        for i in (0..from).chain(from + bits..72) {
                            assert_eq!(bit(i), background >> (7 - i % 8) & 1);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn offsets_are_bits_or_fields() {
        assert_eq!(field_offset(b"100", 8), Some(100));
        assert_eq!(field_offset(b"#100", 8), Some(800));
        assert_eq!(field_offset(b"#-1", 8), None);
        assert_eq!(field_offset(b"4294967295", 8), Some(4_294_967_295));
        assert_eq!(field_offset(b"4294967296", 8), None);
        assert_eq!(field_offset(b"#9223372036854775807", 64), None);
    }
}
