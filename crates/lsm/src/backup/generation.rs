//! The file of a generation: what is restored where, from which stored file, with which checksums.
//!
//! ```text
//!   atoll-backup-generation 1 3 1764178000123 1 524288
//!   file files/.. | size | length | target | checksum of each MiB, hex
//!   end 12 9d3c01aa
//! ```
//!
//! Text, so that a person who has nothing else left can see what is where. The page is
//! docs/formats/backup.md.

use std::path::Path;

use atoll_encoding::checksum::{Place, seeded};

use super::Generation;
use crate::error::{Error, Result};
use crate::image::PIECE;

const KIND: &str = "atoll-backup-generation";
/// The version that this program writes and reads.
pub(super) const FORMAT: u32 = 1;

/// A file of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Name of the stored file.
    pub(super) stored: String,
    /// Where it belongs, relative to the directory that is restored.
    pub(super) target: String,
    /// Bytes of the stored file.
    pub(super) size: u64,
    /// Length of the restored one; what is behind the stored bytes is zeros.
    pub(super) length: u64,
    /// The checksum of each MiB of the stored bytes.
    pub(super) sums: Vec<u32>,
}

/// What a generation holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) number: u64,
    pub(super) made: u64,
    pub(super) new_files: u64,
    pub(super) new_bytes: u64,
    pub(super) items: Vec<Item>,
}

impl Contents {
    pub(super) fn new(number: u64, made: u64) -> Contents {
        Contents { number, made, new_files: 0, new_bytes: 0, items: Vec::new() }
    }

    /// Adds a file, which was copied for this generation or not.
    pub(super) fn add(&mut self, item: Item, copied: bool) {
        if copied {
            self.new_files += 1;
            self.new_bytes += item.size;
        }
        self.items.push(item);
    }

    pub(super) fn about(&self) -> Generation {
        Generation {
            number: self.number,
            made: self.made,
            files: self.items.len() as u64,
            bytes: self.items.iter().map(|item| item.size).sum(),
            new_files: self.new_files,
            new_bytes: self.new_bytes,
        }
    }

    pub(super) fn encode(&self) -> String {
        let Contents { number, made, new_files, new_bytes, items } = self;
        let mut text = format!("{KIND} {FORMAT} {number} {made} {new_files} {new_bytes}\n");
        for Item { stored, target, size, length, sums } in items {
            let sums: Vec<String> = sums.iter().map(|sum| format!("{sum:08x}")).collect();
            // Nothing has no checksum, and every line as many words.
            let sums = if sums.is_empty() { "-".to_owned() } else { sums.join(",") };
            text.push_str(&format!("file {stored} {size} {length} {target} {sums}\n"));
        }
        let sum = sum_of(0, text.as_bytes());
        text.push_str(&format!("end {} {sum:08x}\n", items.len()));
        text
    }

    /// Decodes the file at `path`, of generation `number`.
    pub(super) fn decode(bytes: &[u8], number: u64, path: &Path) -> Result<Contents> {
        let corrupt = |offset: usize, what: &str| {
            Err(Error::corruption(path, offset as u64, format!("the generation's file: {what}")))
        };
        let Ok(text) = std::str::from_utf8(bytes) else { return corrupt(0, "it is no text") };
        // The checksum comes first, so that a flipped bit is not taken for another version.
        let end = text.strip_suffix('\n').and_then(|t| t.rfind('\n')).map_or(0, |at| at + 1);
        let mut last = text[end..].trim_end_matches('\n').split(' ');
        let (word, count, sum) = (last.next(), last.next(), last.next());
        let expected = format!("{:08x}", sum_of(0, &bytes[..end]));
        if word != Some("end") || sum != Some(&expected[..]) || last.next().is_some() {
            return corrupt(end, "it does not verify");
        }
        let mut lines = text[..end].lines();
        let mut head = lines.next().unwrap_or_default().split(' ');
        if head.next() != Some(KIND) {
            return corrupt(0, "it does not say what it is");
        }
        let mut next = || head.next().and_then(|word| word.parse::<u64>().ok());
        match next() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                return Err(Error::Foreign {
                    path: path.to_owned(),
                    what: format!(
                        "the generation has format {format}, this program reads {FORMAT}: use a \
                         newer one"
                    ),
                });
            }
            None => return corrupt(0, "it has no format"),
        }
        let (Some(named), Some(made), Some(new_files), Some(new_bytes)) =
            (next(), next(), next(), next())
        else {
            return corrupt(0, "its first line is incomplete");
        };
        if named != number {
            return corrupt(0, &format!("this is generation {named} under another one's name"));
        }
        let mut contents = Contents { number, made, new_files, new_bytes, items: Vec::new() };
        let mut offset = text.find('\n').map_or(0, |at| at + 1);
        for line in lines {
            let Some(item) = decode_item(line) else {
                return corrupt(offset, &format!("'{line}' names no file"));
            };
            contents.items.push(item);
            offset += line.len() + 1;
        }
        if count != Some(&contents.items.len().to_string()[..]) {
            return corrupt(end, "it has another number of files than it says");
        }
        Ok(contents)
    }
}

