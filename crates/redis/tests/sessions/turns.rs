//! What must hold for any input: how commands are grouped into turns, and how bytes are cut into
//! reads, changes no answer; iteration misses no key.

use std::collections::BTreeSet;

use crate::support::{Bench, Random, replies_of};
use atoll_env::block_on;
use atoll_redis::{Commit, Config, Durability, Progress};

fn random_command(random: &mut Random) -> String {
    let keys = ["a", "b", "c", "{t}d", "{t}e"];
    let (key, other) = (random.pick(&keys), random.pick(&keys));
    let number = random.below(40) as i64 - 5;
    match random.below(26) {
        0..=2 => format!("SET {key} {number}"),
        3 => format!("SET {key} v{number} PX {}", 1 + random.below(30)),
        4 => format!("SET {key} {number} {} GET", random.pick(&["NX", "XX", "KEEPTTL"])),
        5 => format!("MSET {key} {number} {other} x"),
        6..=8 => format!("GET {key}"),
        9 => format!("MGET {key} {other}"),
        10 => format!("INCR {key}"),
        11 => format!("INCRBY {key} {number}"),
        12..=13 => format!("APPEND {key} {number}"),
        14 => format!("DEL {key} {other}"),
        15 => format!("GETDEL {key}"),
        16 => format!("GETEX {key} {}", random.pick(&["PERSIST", "PX 7", "PXAT 1"])),
        17 => format!("PEXPIRE {key} {number} {}", random.pick(&["", "NX", "XX", "GT", "LT"])),
        18 => format!("PTTL {key}"),
        19 => format!("PERSIST {key}"),
        20 => format!("EXISTS {key} {other} {key}"),
        21 => "DBSIZE".to_owned(),
        22 => "KEYS *".to_owned(),
        23 => "SCAN 0 COUNT 100".to_owned(),
        24 => random.pick(&["SELECT 0", "SELECT 1"]).to_owned(),
        _ => random.pick(&["FLUSHDB", "FLUSHALL", "SETNX a 1", "STRLEN b"]).to_owned(),
    }
}

#[test]
fn grouping_commands_into_turns_changes_no_answer() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let (mut together, mut apart) =
            (Bench::new(Config::default()), Bench::new(Config::default()));
        for _ in 0..12 {
            let commands: Vec<String> = (0..10).map(|_| random_command(&mut random)).collect();
            let one = together.ask(&commands.join("\r\n"));
            let many: Vec<String> = commands.iter().map(|command| apart.ask(command)).collect();
            assert_eq!(one, many.join(" | "), "seed {seed}: {commands:?}");
            let pause = random.below(6);
            together.clock.advance(pause);
            apart.clock.advance(pause);
        }
    }
}

#[test]
fn cutting_the_stream_changes_no_answer() {
    let mut stream = Vec::new();
    for args in [
        &["SET", "k", "a longer value, to be cut"][..],
        &["GET", "k"],
        &["APPEND", "k", ""],
        &["NOSUCH"],
        &["MGET", "k", "k"],
    ] {
        atoll_resp::request(&mut stream, args);
    }
    stream.extend_from_slice(b"\r\nGET k\r\n*1\r\n:broken");
    let receive = |parts: &[&[u8]]| {
        let mut bench = Bench::new(Config::default());
        let mut received = Vec::new();
        for part in parts {
            received.extend(bench.turn(&[(1, part.to_vec())]).remove(0).1);
        }
        replies_of(&received)
    };
    let whole = receive(&[&stream]);
    assert_eq!(whole.len(), 7);
    for cut in 0..stream.len() {
        assert_eq!(receive(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
    }
}

#[test]
fn a_scan_returns_every_key_that_was_there_all_the_time() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut bench = Bench::new(Config::default());
        let stay: BTreeSet<String> = (0..200).map(|i| format!("stay:{i}")).collect();
        for key in &stay {
            bench.ask(&format!("SET {key} 1"));
        }
        let (mut cursor, mut seen) = ("0".to_owned(), BTreeSet::new());
        for step in 0.. {
            assert!(step < 2_000, "seed {seed}: the scan ends");
            let count = 1 + random.below(30);
            let reply = bench.ask(&format!("SCAN {cursor} COUNT {count}"));
            let words: Vec<&str> = reply.split(' ').collect();
            seen.extend(words[4..].iter().skip(1).step_by(2).map(|key| (*key).to_owned()));
            cursor = words[2].to_owned();
            if cursor == "0" {
                break;
            }
            // Other keys come and go meanwhile, and now and then a cursor is of another process.
            let (come, go) = (random.below(300), random.below(300));
            bench.ask(&format!("SET other:{come} 1\r\nDEL other:{go}"));
            if random.below(10) == 0 {
                let slot = cursor.parse::<u64>().unwrap() >> 48;
                cursor = (slot << 48 | 12_345).to_string();
            }
        }
        assert!(stay.is_subset(&seen), "seed {seed}: {:?}", stay.difference(&seen));
    }
}

