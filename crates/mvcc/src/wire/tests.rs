use atoll_env::random::Prng;

use super::*;
use crate::keys::MAX_USER_KEY;
use crate::request::Isolation;
use crate::timestamp::Epoch;

/// Numbers of all kinds of requests and of responses.
const REQUESTS: std::ops::RangeInclusive<u8> = 1..=15;
const RESPONSES: std::ops::RangeInclusive<u8> = 1..=13;

fn bytes_of(request: &Request) -> Vec<u8> {
    let mut out = Vec::new();
    request.encode(&mut out);
    out
}

fn bytes_of_response(response: &Response) -> Vec<u8> {
    let mut out = Vec::new();
    response.encode(&mut out);
    out
}

/// Returns a key of an ordered keyspace.
fn ordered(keyspace: u32, user_key: &[u8]) -> Key {
    [&keyspace.to_be_bytes()[..], user_key].concat()
}

/// Returns a key of a keyspace placed by slot.
fn slotted(slot: u16, user_key: &[u8]) -> Key {
    [&(1u32 << 31 | 16).to_be_bytes()[..], &slot.to_be_bytes(), user_key].concat()
}

// ---- drawing ----

fn draw_bytes(prng: &mut Prng, below: u64) -> Vec<u8> {
    (0..prng.below(below)).map(|_| prng.next_u64() as u8).collect()
}

fn draw_key(prng: &mut Prng) -> Key {
    let user_key = draw_bytes(prng, 4);
    match prng.chance(0.5) {
        true => ordered(prng.below(3) as u32, &user_key),
        false => slotted([0, 7, SLOTS - 1][prng.index(3)], &user_key),
    }
}

/// Draws keys in no order, `least` at least.
fn draw_keys(prng: &mut Prng, least: u64) -> Vec<Key> {
    (0..least + prng.below(4)).map(|_| draw_key(prng)).collect()
}

fn draw_ascending(prng: &mut Prng, least: u64) -> Vec<Key> {
    let mut keys = draw_keys(prng, least);
    keys.sort();
    keys.dedup();
    keys
}

fn draw_span(prng: &mut Prng) -> Span {
    let start = draw_key(prng);
    let mut end = start.clone();
    match prng.below(3) {
        0 => end.push(0),
        1 => end.extend(draw_bytes(prng, 4).iter().chain([&1])),
        _ => {
            let next = u32::from_be_bytes([start[0], start[1], start[2], start[3]]) + 1;
            end = next.to_be_bytes().to_vec();
        }
    }
    Span { start, end }
}

fn draw_ts(prng: &mut Prng) -> Timestamp {
    match prng.below(4) {
        0 => Timestamp::ZERO,
        1 => Timestamp::MAX,
        2 => Timestamp::commit_at(Epoch(prng.below(1_000))),
        _ => Timestamp(prng.next_u64()),
    }
}

fn draw_txn(prng: &mut Prng) -> TxnId {
    TxnId(u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64()))
}

fn draw_option<T>(prng: &mut Prng, draw: impl FnOnce(&mut Prng) -> T) -> Option<T> {
    prng.chance(0.5).then(|| draw(prng))
}

fn draw_value(prng: &mut Prng) -> Option<Vec<u8>> {
    draw_option(prng, |prng| draw_bytes(prng, 6))
}

fn draw_version(prng: &mut Prng) -> Version {
    Version { ts: draw_ts(prng), value: draw_value(prng) }
}

fn draw_isolation(prng: &mut Prng) -> Isolation {
    [Isolation::Serializable, Isolation::Snapshot, Isolation::ReadCommitted][prng.index(3)]
}

fn draw_outcome(prng: &mut Prng) -> Outcome {
    draw_option(prng, draw_ts).map_or(Outcome::Aborted, Outcome::Committed)
}

fn draw_reads(prng: &mut Prng, least: u64) -> ReadSet {
    ReadSet {
        keys: draw_keys(prng, least),
        spans: (0..prng.below(3)).map(|_| draw_span(prng)).collect(),
        locked: draw_ascending(prng, 0).into_iter().map(|key| (key, draw_ts(prng))).collect(),
    }
}

