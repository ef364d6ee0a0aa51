//! Who talks, and what a connection is for.

use std::fmt;

/// An engine: the id of its data directory, a UUID that is drawn once and never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineId(pub u128);

/// A cluster: a UUID that is drawn when it is founded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// What an engine has that belongs to no cluster yet.
    pub const NONE: ClusterId = ClusterId(0);
}

/// Writes an id as UUIDs are written.
fn uuid(id: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let part = |shift: u32, bits: u32| (id >> shift) & ((1 << bits) - 1);
    write!(f, "{:08x}-{:04x}-{:04x}", part(96, 32), part(80, 16), part(64, 16))?;
    write!(f, "-{:04x}-{:012x}", part(48, 16), part(0, 48))
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid(self.0, f)
    }
}

impl fmt::Debug for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid(self.0, f)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid(self.0, f)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid(self.0, f)
    }
}

/// What one of the connections of a pair is for. The numbers are on the wire: do not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Messages of consensus: ordered, dropped rather than waited for.
    Raft = 1,
    /// Questions with a deadline and their answers, many at once.
    Rpc = 2,
    /// Streams of chunks, as fast as their readers take them.
    Bulk = 3,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Class; 3] = [Class::Raft, Class::Rpc, Class::Bulk];

    /// Returns the class of a number on the wire.
    pub fn from_byte(byte: u8) -> Option<Class> {
        Class::ALL.into_iter().find(|class| *class as u8 == byte)
    }

    /// Returns the longest payload of a frame, in bytes. Part of the protocol: both sides hold it.
    pub const fn payload_max(self) -> usize {
        match self {
            Class::Raft | Class::Rpc => 8 << 20,
            Class::Bulk => 256 << 10,
        }
    }

    /// Returns its place in arrays that have one element of each class.
    pub(crate) const fn index(self) -> usize {
        self as usize - 1
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Raft => "raft",
            Class::Rpc => "rpc",
            Class::Bulk => "bulk",
        })
    }
}

/// Which end of a connection somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Made the connection.
    Dialler,
    /// Listened.
    Acceptor,
}

impl Role {
    /// Returns the other end.
    pub fn other(self) -> Role {
        match self {
            Role::Dialler => Role::Acceptor,
            Role::Acceptor => Role::Dialler,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_a_uuid() {
        let id = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
        assert_eq!(EngineId(id).to_string(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(ClusterId(1).to_string(), "00000000-0000-0000-0000-000000000001");
    }

    #[test]
    fn a_class_is_found_by_its_number_and_nothing_else_is() {
        for class in Class::ALL {
            assert_eq!(Class::from_byte(class as u8), Some(class));
            assert_eq!(Class::ALL[class.index()], class);
        }
        assert_eq!((Class::from_byte(0), Class::from_byte(4)), (None, None));
    }
}
