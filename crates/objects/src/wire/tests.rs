use atoll_env::random::Prng;
use atoll_redis::table::COMMANDS;
use atoll_resp::{Limits, RequestParser};

use super::*;

fn bytes_of(call: &Call) -> Vec<u8> {
    let mut out = Vec::new();
    call.encode(&mut out);
    out
}

fn bytes_of_reply(reply: &Reply) -> Vec<u8> {
    let mut out = Vec::new();
    reply.encode(&mut out);
    out
}

/// Returns what a call says, to compare it by: a command has no equality of its own.
fn said(call: &Call) -> String {
    format!("{call:?}")
}

/// Makes a request as a client's bytes become one.
fn request<A: AsRef<[u8]>>(args: &[A]) -> OwnedRequest {
    let mut bytes = Vec::new();
    atoll_resp::request(&mut bytes, args);
    let mut parser = RequestParser::new();
    parser.parse(&bytes, &Limits::CLIENT).unwrap().unwrap();
    parser.request(&bytes).to_owned()
}

fn item<A: AsRef<[u8]>>(name: &str, db: usize, args: &[A]) -> Item {
    let command = COMMANDS.iter().find(|command| command.name == name).unwrap();
    Item { command, request: request(args), db }
}

/// Makes a call of a client that has chosen nothing, at the slot of its first key.
fn call(work: Work) -> Call {
    let moment = Moment::Now;
    let (protocol, durability) = (Protocol::Resp2, Durability::Synced);
    let mut call = Call { work, slot: 0, protocol, touch: true, durability, moment };
    call.slot = call.keys().first().map_or(0, |key| slot(key));
    call
}

fn set() -> Call {
    call(Work::One(item("set", 3, &["SET", "key", "value"])))
}

fn unit() -> Call {
    let items = vec![item("get", 0, &["get", "{a}1"]), item("incr", 0, &["INCR", "{a}2"])];
    let watched = vec![Watched { db: 15, key: Box::from(&b"{a}3"[..]), version: 9 }];
    call(Work::Unit { items, watched })
}

#[test]
fn a_call_whose_keys_a_split_has_parted_fits_neither_half() {
    let whole = atoll_mvcc::keys::Range::ALL;
    let mset = call(Work::One(item("mset", 0, &["mset", "a", "1", "b", "2"])));
    let [low, high] = [slot(b"a").min(slot(b"b")), slot(b"a").max(slot(b"b"))];
    assert!(low < high, "keys of two slots");
    let (left, right) = whole.split(atoll_mvcc::keys::RoutingKey::Slot(high)).unwrap();
    assert!(mset.fits(&whole) && !mset.fits(&left) && !mset.fits(&right));
    let one = call(Work::One(item("get", 0, &["get", "a"])));
    let half = if slot(b"a") == low { &left } else { &right };
    assert!(one.fits(half));
    let watched = vec![Watched { db: 0, key: Box::from(&b"b"[..]), version: 9 }];
    let items = vec![item("get", 0, &["get", "a"])];
    assert!(!call(Work::Unit { items, watched }).fits(half), "what is watched counts, too");
}

// ---- drawing ----

fn draw_bytes(prng: &mut Prng, below: u64) -> Vec<u8> {
    (0..prng.below(below)).map(|_| prng.next_u64() as u8).collect()
}

fn draw_key(prng: &mut Prng) -> Box<[u8]> {
    draw_bytes(prng, 5).into()
}

/// Draws an item of any command of named keys.
fn draw_item(prng: &mut Prng) -> Item {
    let of_keys: Vec<&Command> = COMMANDS.iter().filter(|c| c.class == Class::Data).collect();
    let command = *prng.choose(&of_keys).unwrap();
    let more = if command.arity < 0 { prng.index(6) } else { 0 };
    let mut args: Vec<Vec<u8>> =
        command.name.split('|').map(|part| part.as_bytes().to_vec()).collect();
    if prng.chance(0.5) {
        args[0].make_ascii_uppercase();
    }
    args.resize_with(command.arity.unsigned_abs() as usize + more, || draw_bytes(prng, 6));
    Item { command, request: request(&args), db: prng.index(DATABASES) }
}