#[test]
fn a_read_that_fails_is_an_error_and_leaves_nothing_half_done() {
    let mut bench = Bench::new(Config::default());
    bench.ask("MSET a 1 b 2");
    // The first key's read is answered by what the turn staged, the second one's fails.
    *bench.store.unreadable.borrow_mut() = Some("table 7 is damaged; run verify".to_owned());
    let error = "-ERR cannot read: table 7 is damaged; run verify";
    assert_eq!(bench.ask("SET a 3\r\nDEL a b"), format!("+OK | {error}"));
    assert_eq!(bench.ask("SET a 3\r\nMGET a b\r\nSCAN 0"), format!("+OK | {error} | {error}"));
    *bench.store.unreadable.borrow_mut() = None;
    assert_eq!(bench.ask("MGET a b"), "*2 $1 3 $1 2");
}

#[test]
fn a_turn_commits_once_in_the_strongest_mode_it_saw() {
    let mut bench = Bench::new(Config::default());
    bench.turn(&[(1, b"SET a 1\r\nINCR a\r\n".to_vec()), (2, b"INCR a\r\n".to_vec())]);
    assert_eq!(bench.store.commits.get(), (1, Durability::Synced));
    bench.ask("GET a\r\nGET nothing");
    assert_eq!(bench.store.commits.get().0, 1, "a turn that wrote nothing commits nothing");
    bench.ask("SET a 2\r\nCONFIG SET durability buffered");
    assert_eq!(bench.store.commits.get(), (2, Durability::Synced), "promised to SET");
    bench.ask("SET a 3");
    assert_eq!(bench.store.commits.get(), (3, Durability::Buffered));
}

#[test]
fn a_long_pipeline_takes_turns_with_others() {
    let mut bench = Bench::new(Config::default());
    let (long, short) = (bench.client(1), bench.client(2));
    bench.executor.feed(long, &mut b"INCR n\r\n".repeat(5_000));
    bench.executor.feed(short, &mut b"GET n\r\n".to_vec());
    bench.executor.begin_turn();
    assert_eq!(block_on(bench.executor.execute(long)), Progress::More);
    assert_eq!(block_on(bench.executor.execute(short)), Progress::Idle { partial: 0, executed: 1 });
    assert_eq!(block_on(bench.executor.commit()), Commit::Done);
    let mut output = Vec::new();
    bench.executor.take_output(short, &mut output);
    assert_eq!(replies_of(&output), ["$4 1024"]);
}

#[test]
fn a_turn_stages_a_bounded_number_of_bytes() {
    let mut bench = Bench::new(Config::default());
    let mut request = Vec::new();
    atoll_resp::request(&mut request, &[b"SET".as_slice(), b"k", &vec![b'x'; 3 << 20]]);
    let ids = [1, 2, 3, 4].map(|number| bench.client(number));
    bench.executor.begin_turn();
    let mut executed = 0;
    for (i, id) in ids.into_iter().enumerate() {
        let bytes = String::from_utf8(request.clone()).unwrap();
        let bytes = bytes.replace("$1\r\nk", &format!("$1\r\n{i}"));
        bench.executor.feed(id, &mut bytes.into_bytes());
        executed += usize::from(block_on(bench.executor.execute(id)) != Progress::More);
    }
    assert!(bench.executor.is_full());
    assert_eq!(executed, 2, "the third made it full and ended its turn, the fourth had none");
}

#[test]
fn keys_and_values_beyond_the_limits_are_refused_before_anything_is_staged() {
    let mut bench = Bench::new(Config::default());
    let long = "k".repeat(65_500);
    let mut request = Vec::new();
    for args in [
        &["MSET", "a", "1", &long, "2"][..],
        &["SET", &long, "1"],
        &["GET", &long],
        &["DEL", "a", &long],
        &["EXISTS", "a"],
    ] {
        atoll_resp::request(&mut request, args);
    }
    let (_, output, _) = bench.turn(&[(1, request)]).remove(0);
    let error = "-ERR the key is 65500 bytes long; a key may have 32704 at most";
    assert_eq!(replies_of(&output), [error, error, error, error, ":0"]);
}

