//! Keys and values in JSON, which knows text only: as text where they are UTF-8, else in base64
//! (RFC 4648, 4), and a flag beside them that says which.

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::Refusal;

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    /// As text.
    #[default]
    Utf8,
    /// In base64.
    Base64,
}

impl Encoding {
    pub(super) fn parse(name: &[u8]) -> Result<Encoding, Refusal> {
        match name {
            b"utf8" => Ok(Encoding::Utf8),
            b"base64" => Ok(Encoding::Base64),
            _ => Err(Refusal::bad("encoding must be utf8 or base64")),
        }
    }

    /// Returns the bytes that a client has written.
    pub(super) fn decode(self, text: &str, what: &str) -> Result<Vec<u8>, Refusal> {
        match self {
            Encoding::Utf8 => Ok(text.as_bytes().to_vec()),
            Encoding::Base64 => decode(text.as_bytes(), STANDARD)
                .ok_or_else(|| Refusal::bad(format!("the {what} is not in base64"))),
        }
    }

    /// Adds bytes by their names, and the encoding that all of them got: base64 if it was asked for,
    /// or if any of them is no text.
    pub(super) fn write(self, into: &mut Map<String, Json>, all: &[(&str, &[u8])]) {
        let texts = all.iter().map(|(_, bytes)| std::str::from_utf8(bytes));
        match texts.collect::<Result<Vec<_>, _>>() {
            Ok(texts) if self == Encoding::Utf8 => {
                for ((name, _), text) in all.iter().zip(texts) {
                    into.insert((*name).to_owned(), text.into());
                }
                into.insert("encoding".to_owned(), "utf8".into());
            }
            _ => {
                for (name, bytes) in all {
                    into.insert((*name).to_owned(), encode(bytes, STANDARD, true).into());
                }
                into.insert("encoding".to_owned(), "base64".into());
            }
        }
    }
}

pub(super) type Alphabet = &'static [u8; 64];
pub(super) const STANDARD: Alphabet =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// What stands in URLs as it is.
pub(super) const URL: Alphabet =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

pub(super) fn encode(bytes: &[u8], alphabet: Alphabet, pad: bool) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            if at <= chunk.len() {
                let six = (bits >> (18 - 6 * at)) & 63;
                text.push(char::from(alphabet[six as usize]));
            } else if pad {
                text.push('=');
            }
        }
    }
    text
}

/// Decodes, with or without padding; `None` if it is none, or not the one spelling of its bytes.
pub(super) fn decode(text: &[u8], alphabet: Alphabet) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|&&c| c == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 0 && (padding > 2 || !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.chunks(4) {
        let mut bits = 0u32;
        for at in 0..4 {
            let six = match chunk.get(at) {
                Some(c) => alphabet.iter().position(|of| of == c)? as u32,
                None => 0,
            };
            bits = bits << 6 | six;
        }
        let whole = match chunk.len() {
            1 => return None,
            len => len - 1,
        };
        let decoded = bits.to_be_bytes();
        // Bits behind the last byte must be zero, or two texts would mean the same.
        if decoded[1 + whole..].iter().any(|&byte| byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&decoded[1..=whole]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (b"fooba", "Zm9vYmE="),
            (b"foobar", "Zm9vYmFy"),
            (b"\xff\xfe\xfd", "//79"),
        ] {
            assert_eq!(encode(bytes, STANDARD, true), text);
            assert_eq!(decode(text.as_bytes(), STANDARD).as_deref(), Some(bytes));
            let bare = text.trim_end_matches('=');
            assert_eq!(encode(bytes, STANDARD, false), bare);
            assert_eq!(decode(bare.as_bytes(), STANDARD).as_deref(), Some(bytes));
        }
        for bad in ["Z", "Zg=", "Zg===", "Zh==", "Z g=", "=", "Zm9v====", "Zm8=Zm8=", "//79-"] {
            assert_eq!(decode(bad.as_bytes(), STANDARD), None, "{bad}");
        }
        assert_eq!(encode(b"\xff\xfe", URL, false), "__4");
    }

    #[test]
    fn what_is_no_text_is_written_in_base64_and_the_flag_says_so() {
        for (encoding, key, value, expected) in [
            (Encoding::Utf8, &b"a"[..], "\u{e9}".as_bytes(), ("a", "\u{e9}", "utf8")),
            (Encoding::Utf8, b"a", b"\xff", ("YQ==", "/w==", "base64")),
            (Encoding::Base64, b"a", b"b", ("YQ==", "Yg==", "base64")),
        ] {
            let mut map = Map::new();
            encoding.write(&mut map, &[("key", key), ("value", value)]);
            let got = ["key", "value", "encoding"].map(|name| map[name].as_str().unwrap());
            assert_eq!((got[0], got[1], got[2]), expected);
        }
    }
}