fn draw_writes(prng: &mut Prng) -> Vec<Write> {
    let keys = draw_ascending(prng, 1);
    keys.into_iter().map(|key| Write { key, value: draw_value(prng) }).collect()
}

fn draw_record(prng: &mut Prng) -> Record {
    match prng.below(3) {
        0 => Record::Staged {
            commit_ts: draw_ts(prng),
            isolation: draw_isolation(prng),
            keys: draw_ascending(prng, 1).into(),
        },
        1 => Record::Committed(draw_ts(prng)),
        _ => Record::Aborted,
    }
}

/// Draws a request of a kind, by its number on the wire.
fn draw_request(prng: &mut Prng, kind: u8) -> Request {
    let txn = draw_txn(prng);
    match kind {
        1 => Request::Get {
            txn: draw_option(prng, draw_txn),
            keys: draw_keys(prng, 1),
            at: draw_ts(prng),
        },
        2 => Request::Scan {
            txn: draw_option(prng, draw_txn),
            span: draw_span(prng),
            at: draw_ts(prng),
            limit: [0, 1, 1_000, usize::MAX][prng.index(4)],
            reverse: prng.chance(0.5),
        },
        3 => Request::Lock { txn, keys: draw_ascending(prng, 1), exclusive: prng.chance(0.5) },
        4 => Request::Unlock { txn, keys: draw_keys(prng, 1) },
        5 => Request::Waits { txn, keys: draw_keys(prng, 1) },
        6 => Request::Commit {
            txn,
            isolation: draw_isolation(prng),
            read_ts: draw_option(prng, draw_ts),
            reads: Arc::new(draw_reads(prng, 0)),
            writes: draw_writes(prng),
            commit_ts: draw_ts(prng),
        },
        7 => Request::Validate {
            txn,
            reads: draw_reads(prng, 1),
            read_ts: draw_ts(prng),
            at: draw_ts(prng),
        },
        8 => Request::Prewrite {
            txn,
            isolation: draw_isolation(prng),
            read_ts: draw_option(prng, draw_ts),
            reads: Arc::new(draw_reads(prng, 0)),
            writes: draw_writes(prng),
            commit_ts: draw_ts(prng),
            primary: draw_key(prng),
            record: draw_option(prng, draw_record),
        },
        9 => Request::Restage {
            txn,
            primary: draw_key(prng),
            from: draw_ts(prng),
            to: draw_ts(prng),
        },
        10 => Request::Finish {
            txn,
            primary: draw_key(prng),
            expect: draw_option(prng, draw_ts),
            outcome: draw_outcome(prng),
            stamp: draw_ts(prng),
            keys: draw_keys(prng, 0),
        },
        11 => Request::Status { txn, primary: draw_key(prng) },
        12 => Request::Probe { txn, keys: draw_keys(prng, 1), fence: draw_option(prng, draw_ts) },
        13 => Request::Resolve { txn, keys: draw_keys(prng, 1), outcome: draw_outcome(prng) },
        14 => {
            let primaries = draw_keys(prng, 1).into_iter();
            Request::Forget { txns: primaries.map(|key| (draw_txn(prng), key)).collect() }
        }
        15 => Request::Heartbeat { txn, key: draw_key(prng) },
        _ => unreachable!("there is no request {kind}"),
    }
}

