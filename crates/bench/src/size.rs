//! Sizes as people write them: counts in thousands, bytes in powers of two.

/// Parses a count: `500`, `500k`, `2M`, `1G`.
pub fn count(text: &str) -> Result<u64, String> {
    let units = [("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000)];
    scaled(text, &units).ok_or_else(|| format!("'{text}' is no count; write 500k or 2M"))
}

/// Parses bytes: `65536`, `64MiB`, `64M`, `1GiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let units = [
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("k", 1 << 10),
        ("m", 1 << 20),
        ("g", 1 << 30),
    ];
    scaled(text, &units).ok_or_else(|| format!("'{text}' is no size; write 64MiB or 1GiB"))
}

/// Length above which values leave the tables, `None` if none do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold(pub Option<u32>);

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(len) => write!(f, "{len}"),
            None => f.write_str("off"),
        }
    }
}

/// Parses a length above which values leave the tables: a size, or `off`.
pub fn threshold(text: &str) -> Result<Threshold, String> {
    if text == "off" {
        return Ok(Threshold(None));
    }
    let len =
        u32::try_from(bytes(text)?).map_err(|_| format!("'{text}' is longer than a value"))?;
    Ok(Threshold(Some(len)))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let (digits, factor) = units
        .iter()
        .find_map(|&(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .unwrap_or((&text, 1));
    let number: u64 = digits.trim().parse().ok()?;
    number.checked_mul(factor).filter(|&product| product > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_read_as_they_are_written() {
        for text in ["off", "512", "4KiB"] {
            let read = threshold(text).unwrap();
            assert_eq!(threshold(&read.to_string()), Ok(read));
        }
        assert_eq!(threshold("4KiB"), Ok(Threshold(Some(4096))));
        assert!(threshold("8GiB").is_err() && threshold("none").is_err());
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, expected) in
            [("500", Some(500)), ("500k", Some(500_000)), ("2M", Some(2_000_000)), ("0", None)]
        {
            assert_eq!(count(text).ok(), expected, "{text}");
        }
        for (text, expected) in [
            ("64MiB", Some(64 << 20)),
            ("64 m", Some(64 << 20)),
            ("1gib", Some(1 << 30)),
            ("4096", Some(4096)),
            ("-1", None),
            ("", None),
            ("MiB", None),
            ("99999999999G", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
    }
}