/// Draws a call of a kind, by its number on the wire.
fn draw_call(prng: &mut Prng, kind: u8) -> Call {
    let mut call = call(match kind {
        WORK_ONE => Work::One(draw_item(prng)),
        WORK_UNIT => Work::Unit {
            items: (0..prng.below(4)).map(|_| draw_item(prng)).collect(),
            watched: (0..prng.below(3))
                .map(|_| Watched {
                    db: prng.index(DATABASES),
                    key: draw_key(prng),
                    version: prng.next_u64(),
                })
                .collect(),
        },
        WORK_VERSIONS => Work::Versions {
            db: prng.index(DATABASES),
            keys: (0..prng.below(4)).map(|_| draw_key(prng)).collect(),
        },
        _ => unreachable!("there is no work {kind}"),
    });
    let at = Timestamp(prng.next_u64());
    call.protocol = [Protocol::Resp2, Protocol::Resp3][prng.index(2)];
    call.touch = prng.chance(0.5);
    call.durability =
        [Durability::Synced, Durability::Interval, Durability::Buffered][prng.index(3)];
    call.moment = [Moment::Now, Moment::At(at), Moment::Past(at)][prng.index(3)];
    call
}

/// Draws a reply of a kind, by its number on the wire.
fn draw_reply(prng: &mut Prng, kind: u8) -> Reply {
    match kind {
        REPLY_ONE => Reply::One(Encoded::copy(&draw_bytes(prng, 40))),
        REPLY_UNIT => Reply::Unit(Some((0..prng.below(4)).map(|_| draw_bytes(prng, 30)).collect())),
        REPLY_CHANGED => Reply::Unit(None),
        REPLY_VERSIONS => Reply::Versions((0..prng.below(4)).map(|_| prng.next_u64()).collect()),
        REPLY_FAILED => Reply::Failed(draw_bytes(prng, 30)),
        _ => unreachable!("there is no reply {kind}"),
    }
}

/// Draws so many of each kind.
fn calls(seed: u64, of_each: usize) -> Vec<Call> {
    let mut prng = Prng::new(seed);
    (WORK_ONE..=WORK_VERSIONS)
        .flat_map(|kind| std::iter::repeat_n(kind, of_each))
        .map(|kind| draw_call(&mut prng, kind))
        .collect()
}

fn replies(seed: u64, of_each: usize) -> Vec<Reply> {
    let mut prng = Prng::new(seed);
    (REPLY_ONE..=REPLY_FAILED)
        .flat_map(|kind| std::iter::repeat_n(kind, of_each))
        .map(|kind| draw_reply(&mut prng, kind))
        .collect()
}

// ---- there and back ----

#[test]
fn every_call_comes_back_as_it_was() {
    let commands = Index::new();
    for call in calls(1, 500) {
        let back = Call::decode(&bytes_of(&call), &commands).unwrap();
        assert_eq!(said(&back), said(&call));
    }
}

#[test]
fn every_command_of_named_keys_comes_back_as_itself() {
    let commands = Index::new();
    let mut met = 0;
    for command in COMMANDS.iter().filter(|command| command.class == Class::Data) {
        let args = vec!["{k}"; command.arity.unsigned_abs() as usize];
        let call = call(Work::One(item(command.name, 0, &args)));
        assert!(!call.keys().is_empty(), "{} has a key to find the shard by", command.name);
        let back = Call::decode(&bytes_of(&call), &commands).unwrap();
        let Work::One(item) = back.work else { panic!("{:?}", back.work) };
        assert_eq!((item.command.id, item.db), (command.id, 0));
        met += 1;
    }
    assert!(met > 40, "{met}");
}

#[test]
fn every_reply_comes_back_and_has_the_number_of_its_kind() {
    let mut prng = Prng::new(2);
    for kind in REPLY_ONE..=REPLY_FAILED {
        for _ in 0..300 {
            let reply = draw_reply(&mut prng, kind);
            let bytes = bytes_of_reply(&reply);
            assert_eq!(bytes[..2], [VERSION, kind]);
            assert_eq!(Reply::decode(&bytes), Ok(reply));
        }
    }
    let unknown = Malformed { offset: 1, expected: "a known kind of reply" };
    assert_eq!(Reply::decode(&[VERSION, REPLY_FAILED + 1]), Err(unknown));
}

