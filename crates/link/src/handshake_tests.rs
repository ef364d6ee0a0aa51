//! Handshakes between two pure sides, and what each is told.

use super::*;

fn key(byte: u8) -> Option<ClusterKey> {
    Some(ClusterKey::new(&[byte; 32]).unwrap())
}

fn hello(engine: u128) -> Hello {
    Hello {
        versions: 1..=1,
        cluster: ClusterId(0xc1),
        engine: EngineId(engine),
        incarnation: 1,
        boot: engine as u64 + 100,
        class: Class::Raft,
        has_key: true,
        nonce: [engine as u8; 32],
    }
}

/// What a side came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Open(EngineId, u16),
    Refuses(Code),
    /// With the sentence it was told.
    Refused(Code, String),
    Waits,
}

/// Lets two sides talk, every byte sent in steps of `step`; both admit whoever proves himself.
fn talk(mut dialler: Handshake, mut acceptor: Handshake, first: Vec<u8>, step: usize) -> [End; 2] {
    let mut ends = [End::Waits, End::Waits];
    // What is on the way to the dialler, and to the acceptor.
    let mut on_the_way = [Vec::new(), first];
    while on_the_way.iter().any(|bytes| !bytes.is_empty()) {
        for (to, side) in [&mut dialler, &mut acceptor].into_iter().enumerate() {
            let arrived = std::mem::take(&mut on_the_way[to]);
            let mut out = Vec::new();
            for piece in arrived.chunks(step) {
                if ends[to] != End::Waits {
                    break;
                }
                let mut result = side.receive(piece, &mut out);
                if matches!(result, Step::Admit(_)) {
                    result = side.admit(&mut out);
                }
                ends[to] = match result {
                    Step::More => End::Waits,
                    Step::Done(proven) => End::Open(proven.hello.engine, proven.version),
                    Step::Refuse(refusal) => End::Refuses(refusal.code()),
                    Step::Refused(code, sentence) => End::Refused(code, sentence),
                    Step::Admit(_) => panic!("admitted twice"),
                };
            }
            on_the_way[1 - to].extend(out);
        }
    }
    ends
}

fn meet(dialler: (Hello, Option<ClusterKey>), acceptor: (Hello, Option<ClusterKey>)) -> [End; 2] {
    let ends = [1, 7, 1000].map(|step| {
        let mut first = Vec::new();
        let dialling = Handshake::dial(dialler.0.clone(), dialler.1.clone(), None, &mut first);
        let accepting = Handshake::accept(acceptor.0.clone(), acceptor.1.clone());
        talk(dialling, accepting, first, step)
    });
    assert!(ends.iter().all(|other| *other == ends[0]), "it depends on the cut: {ends:?}");
    ends[0].clone()
}

#[test]
fn two_engines_of_a_cluster_with_one_key_meet() {
    let ends = meet((hello(1), key(1)), (hello(2), key(1)));
    assert_eq!(ends, [End::Open(EngineId(2), 1), End::Open(EngineId(1), 1)]);
    let ends = meet((hello(1), None), (hello(2), None));
    assert_eq!(ends, [End::Open(EngineId(2), 1), End::Open(EngineId(1), 1)]);
}

#[test]
fn both_speak_the_newest_version_that_both_know() {
    let with = |engine, versions| (Hello { versions, ..hello(engine) }, key(1));
    let ends = meet(with(1, 1..=4), with(2, 2..=3));
    assert_eq!(ends, [End::Open(EngineId(2), 3), End::Open(EngineId(1), 3)]);
}

