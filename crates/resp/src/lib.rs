//! RESP, the protocol Redis clients speak, versions 2 and 3, without any I/O.
//!
//! ```text
//!   socket bytes --> RequestParser --> Request (arguments in place)      a server reads
//!   socket bytes <-- ReplyWriter   <-- simple, int, bulk, map, ...       a server answers
//!   socket bytes --> ReplyDecoder  --> Value                             a client reads
//!   socket bytes <-- request()     <-- arguments                         a client asks
//! ```
//!
//! The two directions are not symmetric, and neither is the code. A server only ever receives
//! arrays of bulk strings (or a line typed by hand), a million times a second, from anybody: the
//! [`RequestParser`] therefore leaves arguments where they lie and remembers offsets. A client
//! receives every type, nested, from a server it trusts more: the [`ReplyDecoder`] builds values.
//!
//! # Invariants
//! - No memory is taken because a peer announced a length; buffers grow as bytes arrive.
//! - Both decoders resume where they stopped: a byte is searched for a line end once, however the
//!   stream is cut into reads.
//! - The answers are the same for every cut of the stream (tests try each one).
//! - No input panics.
//!
//! A general frame decoder for both directions was measured and rejected: it costs three to ten
//! times the parse time, and cannot tell the errors clients and test suites match by text.
//!
//! This crate knows no command.

pub mod number;
pub mod reply;
pub mod request;
pub mod value;

pub use reply::{Protocol, ReplyWriter};
pub use request::{Limits, OwnedRequest, ProtocolError, Request, RequestParser, Span};
pub use value::{DecodeError, ReplyDecoder, Value};

/// Appends a request, as a client sends it: an array of bulk strings.
pub fn request<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: &[A]) {
    let mut writer = ReplyWriter::new(out, Protocol::Resp2);
    writer.array(args.len());
    for arg in args {
        writer.bulk(arg.as_ref());
    }
}