#[test]
fn what_is_longest_or_empty_comes_back() {
    let commands = Index::new();
    let many: Vec<Vec<u8>> = std::iter::once(b"del".to_vec())
        .chain((0..1_000).map(|n| format!("{{k}}{n}").into_bytes()))
        .collect();
    let longest = Box::from(vec![b'k'; MAX_KEY]);
    for call in [
        call(Work::One(item("set", 15, &[&b"set"[..], b"", &vec![0; 1 << 20]]))),
        call(Work::One(item("del", 0, &many))),
        call(Work::Unit { items: Vec::new(), watched: Vec::new() }),
        call(Work::Versions { db: 0, keys: vec![longest] }),
    ] {
        let back = Call::decode(&bytes_of(&call), &commands).unwrap();
        // Nobody wants to read a mebibyte.
        assert!(said(&back) == said(&call), "slot {}", call.slot);
    }
    for reply in [
        Reply::One(Encoded::copy(b"")),
        Reply::One(Encoded::Long(vec![b'x'; 1 << 20])),
        Reply::Unit(Some(Vec::new())),
        Reply::Versions(vec![0, u64::MAX]),
    ] {
        assert!(Reply::decode(&bytes_of_reply(&reply)) == Ok(reply));
    }
}

/// A short reply lies in place, wherever it came from: it is not looked at again before it is sent.
#[test]
fn a_short_reply_takes_no_memory_of_its_own_when_it_has_come() {
    let long = Reply::One(Encoded::Long(b"+OK\r\n".to_vec()));
    let back = Reply::decode(&bytes_of_reply(&long)).unwrap();
    assert!(matches!(back, Reply::One(Encoded::Short(..))), "{back:?}");
}

#[test]
fn the_bytes_of_version_1_never_change() {
    // The slot of "key" is 12539, that of "{a}" 15495.
    assert_eq!(
        bytes_of(&set()),
        b"\x01\xfb\x30\x02\x01\x01\x01\x01\x03set\x03\x03\x03SET\x03key\x05value"
    );
    let mut unit = unit();
    unit.protocol = Protocol::Resp3;
    unit.touch = false;
    unit.durability = Durability::Buffered;
    unit.moment = Moment::Past(Timestamp(0x0102));
    let expected: [&[u8]; 4] = [
        b"\x01\x87\x3c\x03\0\x03\x03\x02\x01\0\0\0\0\0\0\x02",
        b"\x02\x03get\0\x02\x03get\x04{a}1",
        b"\x04incr\0\x02\x04INCR\x04{a}2",
        b"\x01\x0f\x04{a}3\x09\0\0\0\0\0\0\0",
    ];
    assert_eq!(bytes_of(&unit), expected.concat());
    let mut versions = call(Work::Versions { db: 1, keys: vec![Box::from(&b"key"[..])] });
    versions.durability = Durability::Interval;
    versions.moment = Moment::At(Timestamp(7));
    let expected = b"\x01\xfb\x30\x02\x01\x02\x02\x07\0\0\0\0\0\0\0\x03\x01\x01\x03key";
    assert_eq!(bytes_of(&versions), expected);
    let reply = Reply::Unit(Some(vec![b"$-1\r\n".to_vec(), b":1\r\n".to_vec()]));
    assert_eq!(bytes_of_reply(&reply), b"\x01\x02\x02\x05$-1\r\n\x04:1\r\n");
    assert_eq!(bytes_of_reply(&Reply::Versions(vec![1])), b"\x01\x04\x01\x01\0\0\0\0\0\0\0");
}

// ---- damage ----