#[test]
fn each_side_of_a_refusal_knows_why_and_what_to_do() {
    let theirs = |code, words: &str| (code, words.to_owned());
    let with = |change: fn(&mut Hello)| {
        let mut changed = hello(2);
        change(&mut changed);
        changed
    };
    // The acceptor notices all of these; the dialler is told.
    for (dialler, acceptor, (code, words)) in [
        ((hello(1), key(1)), (hello(2), key(2)), theirs(Code::WrongKey, "same --cluster-key FILE")),
        ((hello(1), None), (hello(2), key(1)), theirs(Code::KeyOnOneSide, "you have none: start")),
        ((hello(1), key(1)), (hello(2), None), theirs(Code::KeyOnOneSide, "this engine has none")),
        (
            (hello(1), key(1)),
            (with(|h| h.cluster = ClusterId(0xc2)), key(1)),
            theirs(Code::ForeignCluster, "cluster 00000000-0000-0000-0000-0000000000c2"),
        ),
        (
            (hello(1), key(1)),
            (with(|h| h.versions = 2..=3), key(1)),
            theirs(Code::Version, "a version that cannot talk to this one"),
        ),
        (
            (hello(1), key(1)),
            (with(|h| h.engine = EngineId(1)), key(1)),
            theirs(Code::SameEngine, "one of the two data directories is a copy"),
        ),
        ((hello(1), key(1)), (hello(1), key(1)), theirs(Code::SameEngine, "you dialled yourself")),
    ] {
        let ends = meet(dialler.clone(), acceptor);
        assert_eq!(ends[1], End::Refuses(code));
        let End::Refused(told, sentence) = &ends[0] else { panic!("{code:?}: {ends:?}") };
        assert_eq!(*told, code);
        assert!(sentence.contains(&words), "{code:?}: {sentence}");
    }
}

#[test]
fn the_dialler_refuses_too_and_the_acceptor_is_told() {
    let mut first = Vec::new();
    let dialler = Handshake::dial(hello(1), key(1), Some(EngineId(3)), &mut first);
    let ends = talk(dialler, Handshake::accept(hello(2), key(1)), first, 9);
    assert_eq!(ends[0], End::Refuses(Code::OtherEngine));
    let End::Refused(Code::OtherEngine, sentence) = &ends[1] else { panic!("{ends:?}") };
    assert!(sentence.contains("correct the address"), "{sentence}");
}

#[test]
fn what_the_owner_decides_is_told() {
    for refusing in [Role::Dialler, Role::Acceptor] {
        let (mut to_acceptor, mut to_dialler) = (Vec::new(), Vec::new());
        let mut dialler = Handshake::dial(hello(1), key(1), None, &mut to_acceptor);
        let mut acceptor = Handshake::accept(hello(2), key(1));
        assert_eq!(acceptor.receive(&to_acceptor, &mut to_dialler), Step::More);
        to_acceptor.clear();
        assert_eq!(dialler.receive(&to_dialler, &mut to_acceptor), Step::More);
        to_dialler.clear();
        assert!(matches!(acceptor.receive(&to_acceptor, &mut to_dialler), Step::Admit(_)));
        to_acceptor.clear();
        let why = Refusal::Unwelcome("come back on Monday".to_owned());
        let told = if refusing == Role::Acceptor {
            assert_eq!(acceptor.refuse(why.clone(), &mut to_dialler), Step::Refuse(why));
            dialler.receive(&to_dialler, &mut to_acceptor)
        } else {
            assert_eq!(acceptor.admit(&mut to_dialler), Step::More);
            assert!(matches!(dialler.receive(&to_dialler, &mut to_acceptor), Step::Admit(_)));
            assert_eq!(dialler.refuse(why.clone(), &mut to_acceptor), Step::Refuse(why));
            acceptor.receive(&to_acceptor, &mut to_dialler)
        };
        assert_eq!(told, Step::Refused(Code::Unwelcome, "come back on Monday".to_owned()));
    }
}

#[test]
fn who_belongs_to_no_cluster_may_prove_himself_and_is_left_to_the_owner() {
    let joiner = Hello { cluster: ClusterId::NONE, ..hello(1) };
    let ends = meet((joiner.clone(), key(1)), (hello(2), key(1)));
    assert_eq!(ends, [End::Open(EngineId(2), 1), End::Open(EngineId(1), 1)]);
    let ends = meet((hello(2), key(1)), (joiner.clone(), key(1)));
    assert_eq!(ends, [End::Open(EngineId(1), 1), End::Open(EngineId(2), 1)]);
    assert_eq!(meet((joiner, key(2)), (hello(2), key(1)))[1], End::Refuses(Code::WrongKey));
}