/// Draws a response of a kind, by its number on the wire.
fn draw_response(prng: &mut Prng, kind: u8) -> Response {
    let few = prng.below(4);
    match kind {
        1 => Response::Values((0..few).map(|_| draw_option(prng, draw_version)).collect()),
        2 => Response::Rows {
            rows: (0..few).map(|_| (draw_key(prng), draw_version(prng))).collect(),
            more: draw_option(prng, draw_key),
        },
        3 => Response::Blocked(
            (0..=few)
                .map(|_| Obstacle {
                    key: draw_key(prng),
                    txn: draw_txn(prng),
                    primary: draw_key(prng),
                    min_commit_ts: draw_ts(prng),
                })
                .collect(),
        ),
        4 => Response::Committed(draw_ts(prng)),
        5 => Response::Prewritten(draw_ts(prng)),
        6 => Response::Done,
        7 => Response::Record { record: draw_option(prng, draw_record), alive: prng.chance(0.5) },
        8 => Response::Fates(
            (0..few)
                .map(|_| match prng.below(4) {
                    0 => Fate::Intent { min_commit_ts: draw_ts(prng) },
                    1 => Fate::Version { ts: draw_ts(prng) },
                    2 => Fate::Fenced,
                    _ => Fate::Missing,
                })
                .collect(),
        ),
        9 => Response::Waits((0..few).map(|_| draw_txn(prng)).collect()),
        10 => Response::Refused(match prng.below(6) {
            0 => Refusal::WriteConflict { key: draw_key(prng) },
            1 => Refusal::ReadConflict { key: draw_key(prng) },
            2 => Refusal::Fenced,
            3 => Refusal::Deadlock,
            4 => Refusal::SnapshotTooOld,
            _ => Refusal::TooLarge("no more than 4 MiB fit: größer".to_owned()),
        }),
        11 => Response::NotMine,
        12 => Response::Unknown,
        13 => Response::Unavailable(["", "the disk is full"][prng.index(2)].to_owned()),
        _ => unreachable!("there is no response {kind}"),
    }
}

/// Draws so many of each kind.
fn requests(seed: u64, of_each: usize) -> Vec<Request> {
    let mut prng = Prng::new(seed);
    REQUESTS
        .flat_map(|kind| std::iter::repeat_n(kind, of_each))
        .map(|kind| draw_request(&mut prng, kind))
        .collect()
}

fn responses(seed: u64, of_each: usize) -> Vec<Response> {
    let mut prng = Prng::new(seed);
    RESPONSES
        .flat_map(|kind| std::iter::repeat_n(kind, of_each))
        .map(|kind| draw_response(&mut prng, kind))
        .collect()
}

// ---- there and back ----

#[test]
fn every_request_comes_back_and_has_the_number_of_its_kind() {
    let mut prng = Prng::new(1);
    for kind in REQUESTS {
        for _ in 0..300 {
            let request = draw_request(&mut prng, kind);
            let bytes = bytes_of(&request);
            assert_eq!(bytes[..2], [VERSION, kind]);
            assert_eq!(Request::decode(&bytes), Ok(request));
        }
    }
    let behind = [VERSION, REQUESTS.end() + 1];
    let unknown = Malformed { offset: 1, expected: "a known kind of request" };
    assert_eq!(Request::decode(&behind), Err(unknown));
}

#[test]
fn every_response_comes_back_and_has_the_number_of_its_kind() {
    let mut prng = Prng::new(2);
    for kind in RESPONSES {
        for _ in 0..300 {
            let response = draw_response(&mut prng, kind);
            let bytes = bytes_of_response(&response);
            assert_eq!(bytes[..2], [VERSION, kind]);
            assert_eq!(Response::decode(&bytes), Ok(response));
        }
    }
    let behind = [VERSION, RESPONSES.end() + 1];
    let unknown = Malformed { offset: 1, expected: "a known kind of response" };
    assert_eq!(Response::decode(&behind), Err(unknown));
}

#[test]
fn what_is_largest_smallest_or_empty_comes_back() {
    let longest = ordered((1 << 31) - 1, &vec![0xff; MAX_KEY - 4]);
    let (none, all) = (TxnId(0), TxnId(u128::MAX));
    let span = Span { start: slotted(SLOTS - 1, b"\xff"), end: slotted(SLOTS, b"") };
    let requests = [
        Request::Get { txn: Some(none), keys: vec![longest.clone()], at: Timestamp::MAX },
        Request::Get { txn: Some(all), keys: vec![ordered(0, b""); 1_000], at: Timestamp::ZERO },
        Request::Scan { txn: None, span, at: Timestamp(1), limit: usize::MAX, reverse: true },
        Request::Finish {
            txn: all,
            primary: longest,
            expect: None,
            outcome: Outcome::Aborted,
            stamp: Timestamp::MAX,
            keys: Vec::new(),
        },
        Request::Commit {
            txn: none,
            isolation: Isolation::Serializable,
            read_ts: None,
            reads: Arc::default(),
            writes: vec![
                Write { key: ordered(1, b"a"), value: Some(Vec::new()) },
                Write { key: ordered(1, b"a\0"), value: None },
                Write { key: ordered(1, b"b"), value: Some(vec![7; 1 << 20]) },
            ],
            commit_ts: Timestamp(1),
        },
    ];
    for (at, request) in requests.into_iter().enumerate() {
        // Nobody wants to read a mebibyte.
        assert!(Request::decode(&bytes_of(&request)).as_ref() == Ok(&request), "request {at}");
    }
    let responses = [
        Response::Values(Vec::new()),
        Response::Values(vec![None; 1_000]),
        Response::Rows { rows: Vec::new(), more: None },
        Response::Record { record: None, alive: true },
        Response::Waits(vec![none, all]),
        Response::Fates(Vec::new()),
        // The start of a range that has changed is no key.
        Response::Refused(Refusal::ReadConflict { key: Vec::new() }),
    ];
    for response in responses {
        assert_eq!(Response::decode(&bytes_of_response(&response)), Ok(response));
    }
}