#[test]
fn every_cut_and_everything_left_over_is_refused() {
    let commands = Index::new();
    for call in calls(3, 30) {
        let bytes = bytes_of(&call);
        for cut in 0..bytes.len() {
            assert!(Call::decode(&bytes[..cut], &commands).is_err(), "{call:?} cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        let end = Malformed { offset: bytes.len(), expected: "the end of the call" };
        assert_eq!(Call::decode(&longer, &commands).unwrap_err(), CallError::Malformed(end));
    }
    for reply in replies(4, 10) {
        let bytes = bytes_of_reply(&reply);
        for cut in 0..bytes.len() {
            assert!(Reply::decode(&bytes[..cut]).is_err(), "{reply:?} cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        let end = Malformed { offset: bytes.len(), expected: "the end of the reply" };
        assert_eq!(Reply::decode(&longer), Err(end));
    }
}

#[test]
fn a_changed_byte_means_something_else_or_is_refused() {
    let commands = Index::new();
    let (mut other, mut refused) = (0, 0);
    for call in calls(5, 4) {
        let bytes = bytes_of(&call);
        let before = said(&call);
        for at in 0..bytes.len() {
            for flip in 1..=255 {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                match Call::decode(&changed, &commands) {
                    Ok(decoded) => {
                        assert_ne!(said(&decoded), before, "byte {at} means nothing");
                        other += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    for reply in replies(6, 4) {
        let bytes = bytes_of_reply(&reply);
        for at in 0..bytes.len() {
            for flip in 1..=255 {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                match Reply::decode(&changed) {
                    Ok(decoded) => {
                        assert_ne!(decoded, reply, "byte {at} means nothing");
                        other += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(other > 10_000 && refused > 10_000, "{other} {refused}");
}

#[test]
fn random_damage_decodes_to_something_sound_or_to_an_error() {
    let commands = Index::new();
    let mut prng = Prng::new(7);
    let samples: Vec<Vec<u8>> = calls(8, 40)
        .iter()
        .map(bytes_of)
        .chain(replies(9, 20).iter().map(bytes_of_reply))
        .collect();
    let (mut sound, mut refused) = (0, 0);
    for _ in 0..100_000 {
        let mut bytes = prng.choose(&samples).unwrap().clone();
        for _ in 0..prng.range(1..4) {
            let at = prng.index(bytes.len());
            match prng.below(3) {
                0 => bytes[at] = prng.next_u64() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, prng.next_u64() as u8),
            }
        }
        let (call, reply) = (Call::decode(&bytes, &commands), Reply::decode(&bytes));
        *(if call.is_ok() || reply.is_ok() { &mut sound } else { &mut refused }) += 1;
        if let Ok(call) = call {
            let again = Call::decode(&bytes_of(&call), &commands).unwrap();
            assert_eq!(said(&again), said(&call));
        }
        if let Ok(reply) = reply {
            assert_eq!(Reply::decode(&bytes_of_reply(&reply)), Ok(reply));
        }
    }
    assert!(sound > 1_000 && refused > 1_000, "{sound} {refused}");
}

/// A list's announced number, with nothing behind it.
#[test]
fn an_announced_number_of_anything_takes_no_memory() {
    let commands = Index::new();
    let announce = |head: &[u8]| {
        let mut bytes = head.to_vec();
        varint::put(&mut bytes, 1 << 60);
        bytes
    };
    for head in [
        &b"\x01\xfb\x30\x02\x01\x01\x01\x01\x03set\0"[..],
        b"\x01\xfb\x30\x02\x01\x01\x01\x02",
        b"\x01\xfb\x30\x02\x01\x01\x01\x02\0",
        b"\x01\xfb\x30\x02\x01\x01\x01\x03\0",
    ] {
        let bytes = announce(head);
        let CallError::Malformed(error) = Call::decode(&bytes, &commands).unwrap_err() else {
            panic!("{head:?}");
        };
        assert_eq!(error.offset, bytes.len(), "the first element is missing: {error}");
    }
    for kind in [REPLY_UNIT, REPLY_VERSIONS] {
        let bytes = announce(&[VERSION, kind]);
        let error = Reply::decode(&bytes).unwrap_err();
        assert_eq!(error.offset, bytes.len(), "the first element is missing: {error}");
    }
    // A length of bytes, and the same number in the place of any other byte.
    assert!(Reply::decode(&announce(&[VERSION, REPLY_ONE])).is_err());
    for bytes in calls(10, 10).iter().map(bytes_of) {
        for at in 1..bytes.len() {
            let mut changed = announce(&bytes[..at]);
            let _ = Call::decode(&changed, &commands);
            changed.extend_from_slice(&bytes[at + 1..]);
            let _ = Call::decode(&changed, &commands);
        }
    }
}

// ---- what a program takes for granted ----

#[test]
fn a_command_that_this_engine_does_not_know_is_told_by_its_name() {
    let commands = Index::new();
    let head = b"\x01\xfb\x30\x02\x01\x01\x01\x01";
    for (name, args) in [
        // Nobody knows it; the wire has one way to write a name; more arguments than it takes, and
        // fewer; on a session, on whole databases.
        ("frobnicate", &["x", "key"][..]),
        ("GET", &["GET", "key"]),
        ("get", &["GET", "key", "more"]),
        ("get", &["GET"]),
        ("get", &[]),
        ("client|id", &["CLIENT", "ID"]),
        ("dbsize", &["DBSIZE"]),
    ] {
        let mut bytes = head.to_vec();
        varint::put_bytes(&mut bytes, name.as_bytes());
        bytes.extend([0, args.len() as u8]);
        args.iter().for_each(|arg| varint::put_bytes(&mut bytes, arg.as_bytes()));
        let error = Call::decode(&bytes, &commands).unwrap_err();
        let name = Box::from(name.as_bytes());
        assert_eq!(error, CallError::UnknownCommand { name, args: args.len() });
    }
    let error = CallError::UnknownCommand { name: Box::from(&b"fr\xffob"[..]), args: 2 };
    let expected = "this engine does not know the command 'fr\\xffob' with 2 arguments; upgrade it";
    assert_eq!(error.to_string(), expected);
    // What is longer than any name is none, and is not repeated.
    let mut bytes = head.to_vec();
    varint::put_bytes(&mut bytes, &[b'x'; MAX_NAME + 1]);
    bytes.extend([0, 0]);
    let error = Call::decode(&bytes, &commands).unwrap_err();
    assert_eq!(error.to_string(), "expected the name of a command at byte 8");
}

/// Expects a refusal of a call, in these words.
#[track_caller]
fn refused(call: &Call, expected: &str, offset: usize) {
    match Call::decode(&bytes_of(call), &Index::new()).unwrap_err() {
        CallError::Malformed(error) => {
            assert_eq!((error.expected, error.offset), (expected, offset));
        }
        error => panic!("{error}"),
    }
}

#[test]
fn a_slot_that_no_key_has_is_refused() {
    let expected = "the slot of one of the keys, below 16384";
    for call in [set(), unit(), call(Work::Versions { db: 0, keys: vec![Box::from(&b"a"[..])] })] {
        for slot in [call.slot ^ 1, call.slot + SLOTS, u16::MAX] {
            refused(&Call { slot, ..call.clone() }, expected, 1);
        }
    }
    // That of any of them is enough: it is for the shard to say which slots are its own.
    let args = ["mset", "a", "1", "b", "2"];
    let mset = call(Work::One(item("mset", 0, &args)));
    let other = Call { slot: slot(b"b"), ..mset.clone() };
    assert_ne!(other.slot, mset.slot);
    assert_eq!(Call::decode(&bytes_of(&other), &Index::new()).unwrap().slot, other.slot);
    // Without keys any slot is as good as another, if there is such a slot.
    let nothing = call(Work::Unit { items: Vec::new(), watched: Vec::new() });
    let last = Call { slot: SLOTS - 1, ..nothing.clone() };
    assert!(Call::decode(&bytes_of(&last), &Index::new()).is_ok());
    refused(&Call { slot: SLOTS, ..nothing }, expected, 1);
}

#[test]
fn a_database_that_does_not_exist_is_refused() {
    let expected = "a database below 16";
    let key: Box<[u8]> = Box::from(&b"key"[..]);
    let watched = vec![Watched { db: DATABASES, key: key.clone(), version: 0 }];
    refused(&call(Work::One(item("get", DATABASES, &["get", "key"]))), expected, 12);
    refused(&call(Work::Unit { items: Vec::new(), watched }), expected, 10);
    refused(&call(Work::Versions { db: usize::MAX, keys: vec![key] }), expected, 8);
}

#[test]
fn a_watched_key_that_is_too_long_is_refused() {
    let expected = "a key that is not too long";
    let key: Box<[u8]> = Box::from(vec![b'k'; MAX_KEY + 1]);
    let watched = vec![Watched { db: 0, key: key.clone(), version: 0 }];
    refused(&call(Work::Unit { items: Vec::new(), watched }), expected, 11);
    refused(&call(Work::Versions { db: 0, keys: vec![key] }), expected, 10);
}

#[test]
fn a_number_that_stands_for_nothing_is_refused() {
    let bytes = bytes_of(&set());
    for (at, expected) in [
        (3, "a known protocol"),
        (4, "a flag of 0 or 1"),
        (5, "a known durability"),
        (6, "a known moment"),
        (7, "a known kind of work"),
    ] {
        for number in [if at == 4 { 2 } else { 0 }, 4, u8::MAX] {
            let mut changed = bytes.clone();
            changed[at] = number;
            let error = Call::decode(&changed, &Index::new()).unwrap_err();
            assert_eq!(error, CallError::Malformed(Malformed { offset: at, expected }));
        }
    }
}

#[test]
fn a_newer_version_is_refused_in_words() {
    let error = Call::decode(&[2, 0], &Index::new()).unwrap_err().to_string();
    let expected = "expected version 1 of a call; a newer program may know it at byte 0";
    assert_eq!(error, expected);
    let error = Reply::decode(&[2, 1]).unwrap_err().to_string();
    let expected = "expected version 1 of a reply; a newer program may know it at byte 0";
    assert_eq!(error, expected);
    assert!(Call::decode(&[], &Index::new()).is_err() && Reply::decode(&[]).is_err());
}