fn decode_item(line: &str) -> Option<Item> {
    let mut words = line.strip_prefix("file ")?.split(' ');
    let stored = words.next().filter(|name| is_name(name))?.to_owned();
    let size: u64 = words.next()?.parse().ok()?;
    let length = words.next()?.parse().ok()?;
    let target = words.next().filter(|path| path.split('/').all(is_name))?.to_owned();
    let sums = match words.next()? {
        "-" => Vec::new(),
        sums => {
            let sums = sums.split(',').map(|sum| u32::from_str_radix(sum, 16));
            sums.collect::<Result<Vec<u32>, _>>().ok()?
        }
    };
    let fits = sums.len() as u64 == size.div_ceil(PIECE) && size <= length;
    (fits && words.next().is_none()).then_some(Item { stored, target, size, length, sums })
}

/// Returns whether a word names a file in a directory, and no other place.
fn is_name(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !word.is_empty() && !word.starts_with('.') && word.chars().all(plain)
}

/// Returns how a table is named in a backup.
pub(super) fn key(store: u64, table: u64, salt: u64) -> String {
    format!("{store:016x}-{table:08}-{salt:016x}")
}

/// Returns the name that a stored table was given by [`key`].
pub(super) fn key_of(stored: &str) -> Option<&str> {
    let body = stored.strip_suffix(".sst").or_else(|| stored.strip_suffix(".val"))?;
    let mut dashes = body.match_indices('-').map(|(at, _)| at);
    let (_, _) = (dashes.next()?, dashes.next()?);
    Some(dashes.next().map_or(body, |end| &body[..end]))
}

/// Returns the checksum of the bytes at `offset` of a stored file.
pub(super) fn sum_of(offset: u64, bytes: &[u8]) -> u32 {
    seeded(Place { file: 0, salt: 0, offset }, &[bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let mut contents = Contents::new(3, 1_764_178_000_123);
        let item = |stored: &str, target: &str, size: u64, length| Item {
            stored: stored.to_owned(),
            target: target.to_owned(),
            size,
            length,
            sums: (0..size.div_ceil(PIECE) as u32).collect(),
        };
        let key = key(7, 41, u64::MAX);
        contents.add(item(&format!("{key}.sst"), "store-0/tables/00000041.sst", 70, 70), false);
        contents.add(item("00000003-00001", "store-0/log/0000000001.log", 3 << 20, 1 << 30), true);
        contents.add(item("00000003-00002", "ATOLL", 0, 0), true);
        contents
    }

    #[test]
    fn a_generation_comes_back_and_every_flipped_bit_is_noticed() {
        let path = Path::new("generations/00000003");
        let text = contents().encode();
        assert_eq!(Contents::decode(text.as_bytes(), 3, path).unwrap(), contents());
        assert!(Contents::decode(text.as_bytes(), 4, path).is_err());
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Contents::decode(&bytes, 3, path).is_err(), "bit {bit}");
        }
        for len in 0..text.len() {
            assert!(Contents::decode(&text.as_bytes()[..len], 3, path).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_generation_names_no_place_outside_of_its_target() {
        let line = |stored: &str, target: &str| format!("file {stored} 0 0 {target} -");
        assert!(decode_item(&line("00000001-00000", "log/1.log")).is_some());
        for (stored, target) in [
            ("a", "../b"),
            ("a", "/b"),
            ("a", "b//c"),
            ("a", "b/"),
            ("a", "."),
            ("../a", "b"),
            ("a/b", "b"),
            ("", "b"),
        ] {
            assert_eq!(decode_item(&line(stored, target)), None, "{stored} {target}");
        }
        assert_eq!(decode_item("file a 1 1 b -"), None, "a byte without a checksum");
        assert_eq!(decode_item("file a 9 8 b 00000000"), None, "shorter than what is stored");
    }

    #[test]
    fn a_stored_table_is_found_by_store_number_and_salt() {
        let key = key(1, 2, 3);
        assert_eq!(key_of(&format!("{key}.sst")), Some(&key[..]));
        assert_eq!(key_of(&format!("{key}-00000009.sst")), Some(&key[..]));
        assert_eq!(key_of("00000001-00000"), None);
    }
}