#[test]
fn a_key_as_long_as_clients_may_name_one_is_taken() {
    let keys = vec![slotted(0, &[0xff; MAX_USER_KEY])];
    let request = Request::Unlock { txn: TxnId(1), keys };
    assert_eq!(Request::decode(&bytes_of(&request)), Ok(request));
}

#[test]
fn the_bytes_of_version_1_never_change() {
    let request = Request::Commit {
        txn: TxnId(2),
        isolation: Isolation::Snapshot,
        read_ts: Some(Timestamp(3)),
        reads: Arc::new(ReadSet {
            keys: vec![b"\0\0\0\x01k".to_vec()],
            spans: vec![Span { start: b"\0\0\0\x01s".to_vec(), end: b"\0\0\0\x02".to_vec() }],
            locked: vec![(b"\0\0\0\x01l".to_vec(), Timestamp(4))],
        }),
        writes: vec![
            Write { key: b"\0\0\0\x01l".to_vec(), value: Some(b"vv".to_vec()) },
            Write { key: b"\0\0\0\x01m".to_vec(), value: None },
        ],
        commit_ts: Timestamp(0x0102_0304_0506_0708),
    };
    let expected: [&[u8]; 15] = [
        b"\x01\x06",
        b"\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\x02",
        b"\x01\x03\0\0\0\0\0\0\0",
        b"\x01\x05\0\0\0\x01k",
        b"\x01\x05\0\0\0\x01s",
        b"\x04\0\0\0\x02",
        b"\x01\x05\0\0\0\x01l",
        b"\x04\0\0\0\0\0\0\0",
        b"\x02",
        b"\x05\0\0\0\x01l",
        b"\x01\x02vv",
        b"\x05\0\0\0\x01m",
        b"\0",
        b"\x08\x07\x06\x05\x04\x03\x02\x01",
    ];
    assert_eq!(bytes_of(&request), expected.concat());
    let response = Response::Blocked(vec![Obstacle {
        key: b"\0\0\0\x01k".to_vec(),
        txn: TxnId(1 << 120),
        primary: b"\x80\0\0\x10\x3f\xffp".to_vec(),
        min_commit_ts: Timestamp(0x901),
    }]);
    let expected: [&[u8]; 5] = [
        b"\x01\x03\x01",
        b"\x05\0\0\0\x01k",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01",
        b"\x07\x80\0\0\x10\x3f\xffp",
        b"\x01\x09\0\0\0\0\0\0",
    ];
    assert_eq!(bytes_of_response(&response), expected.concat());
}

