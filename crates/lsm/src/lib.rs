//! AtollDB's storage engine as a library.

pub mod error;
pub mod key;
pub mod log;
pub mod memtable;
pub mod options;
pub mod pool;
pub mod slice;
pub mod table;
pub mod tombstone;

pub use error::{Error, Result};
pub use slice::Slice;
