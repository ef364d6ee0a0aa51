//! Bytes: varints, seeded checksums, hashes, and a reader that never trusts a length.
//!
//! The crate knows no format; a format is described where it is written (docs/formats/). What all
//! formats share is here once: integers are little-endian unless a key must sort by them, lengths
//! are LEB128 varints, checksums are CRC-32C over a *seed* and the content, so that good bytes in
//! the wrong place (a misdirected write, a recycled segment, a swapped file) do not verify.

pub mod checksum;
pub mod hash;
pub mod read;
pub mod varint;

pub use read::{Malformed, Reader};