#[test]
fn an_echo_of_all_that_is_said_is_refused() {
    let mut out = Vec::new();
    let mut dialler = Handshake::dial(hello(1), key(1), None, &mut out);
    let echo = out.clone();
    assert_eq!(dialler.receive(&echo, &mut out), Step::Refuse(Refusal::Myself));
    // With another id in the echoed hello the proof that comes back is the dialler's own.
    let mut out = Vec::new();
    let mut dialler = Handshake::dial(hello(1), key(1), None, &mut out);
    let mut body = Vec::new();
    Hello { engine: EngineId(2), ..hello(1) }.encode(&mut body);
    let (mut forged, mut proof) = (Vec::new(), Vec::new());
    put(&mut forged, MessageKind::Hello, &body);
    assert_eq!(dialler.receive(&forged, &mut proof), Step::More);
    assert!(!proof.is_empty());
    assert_eq!(dialler.receive(&proof.clone(), &mut out), Step::Refuse(Refusal::WrongKey));
}

/// Everything that a dialler said in a handshake that came about.
fn recorded() -> Vec<u8> {
    let mut said = Vec::new();
    let mut dialler = Handshake::dial(hello(1), key(1), None, &mut said);
    let mut acceptor = Handshake::accept(hello(2), key(1));
    let mut heard = 0;
    loop {
        let mut out = Vec::new();
        let step = acceptor.receive(&said[heard..], &mut out);
        heard = said.len();
        if matches!(step, Step::Done(_)) {
            return said;
        }
        if matches!(step, Step::Admit(_)) {
            acceptor.admit(&mut out);
        }
        if matches!(dialler.receive(&out, &mut said), Step::Admit(_)) {
            dialler.admit(&mut said);
        }
    }
}

#[test]
fn a_recorded_handshake_does_not_open_another_one() {
    let said = recorded();
    let mut out = Vec::new();
    let mut same_nonce = Handshake::accept(hello(2), key(1));
    let step = same_nonce.receive(&said, &mut out);
    assert!(matches!(step, Step::Admit(_)), "the recording is good: {step:?}");
    let fresh = Hello { nonce: [9; 32], ..hello(2) };
    let mut acceptor = Handshake::accept(fresh, key(1));
    assert_eq!(acceptor.receive(&said, &mut out), Step::Refuse(Refusal::WrongKey));
}

#[test]
fn a_hello_that_is_changed_on_the_way_is_noticed() {
    // Somebody between the two makes both believe that the other one speaks old versions only.
    let newest = |engine| Hello { versions: 1..=2, ..hello(engine) };
    let (mut to_acceptor, mut to_dialler) = (Vec::new(), Vec::new());
    let mut dialler = Handshake::dial(newest(1), key(1), None, &mut to_acceptor);
    let mut acceptor = Handshake::accept(newest(2), key(1));
    let old = |bytes: &mut Vec<u8>| {
        let (kind, body) = take(bytes).unwrap().unwrap();
        let hello = Hello { versions: 1..=1, ..Hello::decode(&body, 2).unwrap() };
        let mut body = Vec::new();
        hello.encode(&mut body);
        put(bytes, kind, &body);
    };
    old(&mut to_acceptor);
    assert_eq!(acceptor.receive(&to_acceptor, &mut to_dialler), Step::More);
    to_acceptor.clear();
    old(&mut to_dialler);
    assert_eq!(dialler.receive(&to_dialler, &mut to_acceptor), Step::More);
    let step = acceptor.receive(&to_acceptor, &mut to_dialler);
    assert_eq!(step, Step::Refuse(Refusal::WrongKey));
}

#[test]
fn every_flipped_bit_of_a_handshake_is_noticed() {
    let said = recorded();
    for bit in 0..said.len() * 8 {
        let mut bytes = said.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut acceptor = Handshake::accept(hello(2), key(1));
        let mut out = Vec::new();
        let mut step = acceptor.receive(&bytes, &mut out);
        if matches!(step, Step::Admit(_)) {
            step = acceptor.admit(&mut out);
        }
        assert!(!matches!(step, Step::Done(_)), "bit {bit} changes nothing");
    }
}

