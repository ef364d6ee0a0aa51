//! What a server reads: byte tables, every cut of a stream, noise, and a second implementation.

use atoll_resp::{Limits, ProtocolError, RequestParser};

/// A seeded generator (xorshift64*), so that a failing case has a name.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

type Commands = Vec<Vec<Vec<u8>>>;

/// Parses what arrives in `parts`, as a connection does; returns the commands and the error.
fn parse(parts: &[&[u8]], limits: &Limits) -> (Commands, Option<ProtocolError>) {
    let mut parser = RequestParser::new();
    let (mut buf, mut start, mut commands) = (Vec::new(), 0, Vec::new());
    for part in parts {
        buf.extend_from_slice(part);
        loop {
            match parser.parse(&buf[start..], limits) {
                Ok(None) => break,
                Ok(Some(len)) => {
                    let request = parser.request(&buf[start..start + len]);
                    commands.push(request.tail(0).map(<[u8]>::to_vec).collect());
                    start += len;
                }
                Err(error) => return (commands, Some(error)),
            }
        }
    }
    (commands, None)
}

fn words(line: &str) -> Vec<Vec<u8>> {
    line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect()
}

#[test]
fn an_inline_request_is_split_as_a_shell_would() {
    for (line, expected) in [
        ("PING\r\n", vec!["PING"]),
        ("PING\n", vec!["PING"]),
        ("  get \t key  \r\n", vec!["get", "key"]),
        ("\r\n", vec![]),
        ("set k \"a b\"\r\n", vec!["set", "k", "a b"]),
        ("set k \"\\x41\\n\\\"\\q\"\r\n", vec!["set", "k", "A\n\"q"]),
        ("set k 'a \"b\\' c'\r\n", vec!["set", "k", "a \"b' c"]),
        ("set k \"\"\r\n", vec!["set", "k", ""]),
        ("set k ''\n", vec!["set", "k", ""]),
        ("set k pre\"fix\"\r\n", vec!["set", "k", "prefix"]),
        ("get HTTP/1.1x y\r\n", vec!["get", "HTTP/1.1x", "y"]),
    ] {
        let expected: Vec<Vec<u8>> = expected.iter().map(|word| word.as_bytes().to_vec()).collect();
        assert_eq!(parse(&[line.as_bytes()], &Limits::CLIENT), (vec![expected], None), "{line:?}");
    }
}

#[test]
fn an_empty_array_is_an_empty_request() {
    let (commands, error) = parse(&[b"*0\r\n*-1\r\n*-5\r\n*1\r\n$4\r\nPING\r\n"], &Limits::CLIENT);
    assert_eq!(commands, vec![vec![], vec![], vec![], words("PING")]);
    assert_eq!(error, None);
}

#[test]
fn errors_are_told_in_the_words_of_redis() {
    let line = "1".repeat(70_000);
    for (input, text) in [
        ("*x\r\n", "Protocol error: invalid multibulk length"),
        ("*\r\n", "Protocol error: invalid multibulk length"),
        ("*03\r\n", "Protocol error: invalid multibulk length"),
        ("*2147483648\r\n", "Protocol error: invalid multibulk length"),
        ("*3000000000\r\n", "Protocol error: invalid multibulk length"),
        ("*99999999999999999999\r\n", "Protocol error: invalid multibulk length"),
        ("*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n", "Protocol error: expected '$', got 'f'"),
        ("*1\r\n\u{1}", "Protocol error: expected '$', got ' '"),
        ("*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$2000000000\r\n", "Protocol error: invalid bulk length"),
        ("*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$-10\r\n", "Protocol error: invalid bulk length"),
        ("*1\r\n$blabla\r\n", "Protocol error: invalid bulk length"),
        ("*1\r\n$536870913\r\n", "Protocol error: invalid bulk length"),
        (&format!("*{line}"), "Protocol error: too big mbulk count string"),
        (&format!("*1\r\n${line}"), "Protocol error: too big bulk count string"),
        (&line, "Protocol error: too big inline request"),
        (&format!("{line}\r\n"), "Protocol error: too big inline request"),
        ("set k \"open\r\n", "Protocol error: unbalanced quotes in request"),
        ("set k \"a\"b\r\n", "Protocol error: unbalanced quotes in request"),
        ("set k 'a'b\r\n", "Protocol error: unbalanced quotes in request"),
        ("*1\r\n$4\r\nPINGxx", "Protocol error: expected CR LF"),
        ("*1\rx", "Protocol error: expected CR LF"),
    ] {
        let (_, error) = parse(&[input.as_bytes()], &Limits::CLIENT);
        assert_eq!(error.map(|e| e.to_string()), Some(text.to_owned()), "{:.80}", input);
    }
}

