//! LCS: the longest common subsequence of two strings, and where its parts lie.

use std::borrow::Cow;

use crate::data::Data;
use crate::error::{self, Outcome, fixed};
use crate::object::Kind;
use crate::tx::Tx;

/// Most cells of the table, which are what the command costs: 4 bytes and about a nanosecond each.
const MAX_CELLS: usize = 128 << 20;

/// A part that lies in both strings; the ends are included.
#[derive(Debug, PartialEq, Eq)]
struct Match {
    a: (usize, usize),
    b: (usize, usize),
}

impl Match {
    fn len(&self) -> usize {
        self.a.1 - self.a.0 + 1
    }
}

impl<T: Tx> Data<'_, T> {
    pub async fn lcs(&mut self) -> Outcome {
        let (key_a, key_b) = (self.key(1)?, self.key(2)?);
        let (a, b) = (self.lookup(key_a).await?, self.lookup(key_b).await?);
        if [&a, &b].into_iter().flatten().any(|object| object.meta.kind != Kind::String) {
            return Err(fixed("ERR The specified keys must contain string values"));
        }
        let (mut index, mut only_len, mut with_len, mut min_len) = (false, false, false, 0);
        let mut at = 3;
        while at < self.args() {
            match () {
                () if self.is(at, "IDX") => index = true,
                () if self.is(at, "LEN") => only_len = true,
                () if self.is(at, "WITHMATCHLEN") => with_len = true,
                () if self.is(at, "MINMATCHLEN") && at + 1 < self.args() => {
                    at += 1;
                    min_len = usize::try_from(self.int_arg(at)?).unwrap_or(0);
                }
                () => return Err(error::SYNTAX),
            }
            at += 1;
        }
        if index && only_len {
            return Err(fixed("ERR If you want both the length and indexes, please just use IDX."));
        }
        let a = match &a {
            Some(object) => self.whole(key_a, object).await?,
            None => Cow::Borrowed(&[][..]),
        };
        let b = match &b {
            Some(object) => self.whole(key_b, object).await?,
            None => Cow::Borrowed(&[][..]),
        };
        if (a.len() + 1).saturating_mul(b.len() + 1) > MAX_CELLS {
            return Err(fixed(
                "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len",
            ));
        }
        let table = Table::new(&a, &b);
        if only_len {
            self.reply().count(table.len());
            return Ok(());
        }
        let (text, matches) = table.trace(&a, &b);
        if !index {
            self.reply().bulk(&text);
            return Ok(());
        }
        let shown = || matches.iter().filter(|found| found.len() >= min_len);
        let mut reply = self.reply();
        reply.map(2);
        reply.bulk(b"matches");
        reply.array(shown().count());
        for found in shown() {
            reply.array(2 + usize::from(with_len));
            for (start, end) in [found.a, found.b] {
                reply.array(2);
                reply.count(start);
                reply.count(end);
            }
            if with_len {
                reply.count(found.len());
            }
        }
        reply.bulk(b"len");
        reply.count(table.len());
        Ok(())
    }
}

/// The lengths of the longest common subsequences of all pairs of prefixes.
struct Table {
    /// Length of the second string, plus 1.
    columns: usize,
    cells: Vec<u32>,
}

impl Table {
    fn new(a: &[u8], b: &[u8]) -> Table {
        let columns = b.len() + 1;
        let mut cells = vec![0; (a.len() + 1) * columns];
        for (i, x) in a.iter().enumerate() {
            let (above, below) = cells.split_at_mut((i + 1) * columns);
            let (above, row) = (&above[i * columns..], &mut below[..columns]);
            for (j, y) in b.iter().enumerate() {
                row[j + 1] = if x == y { above[j] + 1 } else { above[j + 1].max(row[j]) };
            }
        }
        Table { columns, cells }
    }

    fn at(&self, i: usize, j: usize) -> u32 {
        self.cells[i * self.columns + j]
    }

    fn len(&self) -> usize {
        self.cells.last().map_or(0, |len| *len as usize)
    }

    /// Walks back from the ends; returns the subsequence and its parts, the last one first.
    fn trace(&self, a: &[u8], b: &[u8]) -> (Vec<u8>, Vec<Match>) {
        let mut text = Vec::with_capacity(self.len());
        let mut matches: Vec<Match> = Vec::new();
        let (mut i, mut j) = (a.len(), b.len());
        // Whether the part found last goes on at the place before it.
        let mut joined = false;
        while i > 0 && j > 0 {
            if a[i - 1] == b[j - 1] {
                i -= 1;
                j -= 1;
                text.push(a[i]);
                match matches.last_mut().filter(|_| joined) {
                    Some(last) => {
                        last.a.0 = i;
                        last.b.0 = j;
                    }
                    None => matches.push(Match { a: (i, i), b: (j, j) }),
                }
                joined = true;
            } else {
                // Redis's choice between two that are as long.
                if self.at(i - 1, j) > self.at(i, j - 1) {
                    i -= 1;
                } else {
                    j -= 1;
                }
                joined = false;
            }
        }
        text.reverse();
        (text, matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subsequence_and_its_parts_are_those_of_redis() {
        for (a, b, text, parts) in [
            ("ohmytext", "mynewtext", "mytext", vec![((4, 7), (5, 8)), ((2, 3), (0, 1))]),
            ("abc", "abc", "abc", vec![((0, 2), (0, 2))]),
            ("abc", "xyz", "", vec![]),
            ("", "abc", "", vec![]),
            ("axbyc", "abc", "abc", vec![((4, 4), (2, 2)), ((2, 2), (1, 1)), ((0, 0), (0, 0))]),
        ] {
            let table = Table::new(a.as_bytes(), b.as_bytes());
            let (found, matches) = table.trace(a.as_bytes(), b.as_bytes());
            assert_eq!(found, text.as_bytes());
            assert_eq!(table.len(), text.len());
            let matches: Vec<_> = matches.iter().map(|found| (found.a, found.b)).collect();
            assert_eq!(matches, parts, "{a} {b}");
        }
    }
}
