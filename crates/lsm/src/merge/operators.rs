//! Ready-made operators. Their names begin with `atoll.`, and a database needs no registration of
//! them.

use std::sync::Arc;

use super::{MergeOperator, Refusal};

/// Adds numbers of 8 bytes, little-endian: counters. The sum wraps around, so that whoever takes the
/// bytes for `i64` counts below zero too.
///
/// A key without a value counts from 0. A value of another length is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Add;

/// Keeps the larger of two byte strings, by their order as keys: numbers have to be big-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Max;

/// Appends, with a separator between a value and what comes behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    separator: Vec<u8>,
    name: String,
}

impl Add {
    /// Its name, for [`KeyspaceOptions`](crate::KeyspaceOptions).
    pub const NAME: &str = "atoll.add";
}

impl Max {
    /// Its name, for [`KeyspaceOptions`](crate::KeyspaceOptions).
    pub const NAME: &str = "atoll.max";
}

impl Append {
    /// Returns the operator that puts `separator`, of at most 100 bytes, between the parts.
    ///
    /// # Panics
    /// The separator is longer.
    pub fn new(separator: &[u8]) -> Append {
        assert!(separator.len() <= SEPARATOR_LEN_MAX, "a separator has at most 100 bytes");
        let hex: String = separator.iter().map(|byte| format!("{byte:02x}")).collect();
        Append { separator: separator.to_vec(), name: format!("atoll.append:{hex}") }
    }
}

const SEPARATOR_LEN_MAX: usize = 100;

/// Returns the operator whose name is `atoll.` and `rest`.
pub(super) fn ready_made(rest: &str) -> Option<Arc<dyn MergeOperator>> {
    match rest {
        "add" => Some(Arc::new(Add)),
        "max" => Some(Arc::new(Max)),
        _ => {
            let hex = rest.strip_prefix("append:")?.as_bytes();
            let pairs = hex.chunks(2).map(|pair| match pair {
                [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
                _ => None,
            });
            let separator: Vec<u8> = pairs.collect::<Option<_>>()?;
            let fits = separator.len() <= SEPARATOR_LEN_MAX;
            let append = fits.then(|| Append::new(&separator))?;
            // One name for one operator: no capitals, no signs.
            (append.name.as_bytes().ends_with(hex)).then(|| Arc::new(append) as _)
        }
    }
}

fn number(bytes: &[u8]) -> Result<u64, Refusal> {
    let exact: Result<[u8; 8], _> = bytes.try_into();
    Ok(u64::from_le_bytes(
        exact.map_err(|_| format!("a number to add has 8 bytes, and these are {}", bytes.len()))?,
    ))
}

impl MergeOperator for Add {
    fn name(&self) -> &str {
        Add::NAME
    }

    fn full_merge(
        &self,
        _key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let mut sum = existing.map_or(Ok(0), number)?;
        for operand in operands {
            sum = sum.wrapping_add(number(operand)?);
        }
        Ok(Some(sum.to_le_bytes().to_vec()))
    }

    fn partial_merge(&self, _key: &[u8], left: &[u8], right: &[u8]) -> Option<Vec<u8>> {
        let sum = number(left).ok()?.wrapping_add(number(right).ok()?);
        Some(sum.to_le_bytes().to_vec())
    }

    fn check(&self, operand: &[u8]) -> Result<(), Refusal> {
        number(operand).map(|_| ())
    }
}

impl MergeOperator for Max {
    fn name(&self) -> &str {
        Max::NAME
    }

    fn full_merge(
        &self,
        _key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let largest = operands.iter().copied().chain(existing).max();
        Ok(largest.map(<[u8]>::to_vec))
    }

    fn partial_merge(&self, _key: &[u8], left: &[u8], right: &[u8]) -> Option<Vec<u8>> {
        Some(left.max(right).to_vec())
    }
}

impl MergeOperator for Append {
    fn name(&self) -> &str {
        &self.name
    }

    fn full_merge(
        &self,
        _key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let parts: Vec<&[u8]> = existing.into_iter().chain(operands.iter().copied()).collect();
        Ok(Some(parts.join(&self.separator[..])))
    }

    fn partial_merge(&self, _key: &[u8], left: &[u8], right: &[u8]) -> Option<Vec<u8>> {
        Some([left, right].join(&self.separator[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_made_operators_are_found_by_their_own_names() {
        for separator in [&b""[..], b",", b"\r\n\xff"] {
            let append = Append::new(separator);
            let rest = append.name().strip_prefix("atoll.").unwrap();
            assert_eq!(ready_made(rest).unwrap().name(), append.name());
        }
        let long = format!("append:{}", "2c".repeat(101));
        for rest in ["", "add ", "append", "append:2", "append:2C", "append:+1", "append:zz", &long]
        {
            assert!(ready_made(rest).is_none(), "{rest}");
        }
    }

    #[test]
    fn however_a_run_is_cut_the_answer_is_the_same() {
        let words: [&[u8]; 5] = [
            b"aaaaaaaa",
            b"cccccccc",
            b"bbbbbbbb",
            b"\xff\xff\xff\xff\xff\xff\xff\xff",
            b"dddddddd",
        ];
        let operators: [Box<dyn MergeOperator>; 4] = [
            Box::new(Add),
            Box::new(Max),
            Box::new(Append::new(b"")),
            Box::new(Append::new(b", ")),
        ];
        for operator in operators {
            for existing in [None, Some(words[0])] {
                let whole = operator.full_merge(b"k", existing, &words).unwrap();
                for cut in 0..=words.len() {
                    let (left, right) = words.split_at(cut);
                    let first = if left.is_empty() {
                        existing.map(<[u8]>::to_vec)
                    } else {
                        operator.full_merge(b"k", existing, left).unwrap()
                    };
                    let both = if right.is_empty() {
                        first
                    } else {
                        operator.full_merge(b"k", first.as_deref(), right).unwrap()
                    };
                    assert_eq!(both, whole, "{} cut at {cut}", operator.name());
                }
                let pair = words[1..].iter().fold(words[0].to_vec(), |left, right| {
                    operator.partial_merge(b"k", &left, right).unwrap()
                });
                let folded = operator.full_merge(b"k", existing, &[&pair]).unwrap();
                assert_eq!(folded, whole, "{} in parts", operator.name());
            }
        }
    }

    #[test]
    fn counters_wrap_and_refuse_what_is_no_number() {
        let minus_one = u64::MAX.to_le_bytes();
        let sum = Add.full_merge(b"k", Some(&5u64.to_le_bytes()), &[&minus_one]).unwrap();
        assert_eq!(sum, Some(4u64.to_le_bytes().to_vec()));
        assert!(Add.check(b"12345678").is_ok() && Add.check(b"1").is_err());
        assert!(Add.full_merge(b"k", Some(b"text"), &[&minus_one]).is_err());
        assert_eq!(Add.partial_merge(b"k", b"1", &minus_one), None);
    }
}
