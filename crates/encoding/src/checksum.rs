//! CRC-32C seeded with the place the bytes belong to.

/// Where bytes belong: part of every checksum, so that bytes found elsewhere do not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Identity of the file, never reused by another one.
    pub file: u64,
    /// Random number drawn when the file was (re)formatted.
    pub salt: u64,
    /// Offset of the bytes in the file.
    pub offset: u64,
}

/// Returns the checksum of `parts`, concatenated, at `place`.
pub fn seeded(place: Place, parts: &[&[u8]]) -> u32 {
    let mut seed = [0; 24];
    seed[..8].copy_from_slice(&place.file.to_le_bytes());
    seed[8..16].copy_from_slice(&place.salt.to_le_bytes());
    seed[16..].copy_from_slice(&place.offset.to_le_bytes());
    parts.iter().fold(crc32c::crc32c(&seed), |crc, part| crc32c::crc32c_append(crc, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_elsewhere_do_not_verify() {
        let place = Place { file: 7, salt: 99, offset: 4096 };
        let sum = seeded(place, &[b"atoll", b"db"]);
        assert_eq!(sum, seeded(place, &[b"atolldb"]), "parts are concatenated");
        for other in [
            Place { file: 8, ..place },
            Place { salt: 98, ..place },
            Place { offset: 8192, ..place },
        ] {
            assert_ne!(sum, seeded(other, &[b"atolldb"]));
        }
    }
}
