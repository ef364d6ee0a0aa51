//! What the fuzz targets call: the decoders of bytes from anybody.

use crate::frame::{BadFrame, Decoder, Encoder, Frame, Lane};
use crate::handshake::{ClusterKey, Handshake, Hello, Step, put_all};
use crate::id::{Class, ClusterId, EngineId, Role};

/// Decodes frames of each class: the result does not depend on how the stream is cut, and frames that
/// come out are those that an encoder would have written.
pub fn frames(bytes: &[u8]) {
    for class in Class::ALL {
        let lane = Lane { class, version: 1, salt: 0, sender: Role::Dialler };
        let whole = decode(lane, bytes, bytes.len().max(1));
        assert_eq!(whole, decode(lane, bytes, 1));
        assert_eq!(whole, decode(lane, bytes, 7));
        let (mut encoder, mut again) = (Encoder::new(lane), Vec::new());
        for frame in &whole.0 {
            let payload = std::slice::from_ref(&frame.payload);
            encoder.frame(&mut again, frame.kind, frame.stream, payload);
        }
        assert_eq!(again, bytes[..again.len()]);
    }
}

fn decode(lane: Lane, bytes: &[u8], step: usize) -> (Vec<Frame>, Option<BadFrame>) {
    let (mut decoder, mut frames) = (Decoder::new(lane), Vec::new());
    for mut piece in bytes.chunks(step) {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(bad) => return (frames, Some(bad)),
            }
        }
    }
    (frames, None)
}

/// Gives bytes to both sides of a handshake: nobody who does not know the key comes through.
pub fn handshake(bytes: &[u8]) {
    // A later version may have flags and fields that are not looked at.
    if let Ok(hello) = Hello::decode(bytes, u16::MAX) {
        let mut again = Vec::new();
        hello.encode(&mut again);
        assert_eq!(again, bytes, "a hello survives the round trip");
    }
    let key = ClusterKey::new(b"0123456789abcdef").ok();
    let ours = Hello {
        versions: 1..=1,
        cluster: ClusterId(1),
        engine: EngineId(1),
        incarnation: 1,
        boot: 1,
        class: Class::Raft,
        has_key: true,
        nonce: [1; 32],
    };
    let mut boxed = Vec::new();
    put_all(&mut boxed, bytes);
    // As they are, and as the content of good messages: the checksum is in the way of most inputs.
    for (bytes, step) in [(bytes, 1), (bytes, bytes.len().max(1)), (&boxed[..], 5)] {
        let mut out = Vec::new();
        let dialler = Handshake::dial(ours.clone(), key.clone(), None, &mut out);
        let acceptor = Handshake::accept(ours.clone(), key.clone());
        for mut side in [dialler, acceptor] {
            for piece in bytes.chunks(step) {
                match side.receive(piece, &mut out) {
                    Step::More => {}
                    Step::Admit(_) | Step::Done(_) => panic!("a stranger was let in"),
                    Step::Refuse(_) | Step::Refused(..) => break,
                }
            }
        }
    }
}