#[test]
fn a_stranger_may_send_ten_arguments_of_sixteen_kibibytes() {
    let told = |input: &str| {
        parse(&[input.as_bytes()], &Limits::STRANGER).1.map(|error| error.to_string())
    };
    assert_eq!(told("*10\r\n$16384\r\n"), None);
    assert_eq!(told("*11\r\n"), Some("Protocol error: unauthenticated multibulk length".into()));
    let bulk = Some("Protocol error: unauthenticated bulk length".into());
    assert_eq!(told("*1\r\n$16385\r\n"), bulk);
    assert_eq!(parse(&[b"*11\r\n$16385\r\n"], &Limits::CLIENT), (vec![], None));
}

#[test]
fn a_browser_is_told_that_this_is_not_http() {
    for input in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /x HTTP/1.1\r\n",
        "post k v\r\n",
        "Host: localhost:7379\r\n",
        "OPTIONS * HTTP/1.0\r\n",
    ] {
        assert_eq!(parse(&[input.as_bytes()], &Limits::CLIENT).1, Some(ProtocolError::Http));
    }
    let (_, error) = parse(&[b"*2\r\n$4\r\nPOST\r\n$8\r\nHTTP/1.1\r\n"], &Limits::CLIENT);
    assert_eq!(error, None, "a framed request comes from no browser");
}

#[test]
fn every_cut_of_a_pipeline_gives_the_same_commands() {
    let stream: &[u8] =
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\r\n\r\nPING\r\n*0\r\n\r\n*1\r\n$0\r\n\r\n\
        set k \"a b\"\r\n*2\r\n$3\r\nGET\r\n$12\r\nhello world!\r\n";
    let whole = parse(&[stream], &Limits::CLIENT);
    assert_eq!(whole.0.len(), 7);
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let parts = [&stream[..first], &stream[first..second], &stream[second..]];
            assert_eq!(parse(&parts, &Limits::CLIENT), whole, "cut at {first} and {second}");
        }
    }
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(parse(&bytes, &Limits::CLIENT), whole, "byte by byte");
}

#[test]
fn noise_never_panics_and_is_cut_invariant() {
    const ALPHABET: &[u8] = b"*$-0123\r\n\r\n\r\n \"'\\xaGETPOST\x00\xff";
    let mut random = Random(0x9e37_79b9);
    for case in 0..20_000 {
        let len = random.below(60);
        let noise: Vec<u8> = (0..len).map(|_| ALPHABET[random.below(ALPHABET.len())]).collect();
        let whole = parse(&[&noise], &Limits::CLIENT);
        let cut = random.below(len + 1);
        let parts = [&noise[..cut], &noise[cut..]];
        assert_eq!(parse(&parts, &Limits::CLIENT), whole, "case {case}: {}", noise.escape_ascii());
    }
}

#[test]
fn random_requests_are_read_as_another_implementation_reads_them() {
    use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};
    let mut random = Random(0x5eed);
    for case in 0..2_000 {
        let args: Vec<Vec<u8>> = (0..1 + random.below(8))
            .map(|_| {
                let len =
                    if random.below(10) == 0 { random.below(5_000) } else { random.below(20) };
                (0..len).map(|_| random.next() as u8).collect()
            })
            .collect();
        let frame = OwnedFrame::Array(args.iter().cloned().map(OwnedFrame::BulkString).collect());
        let mut theirs = vec![0; frame.encode_len(false)];
        redis_protocol::resp2::encode::encode(&mut theirs, &frame, false).unwrap();
        let mut ours = Vec::new();
        atoll_resp::request(&mut ours, &args);
        assert_eq!(ours, theirs, "case {case}");
        assert_eq!(parse(&[&theirs], &Limits::CLIENT), (vec![args], None), "case {case}");
    }
}