/// Every number inside of a message that stands for one of several things.
#[test]
fn the_numbers_of_version_1_never_change() {
    let ts = Timestamp(0);
    let record =
        |record| bytes_of_response(&Response::Record { record: Some(record), alive: false })[3];
    let keys: Arc<[Key]> = [ordered(0, b"")].into();
    let staged = |isolation| Record::Staged { commit_ts: ts, isolation, keys: keys.clone() };
    let records = [staged(Isolation::Serializable), Record::Committed(ts), Record::Aborted];
    assert_eq!(records.map(record), [1, 2, 3]);
    let isolation = |isolation| {
        bytes_of_response(&Response::Record { record: Some(staged(isolation)), alive: false })[12]
    };
    let levels = [Isolation::Serializable, Isolation::Snapshot, Isolation::ReadCommitted];
    assert_eq!(levels.map(isolation), [1, 2, 3]);
    let outcome = |outcome| {
        let keys = vec![ordered(0, b"")];
        bytes_of(&Request::Resolve { txn: TxnId(0), keys, outcome })[24]
    };
    assert_eq!([Outcome::Committed(ts), Outcome::Aborted].map(outcome), [1, 2]);
    let fate = |fate| bytes_of_response(&Response::Fates(vec![fate]))[3];
    let fates =
        [Fate::Intent { min_commit_ts: ts }, Fate::Version { ts }, Fate::Fenced, Fate::Missing];
    assert_eq!(fates.map(fate), [1, 2, 3, 4]);
    let refusal = |refusal| bytes_of_response(&Response::Refused(refusal))[2];
    let refusals = [
        Refusal::WriteConflict { key: Vec::new() },
        Refusal::ReadConflict { key: Vec::new() },
        Refusal::Fenced,
        Refusal::Deadlock,
        Refusal::SnapshotTooOld,
        Refusal::TooLarge(String::new()),
    ];
    assert_eq!(refusals.map(refusal), [1, 2, 3, 4, 5, 6]);
}

// ---- damage ----