#[test]
fn fragments_go_with_the_key_that_had_them() {
    let big = "SETRANGE a 20000 x\r\nSETBIT a 0 1";
    for (after, left) in [
        ("DEL a", 0),
        ("SET a whole", 0),
        ("MSET a whole b 1", 0),
        ("SETEX a 100 whole", 0),
        ("GETDEL a", 0),
        ("GETSET a whole", 0),
        ("BITOP OR a nothing nothing", 0),
        ("FLUSHDB", 0),
        ("RENAME a b", 2),
        ("COPY a b", 4),
        ("COPY a b REPLACE\r\nDEL a b", 0),
        ("SET b 1\r\nRENAME b a", 0),
        ("SETRANGE b 20000 x\r\nRENAME b a", 1),
        ("MOVE a 1", 2),
        ("EXPIRE a 100\r\nPERSIST a", 2),
        ("SWAPDB 0 1\r\nSELECT 1\r\nDEL a", 0),
        ("MULTI\r\nSETRANGE a 9000 y\r\nDEL a\r\nEXEC", 0),
    ] {
        for one_turn in [false, true] {
            let mut bench = Bench::new(Config::default());
            if one_turn {
                bench.ask(&format!("{big}\r\n{after}"));
            } else {
                bench.ask(big);
                assert_eq!(bench.store.subs(), 2);
                bench.ask(after);
            }
            assert_eq!(bench.store.subs(), left, "{after}, in one turn: {one_turn}");
        }
    }
}

#[test]
fn fragments_of_an_expired_key_go_when_a_command_meets_it() {
    let mut bench = Bench::new(Config::default());
    bench.ask("SETRANGE a 20000 x\r\nPEXPIRE a 100");
    bench.clock.advance(100);
    assert_eq!(bench.store.subs(), 1);
    assert_eq!(bench.ask("EXISTS a"), ":0");
    assert_eq!(bench.store.subs(), 0);
}

#[test]
fn records_of_the_first_layout_are_read_and_become_the_present_one() {
    let mut bench = Bench::new(Config::default());
    bench.store.plant("a", b"\x01old", None);
    bench.store.plant("b", b"\x0141", Some(1_700_000_100_000));
    bench.store.plant("c", b"\x09of a later version", None);
    assert_eq!(bench.ask("GET a\r\nTTL b\r\nINCR b\r\nTTL b"), "$3 old | :100 | :42 | :100");
    let unknown = "-ERR the key holds a type this version does not know; upgrade the server to \
                   read it, or DEL it";
    assert_eq!(
        bench.ask("GET c\r\nEXISTS c\r\nEXPIRE c 1\r\nRENAME c d\r\nSET c 1\r\nGET c"),
        format!("{unknown} | :1 | {unknown} | {unknown} | +OK | $1 1")
    );
    let meta = bench.ask("OBJECT META a");
    assert!(meta.contains("created $-1"), "{meta}");
}

#[test]
fn a_large_transaction_waits_for_a_turn_of_its_own() {
    let mut bench = Bench::new(Config::default());
    let (large, small) = (bench.client(1), bench.client(2));
    let value = "x".repeat(5 << 20);
    let mut bytes = Vec::new();
    for args in [&["MULTI"][..], &["SET", "a", &value], &["SET", "b", &value]] {
        atoll_resp::request(&mut bytes, args);
    }
    bench.executor.feed(large, &mut bytes);
    bench.executor.begin_turn();
    block_on(bench.executor.execute(large));
    block_on(bench.executor.commit());
    bench.executor.feed(large, &mut b"EXEC\r\n".to_vec());
    bench.executor.feed(small, &mut b"SET c 1\r\n".to_vec());
    bench.executor.begin_turn();
    block_on(bench.executor.execute(small));
    assert_eq!(block_on(bench.executor.execute(large)), Progress::More);
    assert_eq!(block_on(bench.executor.commit()), Commit::Done);
    bench.executor.begin_turn();
    block_on(bench.executor.execute(large));
    assert_eq!(block_on(bench.executor.commit()), Commit::Done);
    let mut output = Vec::new();
    bench.executor.take_output(large, &mut output);
    assert_eq!(replies_of(&output), ["+OK", "+QUEUED", "+QUEUED", "*2 +OK +OK"]);
}