#[test]
fn random_replies_are_read_as_another_implementation_reads_them() {
    use atoll_resp::{Protocol, ReplyDecoder, ReplyWriter, Value};
    use redis_protocol::resp3::types::OwnedFrame;

    /// Writes a random reply and returns it as both implementations' value.
    fn write(random: &mut Random, writer: &mut ReplyWriter<'_>, depth: usize) -> Value {
        let bytes = |random: &mut Random| -> Vec<u8> {
            (0..random.below(12)).map(|_| b'a' + random.below(26) as u8).collect()
        };
        match random.below(if depth == 0 { 8 } else { 11 }) {
            0 => {
                writer.simple("OK");
                Value::Simple(b"OK".to_vec())
            }
            1 => {
                let text = [b"ERR ".as_slice(), &bytes(random)].concat();
                writer.error(&text);
                Value::Error(text)
            }
            2 => {
                let value = random.next() as i64;
                writer.int(value);
                Value::Int(value)
            }
            3 => {
                let text = bytes(random);
                writer.bulk(&text);
                Value::Bulk(text)
            }
            4 => {
                writer.null();
                Value::Null
            }
            5 => {
                let value = f64::from(random.next() as i32) / 64.0;
                writer.double(value);
                Value::Double(value)
            }
            6 => {
                writer.boolean(true);
                Value::Boolean(true)
            }
            7 => {
                let text = bytes(random);
                writer.verbatim(b"txt", &text);
                Value::Verbatim(text)
            }
            8 => {
                let len = random.below(4);
                writer.array(len);
                Value::Array((0..len).map(|_| write(random, writer, depth - 1)).collect())
            }
            9 => {
                let len = random.below(3);
                writer.map(len);
                let pairs = (0..len).map(|i| {
                    writer.count(i);
                    (Value::Int(i as i64), write(random, writer, depth - 1))
                });
                Value::Map(pairs.collect())
            }
            _ => {
                let len = random.below(4);
                writer.push(len);
                Value::Push((0..len).map(|_| write(random, writer, 0)).collect())
            }
        }
    }

    fn theirs(frame: OwnedFrame) -> Value {
        match frame {
            OwnedFrame::SimpleString { data, .. } => Value::Simple(data),
            OwnedFrame::SimpleError { data, .. } => Value::Error(data.into_bytes()),
            OwnedFrame::BlobString { data, .. } => Value::Bulk(data),
            OwnedFrame::BlobError { data, .. } => Value::Error(data),
            OwnedFrame::Number { data, .. } => Value::Int(data),
            OwnedFrame::Double { data, .. } => Value::Double(data),
            OwnedFrame::Boolean { data, .. } => Value::Boolean(data),
            OwnedFrame::Null => Value::Null,
            OwnedFrame::VerbatimString { data, .. } => Value::Verbatim(data),
            OwnedFrame::Array { data, .. } => Value::Array(data.into_iter().map(theirs).collect()),
            OwnedFrame::Push { data, .. } => Value::Push(data.into_iter().map(theirs).collect()),
            OwnedFrame::Map { data, .. } => {
                let mut pairs: Vec<(Value, Value)> =
                    data.into_iter().map(|(key, value)| (theirs(key), theirs(value))).collect();
                pairs.sort_by_key(|(key, _)| format!("{key:?}"));
                Value::Map(pairs)
            }
            other => panic!("the writer writes no {other:?}"),
        }
    }

    let mut random = Random(0xacce55);
    for case in 0..5_000 {
        let mut bytes = Vec::new();
        let mut writer = ReplyWriter::new(&mut bytes, Protocol::Resp3);
        let expected = write(&mut random, &mut writer, 3);
        let mut decoder = ReplyDecoder::new();
        decoder.feed(&bytes);
        assert_eq!(decoder.next_reply(), Ok(Some(expected.clone())), "case {case}");
        let frame = redis_protocol::resp3::decode::complete::decode(&bytes).unwrap();
        let Some((frame, len)) = frame else {
            panic!("case {case}: they found no frame in {}", bytes.escape_ascii())
        };
        assert_eq!((theirs(frame), len), (expected, bytes.len()), "case {case}");
    }
}
