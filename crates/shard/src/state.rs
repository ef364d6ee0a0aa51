//! What a shard keeps about itself in the store: names and encodings.
//!
//! ```text
//!   S | shard | 'd'                  its descriptor
//!   S | shard | 'c' | keyspace u32   how many keys of a keyspace it has
//!   S | shard | 'm'                  its replicas, once they have changed
//!   S | 0     | 'o'                  what the oracle of the database may give out up to
//! ```

/// Name of the descriptor.
pub const DESCRIPTOR: &[u8] = b"d";
/// Name of the oracle's bound, in the root shard.
pub const ORACLE: &[u8] = b"o";
/// Name of the members.
pub const MEMBERS: &[u8] = b"m";
/// First byte of the names of counts.
const COUNT: u8 = b'c';

/// Returns the name of a keyspace's count.
pub fn count(keyspace: u32) -> [u8; 5] {
    let [a, b, c, d] = keyspace.to_be_bytes();
    [COUNT, a, b, c, d]
}

/// Returns the keyspace whose count has this name.
pub fn counted(name: &[u8]) -> Option<u32> {
    match name {
        [COUNT, a, b, c, d] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}