#[test]
fn every_cut_of_a_handshake_waits_for_the_rest() {
    let said = recorded();
    for cut in 0..said.len() {
        let mut acceptor = Handshake::accept(hello(2), key(1));
        let mut out = Vec::new();
        let mut step = acceptor.receive(&said[..cut], &mut out);
        if matches!(step, Step::Admit(_)) {
            step = acceptor.admit(&mut out);
        }
        assert_eq!(step, Step::More, "cut at {cut}");
    }
}

#[test]
fn what_follows_the_handshake_is_left_for_frames() {
    let mut said = recorded();
    said.extend(b"frames");
    let mut acceptor = Handshake::accept(hello(2), key(1));
    let mut out = Vec::new();
    assert!(matches!(acceptor.receive(&said, &mut out), Step::Admit(_)));
    assert!(matches!(acceptor.admit(&mut out), Step::Done(_)));
    assert_eq!(acceptor.into_rest(), b"frames");
}

#[test]
fn who_does_not_speak_the_protocol_is_told_in_plain_text_and_named() {
    for (said, looks_like) in [
        (&b"GET / HTTP/1.1\r\n"[..], "an HTTP client"),
        (b"POST /v1 HTTP/1.1\r\n", "an HTTP client"),
        (b"*1\r\n$4\r\nPING\r\n", "a Redis client"),
        (&[0x16, 3, 1, 2, 0, 1], "a TLS client, where this side speaks plain text"),
        (&[0], "something else"),
    ] {
        let mut acceptor = Handshake::accept(hello(2), key(1));
        let mut out = Vec::new();
        let step = acceptor.receive(said, &mut out);
        assert_eq!(step, Step::Refuse(Refusal::NotAnEngine { looks_like }));
        let told = String::from_utf8(out).unwrap();
        assert!(told.contains("clients use the ports of --listen and --http"), "{told}");
    }
    // A dialler that reached something else has nothing more to say to it.
    for (said, looks_like) in [
        (&b"-ERR unknown command\r\n"[..], "a Redis server"),
        (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP server"),
    ] {
        let (mut first, mut out) = (Vec::new(), Vec::new());
        let mut dialler = Handshake::dial(hello(1), key(1), None, &mut first);
        let step = dialler.receive(said, &mut out);
        assert_eq!((step, out), (Step::Refuse(Refusal::NotAnEngine { looks_like }), vec![]));
    }
}

#[test]
fn a_message_that_is_too_long_or_out_of_order_is_refused() {
    let long = [&MAGIC[..], &[1], &(BODY_MAX as u16 + 1).to_le_bytes(), &[0; 4]].concat();
    let mut out = Vec::new();
    let step = Handshake::accept(hello(2), key(1)).receive(&long, &mut out);
    assert!(matches!(step, Step::Refuse(Refusal::Damaged { .. })), "{step:?}");
    for kind in [MessageKind::Proof, MessageKind::Verdict] {
        let mut bytes = Vec::new();
        put(&mut bytes, kind, &[0; 32]);
        let step = Handshake::accept(hello(2), key(1)).receive(&bytes, &mut out);
        assert!(matches!(step, Step::Refuse(Refusal::Protocol(_))), "{kind:?}: {step:?}");
    }
}

#[test]
fn a_hello_of_a_later_version_may_be_longer_and_one_of_ours_may_not() {
    for (versions, known, decodes) in [(1..=2, 1, true), (1..=1, 1, false), (1..=2, 2, false)] {
        let mut body = Vec::new();
        let hello = Hello { versions, ..hello(1) };
        hello.encode(&mut body);
        body.extend(b"news");
        assert_eq!(Hello::decode(&body, known).ok(), decodes.then_some(hello));
    }
}

#[test]
fn the_bytes_of_a_hello_never_change() {
    let mut bytes = Vec::new();
    let hello = Hello { incarnation: 3, boot: 0x0102, nonce: [0xee; 32], ..hello(1) };
    Handshake::dial(hello, key(1), None, &mut bytes);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let (head, body) = hex.split_at(30);
    assert_eq!(head, "41746f6c6c4c6e6b0156005385e9bd");
    let nonce = "ee".repeat(32);
    let expected = [
        "01000100",
        "000000000000000000000000000000c1",
        "00000000000000000000000000000001",
        "0300000000000000",
        "0201000000000000",
        "0101",
        &nonce,
    ];
    assert_eq!(body, expected.concat());
}

#[test]
fn a_proof_is_what_any_implementation_of_hmac_makes_of_both_hellos() {
    let mut said = recorded();
    let (kind, _) = take(&mut said).unwrap().unwrap();
    assert_eq!(kind, MessageKind::Hello);
    let (kind, proof) = take(&mut said).unwrap().unwrap();
    assert_eq!(kind, MessageKind::Proof);
    let hex: String = proof.iter().map(|b| format!("{b:02x}")).collect();
    // By Python's hmac module, over what docs/formats/link.md says.
    assert_eq!(hex, "d0669928b4351c63111bdd1a27df0b0ac1f1a02fcb265102c2344e65e347100b");
}

#[test]
fn a_nonce_depends_on_all_that_was_drawn_and_on_the_key() {
    let one = nonce(key(1).as_ref(), EngineId(1), [1, 2, 3, 4]);
    assert_ne!(one, nonce(key(1).as_ref(), EngineId(1), [1, 2, 3, 5]));
    assert_ne!(one, nonce(key(2).as_ref(), EngineId(1), [1, 2, 3, 4]));
    assert_ne!(one, nonce(key(1).as_ref(), EngineId(2), [1, 2, 3, 4]));
}

#[test]
fn a_key_is_long_enough_and_never_shown() {
    assert!(ClusterKey::new(&[7; 15]).unwrap_err().contains("--cluster-key"));
    assert_eq!(format!("{:?}", ClusterKey::new(&[7; 16]).unwrap()), "ClusterKey(..)");
}

#[test]
fn both_sides_compute_one_salt_and_no_two_connections_have_the_same() {
    let salts = |nonce| {
        let fresh = Hello { nonce: [nonce; 32], ..hello(1) };
        let (mut to_acceptor, mut to_dialler) = (Vec::new(), Vec::new());
        let mut dialler = Handshake::dial(fresh, key(1), None, &mut to_acceptor);
        let mut acceptor = Handshake::accept(hello(2), key(1));
        acceptor.receive(&to_acceptor, &mut to_dialler);
        to_acceptor.clear();
        dialler.receive(&to_dialler, &mut to_acceptor);
        let Step::Admit(of_acceptor) = acceptor.receive(&to_acceptor, &mut to_dialler) else {
            panic!("the acceptor does not admit")
        };
        to_dialler.clear();
        acceptor.admit(&mut to_dialler);
        let Step::Admit(of_dialler) = dialler.receive(&to_dialler, &mut to_acceptor) else {
            panic!("the dialler does not admit")
        };
        [of_acceptor.salt, of_dialler.salt]
    };
    let ([a, b], [c, d]) = (salts(1), salts(2));
    assert_eq!((a, c), (b, d));
    assert_ne!(a, c);
}

#[test]
fn an_acceptor_that_gives_up_after_its_proof_is_understood_by_a_dialler_that_is_done() {
    let (mut to_acceptor, mut to_dialler) = (Vec::new(), Vec::new());
    let mut dialler = Handshake::dial(hello(1), key(1), None, &mut to_acceptor);
    let mut acceptor = Handshake::accept(hello(2), key(1));
    acceptor.receive(&to_acceptor, &mut to_dialler);
    to_acceptor.clear();
    dialler.receive(&to_dialler, &mut to_acceptor);
    to_dialler.clear();
    acceptor.receive(&to_acceptor, &mut to_dialler);
    assert_eq!(acceptor.admit(&mut to_dialler), Step::More);
    // Its time is over while the dialler's verdict is on its way.
    acceptor.refuse(Refusal::Silent, &mut to_dialler);
    assert!(matches!(dialler.receive(&to_dialler, &mut to_acceptor), Step::Admit(_)));
    let Step::Done(proven) = dialler.admit(&mut to_acceptor) else { panic!("not done") };
    let (class, sender) = (Class::Raft, Role::Acceptor);
    let lane = Lane { class, version: proven.version, salt: proven.salt, sender };
    let rest = dialler.into_rest();
    let frame = crate::frame::Decoder::new(lane).next(&mut &rest[..]).unwrap().unwrap();
    assert_eq!((frame.kind, frame.payload[0]), (Kind::Close, Code::Silent as u8));
}