#[test]
fn every_cut_and_everything_left_over_is_refused() {
    for request in requests(3, 10) {
        let bytes = bytes_of(&request);
        for cut in 0..bytes.len() {
            assert!(Request::decode(&bytes[..cut]).is_err(), "{request:?} cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        let end = Malformed { offset: bytes.len(), expected: "the end of the request" };
        assert_eq!(Request::decode(&longer), Err(end));
    }
    for response in responses(4, 10) {
        let bytes = bytes_of_response(&response);
        for cut in 0..bytes.len() {
            assert!(Response::decode(&bytes[..cut]).is_err(), "{response:?} cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        let end = Malformed { offset: bytes.len(), expected: "the end of the response" };
        assert_eq!(Response::decode(&longer), Err(end));
    }
}

#[test]
fn a_changed_byte_means_something_else_or_is_refused() {
    let (mut other, mut refused) = (0, 0);
    let mut judge = |same: Option<bool>, at: usize| match same {
        Some(same) => {
            assert!(!same, "byte {at} means nothing");
            other += 1;
        }
        None => refused += 1,
    };
    for request in requests(5, 4) {
        let bytes = bytes_of(&request);
        for at in 0..bytes.len() {
            for flip in 1..=255 {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                judge(Request::decode(&changed).ok().map(|decoded| decoded == request), at);
            }
        }
    }
    for response in responses(6, 4) {
        let bytes = bytes_of_response(&response);
        for at in 0..bytes.len() {
            for flip in 1..=255 {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                judge(Response::decode(&changed).ok().map(|decoded| decoded == response), at);
            }
        }
    }
    assert!(other > 100_000 && refused > 100_000, "{other} {refused}");
}

#[test]
fn random_damage_decodes_to_something_sound_or_to_an_error() {
    let mut prng = Prng::new(7);
    let samples: Vec<Vec<u8>> = requests(8, 20)
        .iter()
        .map(bytes_of)
        .chain(responses(9, 20).iter().map(bytes_of_response))
        .collect();
    let (mut sound, mut refused) = (0, 0);
    for _ in 0..200_000 {
        let mut bytes = prng.choose(&samples).unwrap().clone();
        for _ in 0..prng.range(1..4) {
            let at = prng.index(bytes.len());
            match prng.below(3) {
                0 => bytes[at] = prng.next_u64() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, prng.next_u64() as u8),
            }
        }
        let request = Request::decode(&bytes);
        let response = Response::decode(&bytes);
        let any = request.is_ok() || response.is_ok();
        *(if any { &mut sound } else { &mut refused }) += 1;
        if let Ok(request) = request {
            assert_eq!(Request::decode(&bytes_of(&request)), Ok(request));
        }
        if let Ok(response) = response {
            assert_eq!(Response::decode(&bytes_of_response(&response)), Ok(response));
        }
    }
    assert!(sound > 1_000 && refused > 1_000, "{sound} {refused}");
}

/// A list's announced number, with nothing behind it.
#[test]
fn an_announced_number_of_anything_takes_no_memory() {
    let txn = [7; 16];
    let head = |kind: u8, fields: &[&[u8]]| {
        let mut bytes = [&[VERSION, kind], &fields.concat()[..]].concat();
        varint::put(&mut bytes, 1 << 60);
        bytes
    };
    let no_reads: &[u8] = &[0, 0, 0];
    let lists = [
        head(1, &[&[0]]),
        head(3, &[&txn]),
        head(4, &[&txn]),
        head(5, &[&txn]),
        head(6, &[&txn, &[1, 0]]),
        head(6, &[&txn, &[1, 0, 0]]),
        head(6, &[&txn, &[1, 0, 0, 0]]),
        head(6, &[&txn, &[1, 0], no_reads]),
        head(7, &[&txn]),
        head(8, &[&txn, &[1, 0], no_reads]),
        head(
            8,
            &[
                &txn,
                &[1, 0],
                no_reads,
                b"\x01\x04\0\0\0\x01\0",
                &[0; 8],
                b"\x04\0\0\0\x01",
                &[1, 1],
                &[0; 8],
                &[1],
            ],
        ),
        head(10, &[&txn, b"\x04\0\0\0\x01\0\x02", &[0; 8]]),
        head(12, &[&txn]),
        head(13, &[&txn]),
        head(14, &[]),
    ];
    for bytes in lists {
        let error = Request::decode(&bytes).unwrap_err();
        assert_eq!(error.offset, bytes.len(), "the first element is missing: {error}");
    }
    let lists = [head(1, &[]), head(2, &[]), head(3, &[]), head(8, &[]), head(9, &[])];
    for bytes in lists {
        let error = Response::decode(&bytes).unwrap_err();
        assert_eq!(error.offset, bytes.len(), "the first element is missing: {error}");
    }
    // A length of bytes, and the same number in the place of any other byte.
    assert!(Response::decode(&head(13, &[])).is_err());
    for bytes in requests(10, 4).iter().map(bytes_of) {
        for at in 2..bytes.len() {
            let mut changed = bytes[..at].to_vec();
            varint::put(&mut changed, 1 << 60);
            let _ = Request::decode(&changed);
            changed.extend_from_slice(&bytes[at + 1..]);
            let _ = Request::decode(&changed);
        }
    }
}

// ---- what a shard takes for granted ----

/// Expects a refusal of a request, in these words.
#[track_caller]
fn refused(request: &Request, expected: &str, offset: usize) {
    let error = Request::decode(&bytes_of(request)).unwrap_err();
    assert_eq!((error.expected, error.offset), (expected, offset), "{request:?}");
}

fn commit(reads: ReadSet, writes: Vec<Write>) -> Request {
    Request::Commit {
        txn: TxnId(1),
        isolation: Isolation::Serializable,
        read_ts: None,
        reads: Arc::new(reads),
        writes,
        commit_ts: Timestamp(1),
    }
}

fn prewrite(writes: Vec<Write>, record: Option<Record>) -> Request {
    Request::Prewrite {
        txn: TxnId(1),
        isolation: Isolation::Serializable,
        read_ts: None,
        reads: Arc::default(),
        writes,
        commit_ts: Timestamp(1),
        primary: ordered(1, b"a"),
        record,
    }
}

fn write(user_key: &[u8]) -> Write {
    Write { key: ordered(1, user_key), value: None }
}

#[test]
fn what_does_not_ascend_is_refused() {
    // Version, kind, transaction, isolation, no moment, nothing read, the count.
    let first_write = 2 + 16 + 1 + 1 + 3 + 1;
    for second in [b"a", b"b"] {
        let (reads, writes) = (ReadSet::default(), vec![write(b"b"), write(second)]);
        let expected = "a write above the one before";
        refused(&commit(reads, writes.clone()), expected, first_write + 7);
        refused(&prewrite(writes, None), expected, first_write + 7);

        let keys = vec![ordered(1, b"b"), ordered(1, second)];
        let lock = Request::Lock { txn: TxnId(1), keys: keys.clone(), exclusive: true };
        refused(&lock, "a key above the one before", 2 + 16 + 1 + 6);

        let locked = keys.iter().map(|key| (key.clone(), Timestamp(1))).collect();
        let reads = ReadSet { locked, ..ReadSet::default() };
        let expected = "a locked key above the one before";
        refused(&commit(reads.clone(), vec![write(b"a")]), expected, first_write - 1 + 6 + 8);
        let validate =
            Request::Validate { txn: TxnId(1), reads, read_ts: Timestamp(1), at: Timestamp(2) };
        refused(&validate, expected, 2 + 16 + 2 + 1 + 6 + 8);

        let record = Record::Staged {
            commit_ts: Timestamp(1),
            isolation: Isolation::Serializable,
            keys: keys.into(),
        };
        let staged = first_write + 7 + 8 + 6 + 1;
        let prewrite = prewrite(vec![write(b"a")], Some(record.clone()));
        refused(&prewrite, "a key above the one before", staged + 1 + 8 + 1 + 1 + 6);
        let response = Response::Record { record: Some(record), alive: true };
        let error = Response::decode(&bytes_of_response(&response)).unwrap_err();
        assert_eq!(error.expected, "a key above the one before");
    }
    // Of the others the shard expects no order.
    let keys = vec![ordered(1, b"b"), ordered(1, b"a"), ordered(1, b"a")];
    for request in [
        Request::Get { txn: None, keys: keys.clone(), at: Timestamp(1) },
        Request::Unlock { txn: TxnId(1), keys: keys.clone() },
        Request::Probe { txn: TxnId(1), keys, fence: None },
    ] {
        assert_eq!(Request::decode(&bytes_of(&request)), Ok(request));
    }
}

#[test]
fn a_request_that_names_no_key_is_refused() {
    let txn = TxnId(1);
    let nothing = ReadSet::default;
    for request in [
        Request::Get { txn: None, keys: Vec::new(), at: Timestamp(1) },
        Request::Lock { txn, keys: Vec::new(), exclusive: false },
        Request::Unlock { txn, keys: Vec::new() },
        Request::Waits { txn, keys: Vec::new() },
        commit(ReadSet { keys: vec![ordered(1, b"a")], ..nothing() }, Vec::new()),
        Request::Validate { txn, reads: nothing(), read_ts: Timestamp(1), at: Timestamp(1) },
        prewrite(Vec::new(), None),
        Request::Probe { txn, keys: Vec::new(), fence: None },
        Request::Resolve { txn, keys: Vec::new(), outcome: Outcome::Aborted },
        Request::Forget { txns: Vec::new() },
        Request::Status { txn, primary: Vec::new() },
        Request::Heartbeat { txn, key: Vec::new() },
    ] {
        let error = Request::decode(&bytes_of(&request)).unwrap_err();
        assert!(error.offset < bytes_of(&request).len(), "{request:?}: {error}");
        assert!(request.key().is_empty(), "{request:?}");
    }
    // Something read is enough to find the shard by, whatever it is.
    for reads in [
        ReadSet { spans: vec![draw_span(&mut Prng::new(1))], ..nothing() },
        ReadSet { locked: vec![(ordered(1, b"a"), Timestamp::ZERO)], ..nothing() },
    ] {
        let request = Request::Validate { txn, reads, read_ts: Timestamp(1), at: Timestamp(1) };
        assert_eq!(Request::decode(&bytes_of(&request)), Ok(request));
    }
}

#[test]
fn a_key_without_a_place_or_too_long_for_the_tree_is_refused() {
    let expected = "a key with a place, not too long for the tree";
    let long = ordered(1, &vec![0; MAX_KEY - 3]);
    for key in [&b""[..], b"abc", b"\x80\0\0\x10", b"\x80\0\0\x10\0", b"\x80\0\0\x10\x40\0k", &long]
    {
        refused(&Request::Heartbeat { txn: TxnId(1), key: key.to_vec() }, expected, 18);
        let keys = vec![ordered(1, b"a"), key.to_vec()];
        refused(&Request::Unlock { txn: TxnId(1), keys }, expected, 18 + 1 + 6);
        let blocked = Response::Blocked(vec![Obstacle {
            key: ordered(1, b"a"),
            txn: TxnId(2),
            primary: key.to_vec(),
            min_commit_ts: Timestamp(1),
        }]);
        let error = Response::decode(&bytes_of_response(&blocked)).unwrap_err();
        assert_eq!((error.expected, error.offset), (expected, 3 + 6 + 16));
    }
}

#[test]
fn a_range_that_routing_does_not_cut_is_refused() {
    let range = |start: &[u8], end: &[u8]| {
        let span = Span { start: start.to_vec(), end: end.to_vec() };
        Request::Scan { txn: None, span, at: Timestamp(1), limit: 1, reverse: false }
    };
    let expected = "a range of keys of one keyspace, its start before its end";
    for (start, end) in [
        (&b"\0\0\0\x01b"[..], &b"\0\0\0\x01a"[..]),
        (b"\0\0\0\x01a", b"\0\0\0\x01a"),
        (b"\0\0\0\x01a", b""),
        (b"\0\0\0\x01a", b"\0\0\x01"),
        (b"\0\0\0\x01a", b"\0\0\0\x02a"),
        (b"\0\0\0\x01a", b"\0\0\0\x03"),
        (b"abc", b"abcd"),
        // Without a slot nobody can tell where it begins.
        (b"\x80\0\0\x10", b"\x80\0\0\x11"),
        (b"\x80\0\0\x10\x40\0", b"\x80\0\0\x11"),
        // There is one end behind the last slot, and it is no keyspace of another class.
        (b"\x80\0\0\x10\0\0", b"\x80\0\0\x10\x40\x01"),
        (b"\x80\0\0\x10\0\0", b"\x80\0\0\x10\xff\xffk"),
        (b"\x80\0\0\x10\0\0", b"\x80\0\0\x10\x01"),
        (b"\xff\xff\xff\xff\0\0", b"\xff\xff\xff\xff\xff"),
    ] {
        refused(&range(start, end), expected, 3);
        let span = Span { start: start.to_vec(), end: end.to_vec() };
        let reads = ReadSet { spans: vec![span], ..ReadSet::default() };
        refused(&commit(reads, vec![write(b"a")]), expected, 2 + 16 + 1 + 1 + 1 + 1);
    }
    for (start, end) in [
        (&b"\0\0\0\x01"[..], &b"\0\0\0\x02"[..]),
        (b"\0\0\0\x01a", b"\0\0\0\x01a\0"),
        (b"\x7f\xff\xff\xff", b"\x80\0\0\0"),
        (b"\x80\0\0\x10\0\0", b"\x80\0\0\x11"),
        (b"\x80\0\0\x10\0\x01k", b"\x80\0\0\x10\0\x02"),
        (b"\x80\0\0\x10\x3f\xff", b"\x80\0\0\x10\x40\0"),
    ] {
        let request = range(start, end);
        assert_eq!(Request::decode(&bytes_of(&request)), Ok(request));
    }
}

#[test]
fn a_staged_record_without_keys_and_a_block_without_obstacles_are_refused() {
    let record = Record::Staged {
        commit_ts: Timestamp(1),
        isolation: Isolation::Serializable,
        keys: Arc::new([]),
    };
    let response = Response::Record { record: Some(record), alive: true };
    let error = Response::decode(&bytes_of_response(&response)).unwrap_err();
    assert_eq!(error.to_string(), "expected a key of a staged record at byte 13");
    let error = Response::decode(&bytes_of_response(&Response::Blocked(Vec::new()))).unwrap_err();
    assert_eq!(error.to_string(), "expected an obstacle at byte 2");
}

#[test]
fn what_is_no_sentence_is_refused() {
    let bytes = [VERSION, answers::UNAVAILABLE, 2, 0xc3, 0x28];
    let error = Response::decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "expected a sentence in UTF-8 at byte 2");
    let bytes = [VERSION, answers::REFUSED, 6, 1, 0xff];
    let error = Response::decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "expected a sentence in UTF-8 at byte 3");
}

#[test]
fn a_newer_version_is_refused_in_words() {
    let error = Request::decode(&[2, 1]).unwrap_err().to_string();
    let expected = "expected version 1 of a request; a newer program may know it at byte 0";
    assert_eq!(error, expected);
    let error = Response::decode(&[2, 1]).unwrap_err().to_string();
    let expected = "expected version 1 of a response; a newer program may know it at byte 0";
    assert_eq!(error, expected);
    assert!(Request::decode(&[]).is_err() && Response::decode(&[]).is_err());
}
