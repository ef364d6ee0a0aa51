//! A request costs no allocation, however it is cut into reads: counted, not believed.

use allocation_counter::measure;
use atoll_resp::{Limits, Protocol, ReplyWriter, RequestParser};

/// Returns how often `work` allocates on this thread.
fn allocations(work: impl FnOnce()) -> u64 {
    measure(work).count_total
}

/// Parses a pipeline that arrives in pieces of `step` bytes; returns the number of requests.
fn read(parser: &mut RequestParser, stream: &[u8], step: usize) -> usize {
    let (mut start, mut shown, mut requests) = (0, 0, 0);
    while shown < stream.len() {
        shown = stream.len().min(shown + step);
        while let Some(len) =
            parser.parse(&stream[start..shown], &Limits::CLIENT).expect("well-formed")
        {
            let request = parser.request(&stream[start..shown]);
            for at in 0..request.len() {
                std::hint::black_box(request.get(at));
            }
            start += len;
            requests += 1;
        }
    }
    requests
}

fn pipeline() -> Vec<u8> {
    let mut stream = Vec::new();
    for number in 0..100 {
        let key = format!("key:{number}");
        atoll_resp::request(&mut stream, &["GET", &key]);
        atoll_resp::request(&mut stream, &["SET", &key, "a value of some length"]);
        atoll_resp::request(&mut stream, &["MSET", "a", "1", "b", "2", "c", "3", "d", "4"]);
    }
    stream
}

#[test]
fn requests_are_parsed_without_allocating() {
    let stream = pipeline();
    let mut parser = RequestParser::new();
    // The vector of spans grows to the longest request once.
    read(&mut parser, &stream, stream.len());
    for step in [stream.len(), 1000, 7, 1] {
        let mut requests = 0;
        let count = allocations(|| requests = read(&mut parser, &stream, step));
        assert_eq!((requests, count), (300, 0), "in pieces of {step} bytes");
    }
}

#[test]
fn a_long_request_that_arrives_slowly_allocates_as_its_arguments_do_and_not_as_it_announces() {
    let announced = b"*1000000000\r\n";
    let count = allocations(|| {
        let mut parser = RequestParser::new();
        assert_eq!(parser.parse(announced, &Limits::CLIENT), Ok(None));
    });
    assert!(count <= 1, "{count} allocations for a line");
}

#[test]
fn replies_are_written_without_allocating_once_the_buffer_has_its_size() {
    let mut out = Vec::with_capacity(64 << 10);
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        let count = allocations(|| {
            for number in 0..100i64 {
                let mut writer = ReplyWriter::new(&mut out, protocol);
                writer.bulk(b"a value of some length");
                writer.int(number);
                writer.simple("OK");
                writer.null();
                writer.error(b"ERR no such key");
            }
        });
        assert_eq!(count, 0, "{protocol:?}");
    }
}

#[test]
fn the_counter_counts() {
    let count = allocations(|| {
        std::hint::black_box(vec![1u8; 10]);
    });
    assert_eq!(count, 1);
}
