//! What the fuzz targets call: the decoders of bytes from a peer or a log.

use bytes::Bytes;

use super::entry::Entry;
use super::message::Message;

/// Decodes a message; one that decodes must survive the round trip.
pub fn message(bytes: &[u8]) {
    if let Ok(message) = Message::decode(&Bytes::copy_from_slice(bytes)) {
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        let again = Message::decode(&encoded.into());
        assert_eq!(again.as_ref(), Ok(&message), "a message survives the round trip");
    }
}

/// Decodes a logged entry; one that decodes must survive the round trip.
pub fn entry(bytes: &[u8]) {
    if let Ok(entry) = Entry::decode(1, 1, Bytes::copy_from_slice(bytes)) {
        let again = Entry::decode(1, 1, entry.log_parts().concat());
        assert_eq!(again.as_ref(), Ok(&entry), "an entry survives the round trip");
    }
}
